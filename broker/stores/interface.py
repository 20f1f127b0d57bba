"""What a store of outcomes is asked for."""

from __future__ import annotations

import enum
from typing import Protocol


class Claim(enum.Enum):
    """What came of a claim, unless there is an outcome already."""

    OURS = "ours"
    BUSY = "busy"


class StoreError(Exception):
    """The store cannot be used now."""


class Store(Protocol):
    """Keeps outcomes by key, for all processes that use the same one. Every method may raise StoreError."""

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        """Claim a key for `lease` seconds, or again if it is `owner`'s already. An outcome that is kept is returned instead."""

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        """Keep the outcome in place of the claim; False if that is not `owner`'s any more."""

    async def release(self, key: str, owner: str) -> None:
        """Give up `owner`'s claim."""

    async def close(self) -> None: ...
