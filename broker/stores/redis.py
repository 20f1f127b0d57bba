"""A store in Redis: for daemons on many machines. Leases are by Redis's clock.

What Redis has confirmed it may still lose when it fails over or restarts, as its persistence is configured
(https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/): then a repeat is handled again, and a run goes on from what
Redis still knows of it. With `appendfsync always` it keeps all.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from broker.errors import ConfigurationError
from broker.stores.batches import Batches
from broker.stores.interface import Claim, Head, StoreError

PREFIX = "ackback:once:"
JOURNAL, HEAD, DROPPED, HEADS = "ackback:journal:", "ackback:run:", "ackback:dropped:", "ackback:runs"
"""A list for each run, its head, how many chunks of it were dropped, and the runs by when they began."""
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
# The list's length is the comparison, with what has been dropped of it.
_APPEND = """
local dropped = tonumber(redis.call('GET', KEYS[4]) or '0')
if redis.call('LLEN', KEYS[1]) + dropped ~= tonumber(ARGV[1]) then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then
  redis.call('SET', KEYS[2], ARGV[3])
  redis.call('ZADD', KEYS[3], ARGV[4], ARGV[5])
  if ARGV[6] ~= '' then
    redis.call('PEXPIRE', KEYS[1], ARGV[6])
    redis.call('PEXPIRE', KEYS[2], ARGV[6])
    redis.call('PEXPIRE', KEYS[4], ARGV[6])
  else
    redis.call('PERSIST', KEYS[1])
    redis.call('PERSIST', KEYS[2])
    redis.call('PERSIST', KEYS[4])
  end
end
return 1
"""
_DROP = """
local dropped = tonumber(redis.call('GET', KEYS[2]) or '0')
if tonumber(ARGV[1]) > dropped and redis.call('LLEN', KEYS[1]) > 0 then
  redis.call('LTRIM', KEYS[1], tonumber(ARGV[1]) - dropped, -1)
  redis.call('SET', KEYS[2], ARGV[1])
end
return 0
"""
LOOKED_AT = 500
"""Runs that are looked at at once."""


class _Command(NamedTuple):
    name: str
    arguments: tuple[Any, ...]


class RedisStore:
    """
    Raises:
        ConfigurationError: the package `redis` is not installed, or the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise ConfigurationError("store.url: a redis:// URL needs: pip install 'ackback[redis]'") from None
        try:
            self._redis = Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        except ValueError as error:
            raise ConfigurationError(f"store.url: {error}") from None
        self._batches: Batches[_Command, Any] = Batches(self._run_all)

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        found = await self._run("EVAL", _CLAIM, 1, PREFIX + key, owner, round(lease * 1000))
        if found is None:
            return Claim.OURS
        _, is_kept, outcome = found.decode().partition("=")
        return outcome if is_kept else Claim.BUSY

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        return bool(await self._run("EVAL", _KEEP, 1, PREFIX + key, owner, outcome, round(seconds * 1000)))

    async def release(self, key: str, owner: str) -> None:
        await self._run("EVAL", _RELEASE, 1, PREFIX + key, owner)

    async def read(self, run: str) -> list[str]:
        return [chunk.decode() for chunk in await self._run("LRANGE", JOURNAL + run, 0, -1)]

    async def append(self, run: str, version: int, chunk: str, head: Head | None, keep: float | None) -> bool:
        kept = ("", "", "", "") if head is None else (json.dumps(head), head.began, run, _milliseconds(keep))
        keys = JOURNAL + run, HEAD + run, HEADS, DROPPED + run
        return bool(await self._run("EVAL", _APPEND, len(keys), *keys, version, chunk, *kept))

    async def drop(self, run: str, version: int) -> None:
        await self._run("EVAL", _DROP, 2, JOURNAL + run, DROPPED + run, version)

    async def heads(
        self, *, service: str | None = None, state: str | None = None, cid: str | None = None, most: int = 1000
    ) -> list[Head]:
        found: list[Head] = []
        for first in itertools.count(0, LOOKED_AT):
            runs = await self._run("ZRANGE", HEADS, first, first + LOOKED_AT - 1, "REV")
            if not runs or len(found) >= most:
                return found[:most]
            names = [run.decode() for run in runs]
            kept = await self._run("MGET", *(HEAD + name for name in names))
            if gone := [name for name, one in zip(names, kept, strict=True) if one is None]:
                await self._run("ZREM", HEADS, *gone)
            known = [Head(*json.loads(one)) for one in kept if one is not None]
            found += [
                one
                for one in known
                if service in (None, one.service) and state in (None, one.state) and cid in (None, one.cid)
            ]
        raise AssertionError

    async def close(self) -> None:
        await self._batches.close()
        await self._redis.aclose()

    async def _run(self, name: str, *arguments: Any) -> Any:
        return await self._batches.run(_Command(name, arguments))

    async def _run_all(self, batch: Sequence[_Command]) -> Sequence[Any]:
        """All in one round trip."""
        from redis.exceptions import RedisError

        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for command in batch:
                    pipeline.execute_command(command.name, *command.arguments)
                return await pipeline.execute()
        except (RedisError, OSError) as error:
            raise StoreError(f"the Redis store failed: {error}") from None


def _milliseconds(keep: float | None) -> int | str:
    return "" if keep is None else round(keep * 1000)
