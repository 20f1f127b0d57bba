"""Outcomes in this process's memory: good for one process, until it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from broker.stores.interface import Claim

PRUNE_EVERY = 1000


@dataclass(slots=True)
class _Entry:
    until: float
    owner: str
    outcome: str | None = None


class MemoryStore:
    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._claims = 0

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        now = asyncio.get_running_loop().time()
        self._claims += 1
        if self._claims % PRUNE_EVERY == 0:
            self._entries = {key: entry for key, entry in self._entries.items() if entry.until > now}
        entry = self._entries.get(key)
        if entry is not None and entry.until > now and entry.owner != owner:
            return Claim.BUSY if entry.outcome is None else entry.outcome
        if entry is None or entry.outcome is None:
            self._entries[key] = _Entry(now + lease, owner)
        return Claim.OURS

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        entry = self._entries.get(key)
        if entry is None or entry.owner != owner:
            return False
        self._entries[key] = _Entry(asyncio.get_running_loop().time() + seconds, owner, outcome)
        return True

    async def release(self, key: str, owner: str) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.owner == owner and entry.outcome is None:
            del self._entries[key]

    async def close(self) -> None:
        self._entries.clear()
