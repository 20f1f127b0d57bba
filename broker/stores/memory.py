"""A store in this process's memory: good for one process, until it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from broker.stores.interface import Claim, Head

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
        self._journals: dict[str, dict[int, str]] = {}
        self._heads: dict[str, Head] = {}

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

    def journal(self, run: str) -> list[str]:
        """What `read` returns, at once."""
        return list(self._journals.get(run, {}).values())

    async def read(self, run: str) -> list[str]:
        return self.journal(run)

    async def append(self, run: str, version: int, chunk: str, head: Head | None, keep: float | None) -> bool:
        journal = self._journals.setdefault(run, {})
        if version != (next(reversed(journal)) + 1 if journal else 0):
            return False
        journal[version] = chunk
        if head is not None:
            self._heads[run] = head
        if keep is not None:
            asyncio.get_running_loop().call_later(keep, self._forget, run, head)
        return True

    def _forget(self, run: str, head: Head | None) -> None:
        if self._heads.get(run) is head:
            self._heads.pop(run, None)
            self._journals.pop(run, None)

    async def drop(self, run: str, version: int) -> None:
        journal = self._journals.get(run, {})
        for number in [number for number in journal if number < version]:
            del journal[number]

    async def heads(
        self, *, service: str | None = None, state: str | None = None, cid: str | None = None, most: int = 1000
    ) -> list[Head]:
        found = [
            one
            for one in self._heads.values()
            if service in (None, one.service) and state in (None, one.state) and cid in (None, one.cid)
        ]
        return sorted(found, key=lambda one: -one.began)[:most]

    async def close(self) -> None:
        self._entries.clear()
