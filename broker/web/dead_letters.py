"""What is among the dead letters: looked through while somebody looks at them, and kept until they change.

RabbitMQ has no other way to look than to have them all delivered and given back. While that lasts, others see none of them.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from broker.errors import AckbackError
from broker.protocol import archive
from broker.protocol.deadletters import DeadLetter, Kind
from broker.protocol.message import Message
from broker.protocol.names import DEAD_LETTERS
from broker.recording.index import storable
from broker.transport.browsing import walk
from broker.transport.interface import Transport

MAX_BODY = 65_536
"""Bytes of a body that are kept to be shown. A longer one cannot be edited."""
MAX_HEADER = 4_096
"""Characters of a header, likewise."""
FRESH = 2.0
"""Seconds for which what was seen is believed, whatever has happened since; twice what it took to look, if that is longer."""
BELIEVED = 60.0
"""Seconds for which it is believed if nothing tells that it has changed."""
PATIENCE = 3.0
"""Seconds for which a page waits for what is being looked through."""
AT_ONCE = 500
BYTES_AT_ONCE = 8 * 1024 * 1024

_SCHEMA = """
    CREATE TABLE dead (
        key TEXT, kind TEXT, cid TEXT, service TEXT, reason TEXT, title TEXT, detail TEXT, at REAL, attempts INTEGER, size INTEGER,
        message BLOB
    )
