"""A store in PostgreSQL: for daemons on many machines, as durable as the database. Leases are by the database's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from broker.errors import ConfigurationError
from broker.stores.batches import Batches
from broker.stores.interface import Claim, Head, StoreError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

PRUNE_EVERY = 60.0
TIMEOUT = 10

# Two daemons that start at once would both create them, and one of them fail, but for the lock.
_TABLES = """
SELECT pg_advisory_xact_lock(4722);
CREATE TABLE IF NOT EXISTS ackback_outcomes
  (key text PRIMARY KEY, owner text NOT NULL, until timestamptz NOT NULL, outcome text);
CREATE TABLE IF NOT EXISTS ackback_journal (run text, version integer, chunk text NOT NULL, PRIMARY KEY (run, version));
CREATE TABLE IF NOT EXISTS ackback_runs
  (run text PRIMARY KEY, service text NOT NULL, cid text NOT NULL, state text NOT NULL, began double precision NOT NULL,
   changed double precision NOT NULL, until timestamptz);
CREATE INDEX IF NOT EXISTS ackback_runs_began ON ackback_runs (began);
CREATE INDEX IF NOT EXISTS ackback_runs_until ON ackback_runs (until) WHERE until IS NOT NULL
"""
# One statement: nobody comes between the look and the claim. What it has written it does not see itself: so who has none of the two rows
# lost a race.
_CLAIM = """
WITH claimed AS (
  INSERT INTO ackback_outcomes AS o VALUES (%(key)s, %(owner)s, clock_timestamp() + make_interval(secs => %(lease)s), NULL)
  ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until, outcome = NULL
  WHERE o.until <= clock_timestamp() OR (o.owner = excluded.owner AND o.outcome IS NULL)
  RETURNING 1)
SELECT EXISTS (SELECT FROM claimed), (SELECT outcome FROM ackback_outcomes WHERE key = %(key)s)
"""
_KEEP = """
UPDATE ackback_outcomes SET outcome = %(outcome)s, until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE key = %(key)s AND owner = %(owner)s RETURNING 1
"""
_RELEASE = "DELETE FROM ackback_outcomes WHERE key = %(key)s AND owner = %(owner)s AND outcome IS NULL RETURNING 1"
_READ = "SELECT chunk FROM ackback_journal WHERE run = %(run)s ORDER BY version"
# The key is the comparison: a journal's chunks are numbered without gaps, so whoever is late finds the number taken.
_APPEND = """
INSERT INTO ackback_journal SELECT %(run)s, %(version)s, %(chunk)s
WHERE EXISTS (SELECT FROM ackback_journal WHERE run = %(run)s AND version = %(version)s - 1)
  OR (%(version)s = 0 AND NOT EXISTS (SELECT FROM ackback_journal WHERE run = %(run)s))
ON CONFLICT DO NOTHING RETURNING 1
"""
_APPEND_WITH_HEAD = """
WITH appended AS (
  INSERT INTO ackback_journal SELECT %(run)s, %(version)s, %(chunk)s
  WHERE EXISTS (SELECT FROM ackback_journal WHERE run = %(run)s AND version = %(version)s - 1)
    OR (%(version)s = 0 AND NOT EXISTS (SELECT FROM ackback_journal WHERE run = %(run)s))
  ON CONFLICT DO NOTHING RETURNING 1)
INSERT INTO ackback_runs
SELECT %(run)s, %(service)s, %(cid)s, %(state)s, %(began)s, %(changed)s, clock_timestamp() + make_interval(secs => %(keep)s)
FROM appended
ON CONFLICT (run) DO UPDATE SET cid = excluded.cid, state = excluded.state, began = excluded.began, changed = excluded.changed,
  until = excluded.until
RETURNING 1
"""
_DROP = "DELETE FROM ackback_journal WHERE run = %(run)s AND version < %(version)s RETURNING 1"
_HEADS = """
SELECT run, service, cid, state, began, changed FROM ackback_runs
WHERE (%(service)s::text IS NULL OR service = %(service)s) AND (%(state)s::text IS NULL OR state = %(state)s)
  AND (%(cid)s::text IS NULL OR cid = %(cid)s)
ORDER BY began DESC LIMIT %(most)s
"""
_PRUNE = (
    "DELETE FROM ackback_outcomes WHERE until <= clock_timestamp()",
    "DELETE FROM ackback_journal WHERE run IN (SELECT run FROM ackback_runs WHERE until <= clock_timestamp())",
    "DELETE FROM ackback_runs WHERE until <= clock_timestamp()",
)
_NUL = "\0", "\ufffd"
"""PostgreSQL's text has no place for it."""


