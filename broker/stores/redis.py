"""Outcomes in Redis: for daemons on many machines. Leases are by Redis's clock.

What Redis has confirmed it may still lose when it fails over or restarts, as its persistence is configured
(https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/): then a repeat is handled again.
"""

from __future__ import annotations

from typing import Any

from broker.errors import ConfigurationError
from broker.stores.interface import Claim, StoreError

PREFIX = "ackback:once:"
TIMEOUT = 10.0

# A value is the owner's 16 characters, then nothing (a claim) or "=" and the outcome. A script runs alone, so each is one step.
_CLAIM = """
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
_KEEP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. '=' .. ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisStore:
    """
    Raises:
        ConfigurationError: the package `redis` is not installed, or the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise ConfigurationError("idempotency.store: a redis:// URL needs: pip install 'ackback[redis]'") from None
        try:
            self._redis = Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        except ValueError as error:
            raise ConfigurationError(f"idempotency.store: {error}") from None

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        found = await self._run(_CLAIM, key, owner, round(lease * 1000))
        if found is None:
            return Claim.OURS
        _, is_kept, outcome = found.decode().partition("=")
        return outcome if is_kept else Claim.BUSY

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        return bool(await self._run(_KEEP, key, owner, outcome, round(seconds * 1000)))

    async def release(self, key: str, owner: str) -> None:
        await self._run(_RELEASE, key, owner)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _run(self, script: str, key: str, *arguments: Any) -> Any:
        from redis.exceptions import RedisError

        try:
            return await self._redis.eval(script, 1, PREFIX + key, *arguments)
        except (RedisError, OSError) as error:
            raise StoreError(f"the Redis store of idempotent services failed: {error}") from None
