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
# The key is the comparison: a journal's chunks are numbered without gaps, so whoever is late finds the number taken. Many at once, in the
# order of their runs everywhere: or two transactions, each with a row that the other wants next, would wait for each other.
_APPEND = """
WITH given AS (
  SELECT * FROM unnest(%(run)s::text[], %(version)s::integer[], %(chunk)s::text[], %(service)s::text[], %(cid)s::text[],
    %(state)s::text[], %(began)s::double precision[], %(changed)s::double precision[], %(keep)s::double precision[])
    AS given (run, version, chunk, service, cid, state, began, changed, keep)
  ORDER BY run),
appended AS (
  INSERT INTO ackback_journal AS j SELECT run, version, chunk FROM given
  WHERE version = COALESCE((SELECT max(version) + 1 FROM ackback_journal WHERE run = given.run), 0)
  ON CONFLICT DO NOTHING RETURNING j.run, j.version),
headed AS (
  INSERT INTO ackback_runs
  SELECT run, service, cid, state, began, changed, clock_timestamp() + make_interval(secs => keep)
  FROM given JOIN appended USING (run, version) WHERE state IS NOT NULL ORDER BY run
  ON CONFLICT (run) DO UPDATE SET cid = excluded.cid, state = excluded.state, began = excluded.began, changed = excluded.changed,
    until = excluded.until)
SELECT run FROM appended
"""
_DROP = "DELETE FROM ackback_journal WHERE run = %(run)s AND version < %(version)s RETURNING 1"
_HEADS = """
SELECT run, service, cid, state, began, changed FROM ackback_runs
WHERE (%(service)s::text IS NULL OR service = %(service)s) AND (%(state)s::text IS NULL OR state = %(state)s)
  AND (%(cid)s::text IS NULL OR cid = %(cid)s)
ORDER BY began DESC LIMIT %(most)s
"""
# One statement for a run and its journal: a moment later another would be over.
_PRUNE = (
    "DELETE FROM ackback_outcomes WHERE until <= clock_timestamp()",
    """
    WITH gone AS (DELETE FROM ackback_runs WHERE until <= clock_timestamp() RETURNING run)
    DELETE FROM ackback_journal AS j USING gone WHERE j.run = gone.run
    """,
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
        told = dict.fromkeys(Head._fields) if head is None else head._asdict()
        values = {name: value.replace(*_NUL) if isinstance(value, str) else value for name, value in told.items()}
        return bool(await self._run(_APPEND, **{**values, "run": run}, version=version, chunk=chunk, keep=keep))

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
        await self._prune(connection)
        groups = _groups(batch)
        statements = [_as_one([batch[place] for place in group]) for group in groups]
        if len(statements) == 1:  # it is a transaction by itself
            found = [await (await connection.execute(*statements[0])).fetchall()]
        else:
            async with connection.pipeline(), connection.transaction():
                cursors = [await connection.execute(*statement) for statement in statements]
                found = [await cursor.fetchall() for cursor in cursors]
        results: list[list[tuple[Any, ...]]] = [[] for _ in batch]
        for group, rows in zip(groups, found, strict=True):
            if len(group) == 1:
                results[group[0]] = rows
                continue
            appended = {row[0] for row in rows}
            for place in group:
                results[place] = [()] if batch[place].values["run"] in appended else []
        return results

    async def _prune(self, connection: AsyncConnection[Any]) -> None:
        if time.monotonic() - self._pruned > PRUNE_EVERY:
            self._pruned = time.monotonic()
            for statement in _PRUNE:
                await connection.execute(statement)


def _groups(batch: Sequence[_Statement]) -> list[list[int]]:
    """The places of what is sent as one statement, appends to different journals; all else is by itself. In the same order everywhere: or
    two transactions, each with a row that the other wants next, would wait for each other."""
    together: dict[str, int] = {}
    for place, one in enumerate(batch):
        if one.text is _APPEND:
            together.setdefault(one.values["run"], place)
    others = sorted(set(range(len(batch))) - set(together.values()), key=lambda place: _row(batch[place]))
    return [*([list(together.values())] if together else []), *([place] for place in others)]


def _as_one(statements: Sequence[_Statement]) -> _Statement:
    if statements[0].text is not _APPEND:
        return statements[0]
    columns = (*Head._fields, "version", "chunk", "keep")
    return _Statement(_APPEND, {name: [one.values[name] for one in statements] for name in columns})


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
