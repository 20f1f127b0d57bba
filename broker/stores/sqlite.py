"""A store in an SQLite file: for the processes of one machine, across restarts.

Leases are by the machine's clock. Set forward by more than the rest of a lease, it lets another process take over early.
What was kept survives a power cut: a commit waits for the disk, and many share one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from broker.errors import ConfigurationError
from broker.stores.batches import Batches
from broker.stores.interface import Claim, Head, StoreError

PRUNE_EVERY = 60.0
LOCKED_FOR = 10.0
VERSION = 1
"""Of the tables, in SQLite's `user_version`."""

Work = Callable[[sqlite3.Connection], Any]

_TABLES = f"""
CREATE TABLE IF NOT EXISTS outcomes (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL, outcome TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (run TEXT, version INTEGER, chunk TEXT NOT NULL, PRIMARY KEY (run, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, service TEXT NOT NULL, cid TEXT NOT NULL, state TEXT NOT NULL,
    began REAL NOT NULL, changed REAL NOT NULL, until REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_began ON runs (began);
CREATE INDEX IF NOT EXISTS runs_until ON runs (until) WHERE until IS NOT NULL;
PRAGMA user_version = {VERSION};
"""
# One statement: nobody comes between the look and the claim.
_CLAIM = """
INSERT INTO outcomes VALUES (:key, :owner, :until, NULL)
ON CONFLICT (key) DO UPDATE SET owner = :owner, until = :until, outcome = NULL
WHERE until <= :now OR (owner = :owner AND outcome IS NULL)
"""
# The key is the comparison: a journal's chunks are numbered without gaps, so whoever is late finds the number taken.
_APPEND = """
INSERT INTO journal SELECT column1, column2, column3 FROM (VALUES {rows})
WHERE column2 = COALESCE((SELECT max(version) + 1 FROM journal WHERE run = column1), 0)
ON CONFLICT DO NOTHING
"""
_HEAD = """
INSERT INTO runs VALUES {rows}
ON CONFLICT (run) DO UPDATE SET cid = excluded.cid, state = excluded.state, began = excluded.began, changed = excluded.changed,
    until = excluded.until
"""


