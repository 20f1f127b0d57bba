"""What is recorded of invocations, and how: events in batches, on a stream of RabbitMQ's.

A message of the stream is a JSON array of events, deflated. Its headers say how many they are (`events`), who wrote them (`daemon`), and
which of the writer's batches it is (`batch`, from 1), so that one that was sent again is known. An event is an object: `event` says which
of the kinds below it is, `t` when it was (µs since 1970). What goes without saying is left out: attempt 1, outcome `ok`, what is false or
empty.

    handled  a handling has ended, at `t`: cid service took_ms outcome attempt source parent redelivered retry_in (s)
             reply (`ok` or `error`: it was of a reply) error ([title, detail]) published (s since 1970, if that is long ago)
             sent ([[t, target, cid, delay in s], …]: what its handler invoked)
    sent     a client's request is confirmed: cid target callbacks call delay
             or, from a handler that invokes very much: parent service sent
    dead     a dead letter is filed: cid service reason error
    daemon   a sign of life: state (`started`, `lives`, `drains`, `stopped`) host pid version resident (bytes) lag_ms dropped
             services ({name: [running, waiting, concurrency, code]})
             about ({name: {class, concurrency, attempts, timeout, takes, returns (JSON Schemas)}}: at the start, and every ten minutes)

Nearly all events are handlings that went well, and requests: these are not objects but rows, which take half of the time to write:

    ["h", t, cid, service, took in µs, source, parent, reply]        ["s", t, cid, target, callbacks]

That of a handling has a ninth member, `published`, if that is long ago.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from broker.errors import InvalidInputError
from broker.protocol.entities import Queue
from broker.protocol.message import Message, Publishing

EVENTS = "ackback.events"
HANDLED, SENT, DEAD, DAEMON = "handled", "sent", "dead", "daemon"
MAX_ERROR = 300
"""Characters that are kept of an error's detail."""
MAX_INFLATED = 64 * 1024 * 1024
"""Bytes of a batch, inflated: anybody may have written to the stream."""
LEVEL = 1
"""Of zlib: the others take three times as long for a tenth less."""
IN_HASTE = 0
"""Of zlib: stored as it is. Compressing takes a third of the time that an event costs its process, for half of its bytes."""

LATEST = 253_402_300_799_000_000
"""The end of the year 9999, in µs since 1970: what is later is no time."""
_NUMBER = (int, float)
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("cid", "service", "target", "source", "parent", "outcome", "reply", "reason"), str),
    **dict.fromkeys(("state", "host", "version"), str),
    **dict.fromkeys(("took_ms", "retry_in", "delay", "lag_ms"), _NUMBER),
    **dict.fromkeys(("attempt", "published", "pid", "resident", "dropped"), int),
    **dict.fromkeys(("redelivered", "call"), bool),
    **dict.fromkeys(("sent", "error", "callbacks"), list),
    "services": dict,
    "about": dict,
}
_NEEDED = {HANDLED: ("cid", "service", "took_ms"), DEAD: (), SENT: (), DAEMON: ("state",)}

Event = dict[str, Any]
Row = tuple[Any, ...]
HANDLED_ROW, SENT_ROW = "h", "s"


def event_stream(max_age: float, max_bytes: int, segment_bytes: int) -> Queue:
    """The stream's declaration. `max_age` is in seconds."""
    return Queue(
        EVENTS,
        {
            "x-queue-type": "stream",
            "x-max-age": f"{max_age:.0f}s",
            "x-max-length-bytes": max_bytes,
            "x-stream-max-segment-size-bytes": segment_bytes,
        },
    )


def expanded(row: Sequence[Any]) -> Event | None:
    """A row as the event that it stands for; None if it is none."""
    if len(row) in (8, 9) and row[0] == HANDLED_ROW:
        _, t, cid, service, took, source, parent, reply, *rest = row
        if not (_is_time(t) and type(cid) is type(service) is str and _is_time(took)):
            return None
        event: Event = {"event": HANDLED, "t": t, "cid": cid, "service": service, "took_ms": took / 1000}
        for name, value in (("source", source), ("parent", parent), ("reply", reply)):
            if value is not None:
                if type(value) is not str:
                    return None
                event[name] = value
        if rest:
            if not _is_time(rest[0]):
                return None
            event["published"] = rest[0]
        return event
    if len(row) == 5 and row[0] == SENT_ROW:
        _, t, cid, target, callbacks = row
        if _is_time(t) and type(cid) is type(target) is str and isinstance(callbacks, (list, tuple)):
            event = {"event": SENT, "t": t, "cid": cid, "target": target}
            return event | {"callbacks": callbacks} if callbacks else event
    return None


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LATEST


def is_number(value: Any) -> bool:
    """Whether it is a number that may count something here: µs, seconds, bytes."""
    return isinstance(value, _NUMBER) and abs(value) <= LATEST


def _is_good(name: str, value: Any) -> bool:
    return isinstance(value, _TYPES.get(name, object)) and (not isinstance(value, _NUMBER) or is_number(value))


def batch(events: Sequence[Mapping[str, Any] | Row], writer: str, number: int, level: int = LEVEL) -> Publishing:
    """A message for the stream. `level` is zlib's."""
    try:
        text = to_json(events)
    except ValueError:  # half of a surrogate pair, in what a foreign client has sent
        text = json.dumps(events, default=str, ensure_ascii=False).encode("utf-8", "replace")
    headers = {"events": len(events), "daemon": writer, "batch": number}
    body = zlib.compress(text, level)
    return Publishing(EVENTS, Message(body, headers, "application/json", "deflate"))


def inflated(message: Message) -> bytes:
    """The JSON of a batch.

    Raises:
        InvalidInputError: it is none.
    """
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(message.body, MAX_INFLATED)
    except zlib.error as error:
        raise InvalidInputError(f"a message of {EVENTS!r} is no batch of events: {error}") from None
    if not inflater.eof:
        raise InvalidInputError(
            f"a message of {EVENTS!r} is no batch of events: it is cut off, or larger than {MAX_INFLATED:,} bytes"
        )
    return text


def parsed(text: bytes) -> list[Event]:
    """The events of a batch's JSON; what is no event is passed over, and what of one has another type than it should.

    Raises:
        InvalidInputError: it is no JSON.
    """
    try:
        found = from_json(text, cache_strings="all")
    except ValueError as error:
        raise InvalidInputError(f"a message of {EVENTS!r} is no batch of events: {error}") from None
    if not isinstance(found, list):
        return []
    events = (expanded(one) if isinstance(one, list) else _well_formed(one) for one in found)
    return [event for event in events if event is not None]


def _well_formed(one: Any) -> Event | None:
    """What is good of an event that anybody may have written; None if it is none."""
    if not isinstance(one, dict) or type(one.get("t")) is not int or not 0 <= one["t"] <= LATEST:
        return None
    needed = _NEEDED.get(one["event"]) if isinstance(one.get("event"), str) else None
    if needed is None:
        return None
    event: Event = {name: value for name, value in one.items() if _is_good(name, value)}
    error = event.get("error")
    if error is not None and not (len(error) == 2 and isinstance(error[0], str) and isinstance(error[1], str)):
        del event["error"]
    return event if all(name in event for name in needed) else None