"""


class Group(NamedTuple):
    """`number` is how many dead letters are of one kind; `first` and `last` when they died, in seconds since 1970; None: unknown."""

    kind: Kind
    number: int
    first: float | None
    last: float | None


class Row(NamedTuple):
    """A dead letter in a list. `at` is in seconds since 1970, `size` the body's in bytes."""

    key: str
    kind: str
    cid: str
    service: str
    reason: str
    title: str
    detail: str
    at: float | None
    attempts: int
    size: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One dead letter: what of it is shown, and how large its body is, of which no more than `MAX_BODY` bytes are here."""

    dead: DeadLetter
    size: int

    @property
    def is_cut(self) -> bool:
        return self.size > len(self.dead.message.body)


class DeadLetters:
    """`as_of` is when they were looked through last, in seconds since 1970 (0: not yet), `count` how many there were, `problem` why they
    could not be."""

    def __init__(self, transport: Transport) -> None:
        self.as_of = 0.0
        self.count = 0
        self.groups: list[Group] = []
        self.problem: str | None = None
        self.alone = asyncio.Lock()
        """Held by who has them delivered to him."""
        self._transport = transport
        self._looking: asyncio.Task[None] | None = None
        self._marker: object = None
        self._took = 0.0
        self._lock = threading.Lock()
        self._db = _database()

    @property
    def is_looking(self) -> bool:
        return self._looking is not None and not self._looking.done()

    async def look(self, marker: object) -> None:
        """See to it that what is known is new: `marker` is something that changes when they do. Waits a moment for that, not for long."""
        age = time.time() - self.as_of
        fresh = min(max(FRESH, 2 * self._took), BELIEVED)
        if not self.is_looking and (age > BELIEVED or (age > fresh and marker != self._marker)):
            self._marker = marker
            self._looking = asyncio.ensure_future(self._look_through())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=PATIENCE)

    async def look_again(self) -> None:
        """They have just been changed."""
        if self.is_looking and self._looking is not None:
            await asyncio.wait({self._looking})
        self.as_of = 0.0
        await self.look(object())

    async def _look_through(self) -> None:
        db, began = _database(), time.monotonic()
        messages: list[Message] = []
        size = 0

        async def visited(message: Message) -> bool:
            nonlocal size
            messages.append(message)
            size += len(message.body)
            if len(messages) >= AT_ONCE or size >= BYTES_AT_ONCE:
                await asyncio.to_thread(_insert, db, messages)
                size = 0
            return False

        try:
            async with self.alone:
                connection = await self._transport.connect()
                try:
                    await walk(connection, DEAD_LETTERS, visited)
                finally:
                    await connection.close()
        except AckbackError as error:
            self.problem = str(error)
            db.close()
            return
        await asyncio.to_thread(_insert, db, messages)
        groups = await asyncio.to_thread(_groups, db)
        with self._lock:
            before, self._db = self._db, db
            before.close()
        self.groups, self.count = groups, sum(one.number for one in groups)
        self.as_of, self.problem, self._took = time.time(), None, time.monotonic() - began

    def rows(self, kind: str, limit: int, offset: int = 0) -> list[Row]:
        """Those of one kind, the newest first."""
        with self._lock:
            found = self._db.execute(
                "SELECT key, kind, cid, service, reason, title, detail, at, attempts, size FROM dead WHERE kind = ?"
                " ORDER BY rowid DESC LIMIT ? OFFSET ?",
                (kind, limit, offset),
            ).fetchall()
        return [Row(*one) for one in found]

    def of_cids(self, cids: set[str]) -> list[Row]:
        """Those of some invocations."""
        with self._lock:
            found = self._db.execute(
                "SELECT key, kind, cid, service, reason, title, detail, at, attempts, size FROM dead"
                " WHERE cid IN (SELECT value FROM json_each(?)) ORDER BY rowid",
                (json.dumps(sorted(map(storable, cids))),),
            ).fetchall()
        return [Row(*one) for one in found]

    def get(self, key: str) -> Seen | None:
        with self._lock:
            found = self._db.execute("SELECT message, size FROM dead WHERE key = ?", (key,)).fetchone()
        return (
            None if found is None else Seen(DeadLetter.of(archive.loads(zlib.decompress(found[0]).decode())), found[1])
        )

    def group(self, key: str) -> Group | None:
        return next((one for one in self.groups if one.kind.key == key), None)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        self._db.close()


def _database() -> sqlite3.Connection:
    """One of its own, in memory, or in a file without a name as it grows."""
    db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = OFF")
    db.execute(_SCHEMA)
    db.execute("CREATE INDEX dead_key ON dead (key)")
    db.execute("CREATE INDEX dead_kind ON dead (kind)")
    db.execute("CREATE INDEX dead_cid ON dead (cid)")
    return db


def _insert(db: sqlite3.Connection, messages: list[Message]) -> None:
    """Take them in, and off the list."""
    db.execute("BEGIN")
    rows = [_row(DeadLetter.of(message)) for message in messages]
    db.executemany("INSERT INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    db.execute("COMMIT")
    messages.clear()


def _row(dead: DeadLetter) -> tuple[Any, ...]:
    kind, message = dead.kind, dead.message
    headers = {key: _shortened(value) for key, value in message.headers.items()}
    shown = replace(message, body=message.body[:MAX_BODY], headers=headers)
    title, detail = (storable(str(dead.error.get(name, "")))[:MAX_HEADER] for name in ("title", "detail"))
    at = None if dead.at is None else dead.at.timestamp()
    return (
        dead.key,
        kind.key,
        storable(dead.cid),
        storable(dead.service),
        storable(dead.reason),
        title,
        detail,
        at,
        min(dead.attempts, 2**62),
        len(message.body),
        zlib.compress(archive.dumps(shown).encode("utf-8", "replace"), 1),
    )


def _shortened(value: Any) -> Any:
    """What of a header is shown. That of the error is parsed again, and its text is bounded where it is made."""
    if isinstance(value, (str, bytes)) and len(value) > MAX_BODY:
        return value[:MAX_HEADER]
    return value


def _groups(db: sqlite3.Connection) -> list[Group]:
    rows = db.execute(
        "SELECT kind, service, reason, title, detail, count(*), min(at), max(at) FROM dead GROUP BY kind ORDER BY count(*) DESC, kind"
    )
    groups = []
    for _, service, reason, title, detail, count, first, last in rows.fetchall():
        error = {"title": title, "detail": detail}
        kind = DeadLetter("", reason, service, 0, None, error, Message(b"")).kind
        groups.append(Group(kind, count, first, last))
    return groups
