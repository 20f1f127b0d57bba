"""The record in a SQLite file, for those who look things up in it all day: written by one thread, read by any number of connections.

    batches of the stream ─→ `Index.add`, one transaction ─→ events, mentions (which events a CID is told of in), minutes, daemons, about

The file goes on where it was: `position` is the offset of the last batch that is in it. It can be made anew from the stream at any time, so
nothing in it is worth more than the time that takes. Several processes may keep one file: a batch that another has added is passed over.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from broker.errors import ConfigurationError
from broker.log import logger
from broker.protocol.events import DAEMON, DEAD, HANDLED, SENT, Event
from broker.recording.histogram import Histogram
from broker.recording.reading import Batch
from broker.recording.summary import Tally
from broker.recording.trace import sent_of

APPLICATION = 0x61636B62
"""SQLite's `application_id` of such a file: `ackb`."""
VERSION = 1
CACHE_KIB = 32_768
CHECKPOINT_PAGES = 10_000
"""Of the write-ahead log, between two moves of what is in it to the file itself."""
BUSY_TIMEOUT = 20.0
"""Seconds: another process may be adding a great many."""
FORGOTTEN_AT_ONCE = 5_000
MAX_CHECKED = 256 * 1024 * 1024
"""Bytes of a file that is looked through at the start; that of a larger one would take too long."""
KINDS = {HANDLED: 0, SENT: 1, DEAD: 2}