class _Statement(NamedTuple):
    """One that returns rows: in a pipeline, a cursor does not know before."""

    text: LiteralString
    values: dict[str, Any]


class PostgresqlStore:
    """One connection, made when it is first needed and again when it was lost.

    Raises:
        ConfigurationError: the package `psycopg` is not installed, or the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise ConfigurationError(
                "store.url: a postgresql:// URL needs: pip install 'ackback[postgresql]'"
            ) from None
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise ConfigurationError("store.url: the postgresql:// URL cannot be read") from None
        self._url = url
        self._connection: AsyncConnection[Any] | None = None
        self._batches: Batches[_Statement, list[tuple[Any, ...]]] = Batches(self._run_all)
        self._pruned = time.monotonic()

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        ((is_ours, outcome),) = await self._run(_CLAIM, key=_key(key), owner=owner, lease=lease)
        if is_ours:
            return Claim.OURS
        return Claim.BUSY if outcome is None else str(outcome)

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        return bool(await self._run(_KEEP, key=_key(key), owner=owner, outcome=outcome, seconds=seconds))

    async def release(self, key: str, owner: str) -> None:
        await self._run(_RELEASE, key=_key(key), owner=owner)

    async def read(self, run: str) -> list[str]:
        return [row[0] for row in await self._run(_READ, run=run)]

    async def append(self, run: str, version: int, chunk: str, head: Head | None, keep: float | None) -> bool:
        if head is None:
            return bool(await self._run(_APPEND, run=run, version=version, chunk=chunk))
        values = head._replace(service=head.service.replace(*_NUL), cid=head.cid.replace(*_NUL))._asdict()
        return bool(await self._run(_APPEND_WITH_HEAD, version=version, chunk=chunk, keep=keep, **values))

    async def drop(self, run: str, version: int) -> None:
        await self._run(_DROP, run=run, version=version)

    async def heads(
        self, *, service: str | None = None, state: str | None = None, cid: str | None = None, most: int = 1000
    ) -> list[Head]:
        return [Head(*row) for row in await self._run(_HEADS, service=service, state=state, cid=cid, most=most)]

    async def close(self) -> None:
        await self._batches.close()
        if self._connection is not None:
            await self._connection.close()

    async def _run(self, statement: LiteralString, **values: Any) -> list[tuple[Any, ...]]:
        return await self._batches.run(_Statement(statement, values))

    async def _run_all(self, batch: Sequence[_Statement]) -> Sequence[list[tuple[Any, ...]]]:
        """All in one transaction, sent at once."""
        import psycopg

        try:
            if self._connection is None or self._connection.closed:
                self._connection = await _connect(self._url)
            async with asyncio.timeout(TIMEOUT):
                return await self._transaction(self._connection, batch)
        except (psycopg.Error, OSError, TimeoutError) as error:
            if self._connection is not None:
                # An answer may still come, or never: the next transaction is to find neither.
                await self._connection.close()
            raise StoreError(f"the PostgreSQL store failed: {error}") from None

    async def _transaction(
        self, connection: AsyncConnection[Any], batch: Sequence[_Statement]
    ) -> Sequence[list[tuple[Any, ...]]]:
        # In the same order everywhere: or two transactions, each with a row that the other wants next, would wait for each other.
        order = sorted(range(len(batch)), key=lambda place: _row(batch[place]))
        results: list[list[tuple[Any, ...]]] = [[] for _ in batch]
        async with connection.pipeline(), connection.transaction():
            cursors = [(place, await connection.execute(*batch[place])) for place in order]
            if time.monotonic() - self._pruned > PRUNE_EVERY:
                self._pruned = time.monotonic()
                for statement in _PRUNE:
                    await connection.execute(statement)
            for place, cursor in cursors:
                results[place] = await cursor.fetchall()
        return results


def _row(statement: _Statement) -> str:
    return str(statement.values.get("key") or statement.values.get("run") or "")


async def _connect(url: str) -> AsyncConnection[Any]:
    import psycopg

    connection = await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=TIMEOUT)
    async with connection.transaction():
        await connection.execute(_TABLES)
    return connection


def _key(key: str) -> str:
    return key.replace("\0", "\n")  # no service's name has a line break
