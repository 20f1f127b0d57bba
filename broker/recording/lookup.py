"""Looking things up in the index: each is a query on a connection of the thread's own, and takes milliseconds at a million events."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from broker.protocol.events import DEAD, HANDLED, SENT, Event
from broker.recording.histogram import Histogram
from broker.recording.index import connect, packed, unpacked
from broker.recording.summary import Tally
from broker.recording.trace import Step, sent_of, tree

MOST_INVOCATIONS = 1_000
"""Of one tree: so many can be read by a person, and looked up in half a second."""
_KINDS = (HANDLED, SENT, DEAD)
_SELECT = """
    SELECT e.id, e.t, e.kind, s.name, o.name, e.cid, e.took, f.name, e.parent, r.name, e.rest FROM events e
    LEFT JOIN names s ON s.id = e.service LEFT JOIN names o ON o.id = e.outcome
    LEFT JOIN names f ON f.id = e.source LEFT JOIN names r ON r.id = e.reply
"""
_HEX_DIGITS = frozenset("0123456789abcdef")


class Found(NamedTuple):
    """An event, and its number in the index: what is newer has a higher one."""

    number: int
    event: Event


class Minute(NamedTuple):
    """What a service has handled within one minute, given in minutes since 1970."""

    minute: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class Search:
    """Which handlings and dead letters are looked for. `before` is a number of the index, times are in µs since 1970."""

    service: str = ""
    outcome: str = ""
    """`ok`, `failed` for any other, or one of the others."""
    since: int = 0
    before: int | None = None


class Lookup:
    """Reads an index, from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.local()

    def reopen(self) -> None:
        """The file is another one now."""
        self._threads = threading.local()

    def _db(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if connection is None:
            connection = self._threads.connection = connect(self._path, read_only=True)
        return connection

    def since(self) -> int | None:
        """When the oldest event was, in µs since 1970; None if there is none."""
        found = self._db().execute("SELECT t FROM events ORDER BY id LIMIT 1").fetchone()
        return None if found is None else int(found[0])

    def count(self) -> int:
        """How many events there are, or very nearly."""
        first, last = self._db().execute("SELECT (SELECT min(id) FROM events), (SELECT max(id) FROM events)").fetchone()
        return 0 if first is None else int(last - first + 1)

    def services(self) -> list[str]:
        """The names of all services that something is recorded of, handled or requested."""
        names = self._db().execute(
            "SELECT name FROM names n WHERE EXISTS (SELECT 1 FROM events WHERE service = n.id) ORDER BY name"
        )
        return [name for (name,) in names]

    def story(self, cid: str) -> tuple[Step | None, bool]:
        """The tree that a CID belongs to, and whether it is cut."""
        events: dict[int, Event] = {}
        known, new = {cid}, [cid]
        while new and len(known) <= MOST_INVOCATIONS:
            for number, event in self._mentioning(new.pop()):
                if number not in events:
                    events[number] = event
                    told = {event[name] for name in ("cid", "parent") if name in event}
                    new += (told := told.union(sent.cid for sent in sent_of(event)) - known)
                    known |= told
        return tree([events[number] for number in sorted(events)], cid), bool(new)

    def _mentioning(self, cid: str) -> list[Found]:
        return self._select(
            "e.id IN (SELECT event FROM mentions WHERE cid = ? LIMIT ?)", (packed(cid), MOST_INVOCATIONS)
        )

    def _select(self, where: str, values: Iterable[Any]) -> list[Found]:
        """The events for which a condition made of this file's constants holds."""
        return [_found(row) for row in self._db().execute(f"{_SELECT} WHERE {where}", tuple(values))]

    def beginning_with(self, text: str, limit: int) -> list[str]:
        """CIDs that begin so, in no particular order."""
        found = {
            row[0]
            for row in self._db().execute(
                "SELECT DISTINCT cid FROM mentions WHERE cid >= ? AND cid < ? LIMIT ?",
                (text, text + "\U0010ffff", limit),
            )
        }
        if text and len(text) <= 32 and _HEX_DIGITS.issuperset(text):
            low, high = bytes.fromhex(text.ljust(32, "0")), bytes.fromhex(text.ljust(32, "f"))
            rows = self._db().execute(
                "SELECT DISTINCT cid FROM mentions WHERE cid BETWEEN ? AND ? LIMIT ?", (low, high, limit)
            )
            found.update(unpacked(row[0]) for row in rows)
        return sorted(found)[:limit]

    def search(self, wanted: Search, limit: int) -> list[Found]:
        """The newest handlings and dead letters that are like that, the newest first. Those of a service that sends are not among them."""
        where, values = ["e.kind <> 1"], list[Any]()
        if wanted.service:
            where.append("e.service = (SELECT id FROM names WHERE name = ?)")
            values.append(wanted.service)
        if wanted.outcome == "ok":
            where.append("e.outcome IS NULL")
        elif wanted.outcome == "failed":
            where.append("e.outcome IS NOT NULL")
        elif wanted.outcome:
            where.append("e.outcome = (SELECT id FROM names WHERE name = ?)")
            values.append(wanted.outcome)
        if wanted.before is not None:
            where.append("e.id < ?")
            values.append(wanted.before)
        if wanted.since:
            # Events are nearly in the order of time, and marks say where in it: whole marks may be passed over.
            where += ["e.t >= ?", "e.id >= coalesce((SELECT max(event) FROM marks WHERE t < ?), 0)"]
            values += [wanted.since, wanted.since]
        return self._select(f"{' AND '.join(where)} ORDER BY e.id DESC LIMIT ?", (*values, limit))

    def minutes(self, since: int, service: str | None = None) -> dict[str, list[Minute]]:
        """What was handled in which minute from `since` (in minutes since 1970) on, by service."""
        found: dict[str, list[Minute]] = {}
        rows = self._db().execute(
            "SELECT n.name, m.minute, m.handled, m.failures, m.times FROM minutes m JOIN names n ON n.id = m.service"
            " WHERE m.minute >= ?1 AND (?2 IS NULL OR n.name = ?2) ORDER BY m.minute",
            (since, service),
        )
        for name, minute, handled, failures, times in rows:
            tally = Tally()
            tally.handled, tally.failures, tally.times = handled, failures, Histogram.loads(times)
            found.setdefault(name, []).append(Minute(minute, tally))
        return found

    def handlings_since(self, t: int) -> Iterable[tuple[int, str, float, bool]]:
        """When, of which service, how long in ms, and whether it failed, of each handling from then on (µs since 1970)."""
        return self._db().execute(
            "SELECT e.t, n.name, e.took / 1000.0, e.outcome IS NOT NULL FROM events e JOIN names n ON n.id = e.service"
            " WHERE e.kind = 0 AND e.t >= ?1 AND e.id >= coalesce((SELECT max(event) FROM marks WHERE t < ?1), 0)",
            (t,),
        )

    def daemons(self) -> list[tuple[str, Event]]:
        """The last sign of life of each daemon."""
        return [(writer, json.loads(told)) for writer, told in self._db().execute("SELECT writer, event FROM daemons")]

    def about(self, service: str) -> dict[str, Event]:
        """What daemons tell of a service, by its code, the newest first."""
        rows = self._db().execute("SELECT code, told FROM about WHERE service = ? ORDER BY t DESC", (service,))
        return {code: json.loads(told) for code, told in rows}


def _found(row: tuple[Any, ...]) -> Found:
    number, t, kind, service, outcome, cid, took, source, parent, reply, rest = row
    event: Event = {"event": _KINDS[kind], "t": t}
    if cid is not None:
        event["cid"] = unpacked(cid)
    if service is not None:
        event["target" if kind == 1 and cid is not None else "service"] = service
    if took is not None:
        event["took_ms"] = took / 1000
    if outcome is not None:
        event["reason" if kind == 2 else "outcome"] = outcome
    if source is not None:
        event["source"] = source
    if parent is not None:
        event["parent"] = unpacked(parent)
    if reply is not None:
        event["reply"] = reply
    return Found(number, event | json.loads(rest) if rest else event)