_SCHEMA = """
CREATE TABLE place (position INTEGER, writer TEXT, number INTEGER);
INSERT INTO place VALUES (-1, '', 0);
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, t INTEGER NOT NULL, kind INTEGER NOT NULL, service INTEGER, outcome INTEGER, cid, took INTEGER, source INTEGER,
    parent, reply INTEGER, rest TEXT
);
CREATE INDEX events_service ON events (service);
CREATE INDEX events_outcome ON events (outcome) WHERE outcome IS NOT NULL;
CREATE INDEX events_service_outcome ON events (service, outcome) WHERE outcome IS NOT NULL;
CREATE TABLE mentions (cid, event INTEGER, PRIMARY KEY (cid, event)) WITHOUT ROWID;
CREATE TABLE marks (position INTEGER PRIMARY KEY, t INTEGER NOT NULL, event INTEGER NOT NULL);
CREATE TABLE minutes (
    service INTEGER, minute INTEGER, handled INTEGER NOT NULL, failures INTEGER NOT NULL, times TEXT NOT NULL,
    PRIMARY KEY (service, minute)
) WITHOUT ROWID;
CREATE TABLE daemons (writer TEXT PRIMARY KEY, t INTEGER NOT NULL, event TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE about (service TEXT, code TEXT, t INTEGER NOT NULL, told TEXT NOT NULL, PRIMARY KEY (service, code)) WITHOUT ROWID;
"""
_INSERT = (
    "INSERT INTO events (id, t, kind, service, outcome, cid, took, source, parent, reply, rest)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
MAX_INTEGER = 2**62
_COLUMNS = frozenset({"event", "t", "cid", "service", "target", "outcome", "took_ms", "source", "parent", "reply"})


class Place(NamedTuple):
    """The last batch of the stream that is in the index; `offset` is -1 if none is."""

    offset: int
    writer: str
    number: int


def packed(cid: str) -> bytes | str:
    """A CID as it is kept: most are 32 hexadecimal digits, which take half of the room as bytes."""
    if len(cid) == 32:
        try:
            found = bytes.fromhex(cid)
        except ValueError:
            pass
        else:
            if found.hex() == cid:
                return found
    return storable(cid)


def storable(text: str) -> str:
    """Text as SQLite can keep it: without halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def unpacked(cid: bytes | str) -> str:
    return cid.hex() if isinstance(cid, bytes) else cid


class NotWritableError(Exception):
    """The file cannot be written, or not even opened."""


def opened(path: Path) -> sqlite3.Connection:
    """A connection to the index in this file; a file that is there and cannot be used is put aside, and a new one made.

    Raises:
        NotWritableError: it cannot be written.
        ConfigurationError: it is another program's database.
    """
    try:
        return _opened(path)
    except sqlite3.OperationalError as error:
        raise NotWritableError(f"{path} cannot be written: {error}") from None
    except sqlite3.DatabaseError as error:
        try:
            put_aside(path, error)
        except OSError as refused:
            raise NotWritableError(f"{path} cannot be written: {error}, and {refused.strerror}") from None
        return _opened(path)


def put_aside(path: Path, why: object) -> None:
    """Give an unusable file another name."""
    aside = path.with_name(f"{path.name}.{int(time.time())}.unusable")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    logger.warning(
        "%s cannot be used as an index (%s): it is %s now, and the index is made anew", path, why, aside.name
    )


def _opened(path: Path) -> sqlite3.Connection:
    if path.exists():
        _check_owner(path)
    connection = connect(path)
    try:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection):
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
        _check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(path, BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            # What the system loses when it crashes is read from the stream again.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_PAGES * 4096}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB if not read_only else CACHE_KIB // 16}")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check_owner(path: Path) -> None:
    with closing(connect(path, read_only=True)) as connection:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION and not _is_empty(connection):
            raise ConfigurationError(f"{path} is another program's database: name another file for the index")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, not {VERSION}")
    if path.stat().st_size <= MAX_CHECKED:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)


class Index:
    """Writes the index. All calls are made on one thread at a time.

    Raises:
        NotWritableError: the file cannot be written.
        ConfigurationError: it is another program's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = opened(path)
        self._names: dict[str, int] = dict(self._db.execute("SELECT name, id FROM names"))

    def close(self) -> None:
        self._db.close()

    def remake(self, why: object) -> None:
        """Put the file aside, which has turned out to be unusable, and begin a new one."""
        self._db.close()
        put_aside(self.path, why)
        self._db = opened(self.path)
        self._names.clear()

    @property
    def place(self) -> Place:
        return Place(*self._db.execute("SELECT position, writer, number FROM place").fetchone())

    def add(self, batches: Sequence[tuple[Batch, list[Event]]]) -> int:
        """Add what the batches tell, in one transaction, and return how many events these were. Those up to `place` are passed over."""
        if not batches:
            return 0
        try:
            return self._add(batches)
        except BaseException:
            self._names.clear()  # some may have been new in what is undone
            raise

    def _add(self, batches: Sequence[tuple[Batch, list[Event]]]) -> int:
        count = 0
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            position = self.place.offset
            new = [(batch, events) for batch, events in batches if batch.offset > position]
            if new:
                last = new[-1][0]
                count = self._insert([event for _, events in new for event in events], last.offset)
                self._note_daemons(new)
                self._db.execute(
                    "UPDATE place SET position = ?, writer = ?, number = ?", (last.offset, last.writer, last.number)
                )
        return count

    def _insert(self, events: list[Event], position: int) -> int:
        first: int = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM events").fetchone()[0]
        number = first
        rows, mentions = [], []
        tallies: dict[tuple[int, int], Tally] = {}
        latest = 0
        for event in events:
            kind = KINDS.get(event["event"])
            if kind is None:
                continue
            row = self._row(number, kind, event)
            rows.append(row)
            mentions += [(cid, number) for cid in _mentioned(row[5], row[8], event)]
            if kind == 0:
                minute = event["t"] // 60_000_000
                tally = tallies.get((row[3], minute))
                if tally is None:
                    tally = tallies[row[3], minute] = Tally()
                tally.add(event["took_ms"], row[4] is not None)
            latest = max(latest, event["t"])
            number += 1
        if rows:
            self._db.executemany(_INSERT, rows)
            self._db.executemany("INSERT OR IGNORE INTO mentions VALUES (?, ?)", mentions)
            self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (position, latest, first))
            self._tally(tallies)
        return number - first

    def _row(self, number: int, kind: int, event: Event) -> tuple[Any, ...]:
        get, name = event.get, self._name
        cid, parent, took, outcome, service = get("cid"), get("parent"), get("took_ms"), None, get("service")
        if kind == 0:
            outcome = get("outcome")
        elif kind == KINDS[DEAD]:
            outcome = get("reason")
        elif cid is not None:
            service = get("target")
        rest = event.keys() - _COLUMNS
        return (
            number,
            event["t"],
            kind,
            name(service),
            None if outcome == "ok" else name(outcome),
            None if cid is None else packed(cid),
            None if took is None else min(int(took * 1000), MAX_INTEGER),
            name(get("source")),
            None if parent is None else packed(parent),
            name(get("reply")),
            json.dumps({key: event[key] for key in rest}, separators=(",", ":")) if rest else None,
        )

    def _name(self, name: str | None) -> int | None:
        if name is None:
            return None
        found = self._names.get(name)
        if found is None:
            name = storable(name)
            self._db.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
            found = self._names[name] = self._db.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()[0]
        return found

    def _tally(self, tallies: dict[tuple[int, int], Tally]) -> None:
        for (service, minute), tally in tallies.items():
            before = self._db.execute(
                "SELECT handled, failures, times FROM minutes WHERE service = ? AND minute = ?", (service, minute)
            ).fetchone()
            if before:
                tally.handled += before[0]
                tally.failures += before[1]
                tally.times.add_all(Histogram.loads(before[2]))
            self._db.execute(
                "INSERT OR REPLACE INTO minutes VALUES (?, ?, ?, ?, ?)",
                (service, minute, tally.handled, tally.failures, tally.times.dumps()),
            )

    def _note_daemons(self, batches: Iterable[tuple[Batch, list[Event]]]) -> None:
        newest: dict[str, Event] = {}
        for batch, events in batches:
            for event in events:
                if event["event"] == DAEMON:
                    self._note_about(event)
                    newest[batch.writer] = event
        for writer, event in newest.items():
            told = json.dumps({key: value for key, value in event.items() if key != "about"})
            self._db.execute(
                "INSERT INTO daemons VALUES (?1, ?2, ?3) ON CONFLICT (writer) DO UPDATE SET t = ?2, event = ?3 WHERE t <= ?2",
                (storable(writer), event["t"], told),
            )

    def _note_about(self, event: Event) -> None:
        services = event.get("services", {})
        for name, about in event.get("about", {}).items():
            told = services.get(name)
            code = told[3] if isinstance(told, list) and len(told) > 3 and isinstance(told[3], str) else ""
            if isinstance(about, dict):
                self._db.execute(
                    "INSERT OR REPLACE INTO about VALUES (?, ?, ?, ?)",
                    (storable(name), storable(code), event["t"], json.dumps(about)),
                )

    def forget_before(self, offset: int) -> Iterator[int]:
        """Forget what was in the stream before this offset, some at a time: yields how many events are gone."""
        mark = self._db.execute(
            "SELECT event, t FROM marks WHERE position >= ? ORDER BY position LIMIT 1", (offset,)
        ).fetchone()
        if mark is None:
            return
        end, t = mark
        while True:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                rows = self._db.execute(
                    "SELECT id, cid, parent, rest FROM events WHERE id < ? ORDER BY id LIMIT ?",
                    (end, FORGOTTEN_AT_ONCE),
                ).fetchall()
                gone = [
                    (one, number)
                    for number, cid, parent, rest in rows
                    for one in _mentioned(cid, parent, json.loads(rest) if rest else {})
                ]
                self._db.executemany("DELETE FROM mentions WHERE cid = ? AND event = ?", gone)
                if rows:
                    self._db.execute("DELETE FROM events WHERE id <= ?", (rows[-1][0],))
                else:
                    self._db.execute("DELETE FROM marks WHERE position < ?", (offset,))
                    self._db.execute("DELETE FROM minutes WHERE minute < ?", (t // 60_000_000 - 1,))
                    self._db.execute("DELETE FROM daemons WHERE t < ?", (t,))
                    self._db.execute("DELETE FROM about WHERE t < ?", (t,))
                    return
            yield len(rows)

    def clear(self) -> None:
        """Forget everything: the stream is another one."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for table in ("events", "mentions", "marks", "minutes", "daemons", "about"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 # nosec B608
            self._db.execute("UPDATE place SET position = -1, writer = '', number = 0")


def _mentioned(cid: bytes | str | None, parent: bytes | str | None, event: Event) -> list[bytes | str]:
    """The CIDs that an event tells of, some of them perhaps twice; its own and its parent's are given as they are kept."""
    cids = [one for one in (cid, parent) if one is not None]
    if "sent" in event:
        cids += [packed(sent.cid) for sent in sent_of(event)]
    return cids
