"""Messages that were in a process when it died: one of them is the culprit, the others were its neighbours.

RabbitMQ counts a crash against every message that the process had in hand. What has been counted against once is handed over to the
queue `ackback.quarantine.<callback queue>`, which processes of their own consume one message at a time (`process/suspects.py`). There
the neighbours are handled and gone; what kills such a process twice becomes a dead letter.

A lost connection is counted like a crash. A process that has lost its own lately, and lives, forgives one count: it may be that. In
quarantine such a process puts the message back, whatever is counted, three times at most: the network may be at fault, or the message,
as its handler may keep the process from answering RabbitMQ. Where RabbitMQ counts as a crash what is only given back (there is no
`x-acquired-count` then; docs/guarantees.md), one count is also forgiven, beside others, and what has a count already is given back
as a copy, which says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.errors import InvalidInputError
from broker.protocol.cids import new_cid
from broker.protocol.delays import delayed
from broker.protocol.message import Message, Publishing
from broker.protocol.names import RESERVED_PREFIX, name_problem
from broker.protocol.outcomes import GIVEN_BACK, Outcome, republished

QUARANTINE = "quarantine"
QUEUE_PREFIX = f"{RESERVED_PREFIX}quarantine."
ELSEWHERE_AFTER = 1
CRASHES_IN_QUARANTINE = 2
LOSSES_IN_QUARANTINE = 3
LOSSES = "losses"


def queue_name(callback_queue: str) -> str:
    """Daemons that share a callback queue share a quarantine."""
    return QUEUE_PREFIX + callback_queue


def comes_again(headers: Mapping[str, Any], *, redelivered: bool) -> bool:
    """Whether a message was delivered before, be it as the message that this one is a copy of."""
    return redelivered or GIVEN_BACK in headers


def crashes(headers: Mapping[str, Any], *, redelivered: bool) -> int:
    """What RabbitMQ has counted against a message. Nothing on its first delivery: anybody can set that header."""
    if not comes_again(headers, redelivered=redelivered):
        return 0
    return _number(headers, "x-delivery-count") + _number(headers, GIVEN_BACK)


def is_suspect(headers: Mapping[str, Any], service: str, *, redelivered: bool, forgiving: bool) -> bool:
    """Whether a message is not to be handled beside others, by what is counted against it or as it has been found so elsewhere.

    `forgiving`: one count may be this process's own lost connection.
    """
    crashed = crashes(headers, redelivered=redelivered)
    return crashed > _forgiven(headers, forgiving=forgiving) or _note(headers).get("service") == service


def may_be_given_back(headers: Mapping[str, Any], *, redelivered: bool) -> bool:
    """Whether a message may be given back to its queue by RabbitMQ without becoming a suspect by that."""
    return "x-acquired-count" in headers or crashes(headers, redelivered=redelivered) == 0


def given_back(message: Message, queue: str, *, redelivered: bool) -> Outcome:
    """Gives a message back to the queue of its service as a copy, with what is counted against it, so that nothing more is.

    Its expiration begins anew, as nobody knows how long it has been in its queue.
    """
    copied = republished(message, is_reply=False)
    copied.headers[GIVEN_BACK] = crashes(message.headers, redelivered=redelivered)
    return Outcome(again=Publishing(queue, copied))


def may_be_innocent(headers: Mapping[str, Any], *, forgiving: bool) -> bool:
    """Whether a message in quarantine may be there once more only as the network has failed. `forgiving`: this process has lost its
    connection, and lives."""
    return forgiving and crashes(headers, redelivered=True) > 0 and _losses(headers) < LOSSES_IN_QUARANTINE


def is_convicted(headers: Mapping[str, Any]) -> bool:
    """Whether a message has killed processes in which it was alone, or cost them their connection each time."""
    crashed = crashes(headers, redelivered=True)
    return crashed >= CRASHES_IN_QUARANTINE or (crashed > 0 and _losses(headers) >= LOSSES_IN_QUARANTINE)


def isolated(message: Message, service: str, queue: str, *, is_reply: bool, forgiving: bool) -> Outcome:
    """The hand-over of a service's message to the quarantine queue.

    What is counted against it may be more than it was handled: a process may die while it hands a suspect over.
    """
    headers = message.headers
    copied = republished(message, is_reply=is_reply)
    copied.correlation_id = copied.correlation_id or new_cid()
    handled = min(crashes(headers, redelivered=True), _forgiven(headers, forgiving=forgiving) + 1)
    copied.headers[QUARANTINE] = {"service": service, "deliveries": handled}
    return Outcome(again=Publishing(queue, copied))


def released(message: Message) -> tuple[str, int, Message]:
    """The service that a quarantined message is for, its deliveries before, and the message without that note.

    Raises:
        InvalidInputError: the note is not what `isolated` writes.
    """
    note = _note(message.headers)
    service, deliveries = note.get("service"), note.get("deliveries")
    if (problem := name_problem(service)) or type(deliveries) is not int:
        raise InvalidInputError(f"header 'quarantine' names no service: {problem or 'its deliveries are no number'}")
    original = republished(message, is_reply=False)
    original.headers.pop(QUARANTINE)
    return str(service), deliveries, original


def put_back(message: Message, deliveries: int, queue: str) -> Outcome:
    """Sends a message, delivered so often before it came to the quarantine queue, there once more."""
    copied = republished(message, is_reply=False)
    note = _note(message.headers)
    copied.headers[QUARANTINE] = note | {"deliveries": deliveries + 1, LOSSES: _losses(message.headers) + 1}
    return Outcome(again=Publishing(queue, copied))


def elsewhere(message: Message, service: str) -> Outcome:
    """Sends a quarantined message to its service's own queue, note and all, so that a daemon that hosts it finds it."""
    return Outcome(again=delayed(Publishing(service, republished(message, is_reply=False)), ELSEWHERE_AFTER))


def _forgiven(headers: Mapping[str, Any], *, forgiving: bool) -> int:
    return 1 if forgiving or "x-acquired-count" not in headers else 0


def _losses(headers: Mapping[str, Any]) -> int:
    return _number(_note(headers), LOSSES)


def _number(headers: Mapping[str, Any], name: str) -> int:
    value = headers.get(name)
    return value if type(value) is int else 0


def _note(headers: Mapping[str, Any]) -> dict[str, Any]:
    note = headers.get(QUARANTINE)
    return note if isinstance(note, dict) else {}
