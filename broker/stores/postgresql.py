"""Outcomes in PostgreSQL: for daemons on many machines, as durable as the database. Leases are by the database's clock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, LiteralString

from broker.errors import ConfigurationError
from broker.stores.interface import Claim, StoreError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

PRUNE_EVERY = 1000
TIMEOUT = 10

# Two daemons that start at once would both create it, and one of them fail, but for the lock.
_TABLE = """
SELECT pg_advisory_xact_lock(4722);
CREATE TABLE IF NOT EXISTS ackback_outcomes
  (key text PRIMARY KEY, owner text NOT NULL, until timestamptz NOT NULL, outcome text)
"""
# One statement is one transaction: nobody comes between the look and the claim.
_CLAIM = """
INSERT INTO ackback_outcomes AS o VALUES (%(key)s, %(owner)s, clock_timestamp() + make_interval(secs => %(lease)s), NULL)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until, outcome = NULL
WHERE o.until <= clock_timestamp() OR (o.owner = excluded.owner AND o.outcome IS NULL)
"""
_LOOK = "SELECT outcome FROM ackback_outcomes WHERE key = %(key)s"
_KEEP = """
UPDATE ackback_outcomes SET outcome = %(outcome)s, until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE key = %(key)s AND owner = %(owner)s
"""
_RELEASE = "DELETE FROM ackback_outcomes WHERE key = %(key)s AND owner = %(owner)s AND outcome IS NULL"
_PRUNE = "DELETE FROM ackback_outcomes WHERE until <= clock_timestamp()"


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
                "idempotency.store: a postgresql:// URL needs: pip install 'ackback[postgresql]'"
            ) from None
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise ConfigurationError("idempotency.store: the postgresql:// URL cannot be read") from None
        self._url = url
        self._connection: AsyncConnection[Any] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._claims = 0

    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        key = _text(key)
        self._claims += 1
        if self._claims % PRUNE_EVERY == 0:
            await self._run(_PRUNE)
        if (await self._run(_CLAIM, key=key, owner=owner, lease=lease))[0]:
            return Claim.OURS
        _, rows = await self._run(_LOOK, key=key)
        return Claim.BUSY if not rows or rows[0][0] is None else str(rows[0][0])

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        return (await self._run(_KEEP, key=_text(key), owner=owner, outcome=outcome, seconds=seconds))[0] == 1

    async def release(self, key: str, owner: str) -> None:
        await self._run(_RELEASE, key=_text(key), owner=owner)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _run(self, statement: LiteralString, **values: Any) -> tuple[int, list[tuple[Any, ...]]]:
        """How many rows it concerned, and those that it found."""
        import psycopg

        async with self._one_at_a_time:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = await _connect(self._url)
                async with asyncio.timeout(TIMEOUT):
                    cursor = await self._connection.execute(statement, values)
                    return cursor.rowcount, await cursor.fetchall() if cursor.description else []
            except (psycopg.Error, OSError, TimeoutError) as error:
                if isinstance(error, TimeoutError) and self._connection is not None:
                    await self._connection.close()
                raise StoreError(f"the PostgreSQL store of idempotent services failed: {error}") from None


async def _connect(url: str) -> AsyncConnection[Any]:
    import psycopg

    connection = await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=TIMEOUT)
    async with connection.transaction():
        await connection.execute(_TABLE)
    return connection


def _text(key: str) -> str:
    return key.replace("\0", "\n")  # PostgreSQL's text has no place for it; no service's name has a line break
