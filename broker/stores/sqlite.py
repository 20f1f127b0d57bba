"""Outcomes in an SQLite file: for the processes of one machine, across restarts.

Leases are by the machine's clock. Set forward by more than the rest of a lease, it lets another process take over early.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from broker.errors import ConfigurationError
from broker.stores.interface import Claim, StoreError

PRUNE_EVERY = 1000
LOCKED_FOR = 10.0

T = TypeVar("T")

_TABLE = """
CREATE TABLE IF NOT EXISTS outcomes (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL, outcome TEXT) WITHOUT ROWID
"""
# One statement is one transaction: nobody comes between the look and the claim.
_CLAIM = """
INSERT INTO outcomes VALUES (:key, :owner, :until, NULL)
ON CONFLICT (key) DO UPDATE SET owner = :owner, until = :until, outcome = NULL
WHERE until <= :now OR (owner = :owner AND outcome IS NULL)
"""


class SqliteStore:
    """One connection in a thread of its own, as SQLite waits for the disk.

    Raises:
        ConfigurationError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1, "ackback-sqlite")
        self._claims = 0
        try:
            self._connection = self._thread.submit(_open, path).result()
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise ConfigurationError(f"idempotency.store: {path} cannot be used: {error}") from None

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        return await self._run(lambda: self._claim(key, owner, lease))

    def _claim(self, key: str, owner: str, lease: float) -> Claim | str:
        now = time.time()
        self._claims += 1
        if self._claims % PRUNE_EVERY == 0:
            self._connection.execute("DELETE FROM outcomes WHERE until <= ?", (now,))
        values = {"key": key, "owner": owner, "until": now + lease, "now": now}
        if self._connection.execute(_CLAIM, values).rowcount:
            return Claim.OURS
        row = self._connection.execute("SELECT outcome FROM outcomes WHERE key = ?", (key,)).fetchone()
        return Claim.BUSY if row is None or row[0] is None else str(row[0])

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        update = "UPDATE outcomes SET outcome = ?, until = ? WHERE key = ? AND owner = ?"
        values = (outcome, time.time() + seconds, key, owner)
        return await self._run(lambda: self._connection.execute(update, values).rowcount == 1)

    async def release(self, key: str, owner: str) -> None:
        delete = "DELETE FROM outcomes WHERE key = ? AND owner = ? AND outcome IS NULL"
        await self._run(lambda: self._connection.execute(delete, (key, owner)))

    async def close(self) -> None:
        await self._run(self._connection.close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StoreError(f"the SQLite store of idempotent services failed: {error}") from None


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCKED_FOR, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # what was kept survives a power cut
    connection.execute(_TABLE)
    return connection
