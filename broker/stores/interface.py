"""What a store is asked for: the outcomes of idempotent services, and the journals of durable ones."""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol


class Claim(enum.Enum):
    """What came of a claim, unless there is an outcome already."""

    OURS = "ours"
    BUSY = "busy"


class StoreError(Exception):
    """The store cannot be used now."""


class Head(NamedTuple):
    """What a run is: its ID, service and CID, its state, when it began and when it last changed its state (seconds since 1970)."""

    run: str
    service: str
    cid: str
    state: str
    began: float
    changed: float


class Store(Protocol):
    """Keeps outcomes by key, for all processes that use the same one. Every method may raise StoreError."""

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        """Claim a key for `lease` seconds, or again if it is `owner`'s already. An outcome that is kept is returned instead."""

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        """Keep the outcome in place of the claim; False if that is not `owner`'s any more."""

    async def release(self, key: str, owner: str) -> None:
        """Give up `owner`'s claim."""

    async def read(self, run: str) -> list[str]:
        """The chunks of a run's journal, in order; none if there is no such run."""

    async def append(self, run: str, version: int, chunk: str, head: Head | None, keep: float | None) -> bool:
        """Append a chunk to a journal that has `version` of them; False, and nothing done, if it has another number.

        With a head, that is noted, too; with `keep`, the run is forgotten after so many seconds.
        """

    async def drop(self, run: str, version: int) -> None:
        """Forget the chunks before that number; `read` begins with it from now on. The numbers go on."""

    async def heads(
        self, *, service: str | None = None, state: str | None = None, cid: str | None = None, most: int = 1000
    ) -> list[Head]:
        """The runs that there are, of one service, state, CID, or of all, the newest first."""

    async def close(self) -> None: ...