class SqliteStore:
    """One connection in a thread of its own, as SQLite waits for the disk.

    Raises:
        ConfigurationError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1, "ackback-sqlite")
        self._batches: Batches[Work, Any] = Batches(self._run_all)
        self._pruned = time.monotonic()
        self._path = Path(path)
        try:
            self._thread.submit(self._open).result()
        except (sqlite3.Error, ConfigurationError) as error:
            self._thread.shutdown()
            raise ConfigurationError(f"store.url: {path} cannot be used: {error}") from None

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        return await self._batches.run(partial(_claim, key=key, owner=owner, lease=lease))  # type: ignore[no-any-return]

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        update = "UPDATE outcomes SET outcome = ?, until = ? WHERE key = ? AND owner = ?"
        values = (outcome, time.time() + seconds, key, owner)
        return await self._batches.run(lambda connection: connection.execute(update, values).rowcount == 1)  # type: ignore[no-any-return]

    async def release(self, key: str, owner: str) -> None:
        delete = "DELETE FROM outcomes WHERE key = ? AND owner = ? AND outcome IS NULL"
        await self._batches.run(lambda connection: connection.execute(delete, (key, owner)))

    async def read(self, run: str) -> list[str]:
        select = "SELECT chunk FROM journal WHERE run = ? ORDER BY version"
        return await self._batches.run(lambda connection: [row[0] for row in connection.execute(select, (run,))])  # type: ignore[no-any-return]

    async def append(self, run: str, version: int, chunk: str, head: Head | None, keep: float | None) -> bool:
        until = None if keep is None else time.time() + keep
        return await self._batches.run(_Append((run, version, chunk), None if head is None else (*head, until)))  # type: ignore[no-any-return]

    async def drop(self, run: str, version: int) -> None:
        delete = "DELETE FROM journal WHERE run = ? AND version < ?"
        await self._batches.run(lambda connection: connection.execute(delete, (run, version)))

    async def heads(
        self, *, service: str | None = None, state: str | None = None, cid: str | None = None, most: int = 1000
    ) -> list[Head]:
        select = (
            "SELECT run, service, cid, state, began, changed FROM runs WHERE (:service IS NULL OR service = :service) "
            "AND (:state IS NULL OR state = :state) AND (:cid IS NULL OR cid = :cid) ORDER BY began DESC LIMIT :most"
        )
        values = {"service": service, "state": state, "cid": cid, "most": most}
        return await self._batches.run(  # type: ignore[no-any-return]
            lambda connection: [Head(*row) for row in connection.execute(select, values)]
        )

    async def close(self) -> None:
        await self._batches.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)

    async def _run_all(self, batch: Sequence[Work]) -> Sequence[Any]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, batch)
        except (sqlite3.Error, ConfigurationError) as error:
            raise StoreError(f"the SQLite store failed: {error}") from None

    def _open(self) -> None:
        self._connection = _open(self._path)
        self._file = _identity(self._path)

    def _transaction(self, batch: Sequence[Work]) -> Sequence[Any]:
        self._look_at_file()
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = _done(connection, batch)
            if time.monotonic() - self._pruned > PRUNE_EVERY:
                self._pruned = time.monotonic()
                _prune(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return results

    def _look_at_file(self) -> None:
        """SQLite would go on with one that nobody can see any more."""
        if self._file is None or _identity(self._path) != self._file:
            self._file = None
            self._connection.close()
            self._open()
            raise sqlite3.OperationalError(
                f"{self._path} was removed or replaced: from now on the one that is there is used"
            )


def _done(connection: sqlite3.Connection, batch: Sequence[Work]) -> list[Any]:
    """What comes of each."""
    appends = [work for work in batch if isinstance(work, _Append)]
    if len(appends) > 1:
        if _append(connection, appends):
            return [isinstance(work, _Append) or work(connection) for work in batch]
        connection.execute("ROLLBACK")  # one was late, and it is not known which
        connection.execute("BEGIN IMMEDIATE")
    return [work(connection) for work in batch]


@dataclass(frozen=True, slots=True)
class _Append:
    chunk: tuple[str, int, str]
    head: tuple[Any, ...] | None

    def __call__(self, connection: sqlite3.Connection) -> bool:
        return _append(connection, [self])


def _append(connection: sqlite3.Connection, appends: Sequence[_Append]) -> bool:
    """Append all, in two statements, as after each the thread waits for Python's lock; whether they were the next of their journals. If
    one was not, the others are there, but not their heads."""
    chunks = [value for one in appends for value in one.chunk]
    if connection.execute(_rows(_APPEND, len(appends), 3), chunks).rowcount != len(appends):
        return False
    heads = [one.head for one in appends if one.head is not None]
    if heads:
        connection.execute(_rows(_HEAD, len(heads), 7), [value for head in heads for value in head])
    return True


@lru_cache
def _rows(statement: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return statement.format(rows=", ".join([row] * rows))


def _claim(connection: sqlite3.Connection, key: str, owner: str, lease: float) -> Claim | str:
    now = time.time()
    if connection.execute(_CLAIM, {"key": key, "owner": owner, "until": now + lease, "now": now}).rowcount:
        return Claim.OURS
    row = connection.execute("SELECT outcome FROM outcomes WHERE key = ?", (key,)).fetchone()
    return Claim.BUSY if row is None or row[0] is None else str(row[0])


def _prune(connection: sqlite3.Connection) -> None:
    now = time.time()
    connection.execute("DELETE FROM outcomes WHERE until <= ?", (now,))
    connection.execute("DELETE FROM journal WHERE run IN (SELECT run FROM runs WHERE until <= ?)", (now,))
    connection.execute("DELETE FROM runs WHERE until <= ?", (now,))


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that has its name; None if it is not to be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCKED_FOR, isolation_level=None)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        connection.close()
        raise ConfigurationError(f"it was made by a later version of ackback (its tables are of version {version})")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(_TABLES)
    return connection
