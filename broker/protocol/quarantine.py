"""Messages that were in a process when it died, again and again: one of them is the culprit, the others were its neighbours.

RabbitMQ counts a crash against every message that the process had in hand, so all of them would reach a delivery limit together.
A message that has seen two crashes is therefore handed over to the queue `ackback.quarantine.<callback queue>`, which each daemon
consumes one at a time, and first of all when it starts: there only the culprit goes on killing, and its few deliveries end at the
undertaker's. Its neighbours are handled and gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.errors import InvalidInputError
from broker.protocol.cids import new_cid
from broker.protocol.delays import delayed
from broker.protocol.message import Message, Publishing
from broker.protocol.names import RESERVED_PREFIX, name_problem
from broker.protocol.outcomes import Outcome, republished

CRASHES = 2
QUARANTINE = "quarantine"
QUEUE_PREFIX = f"{RESERVED_PREFIX}quarantine."
ELSEWHERE_AFTER = 1


def queue_name(callback_queue: str) -> str:
    """Daemons that share a callback queue share a quarantine."""
    return QUEUE_PREFIX + callback_queue


def is_suspect(headers: Mapping[str, Any], service: str, *, redelivered: bool) -> bool:
    """Whether a message has seen too many crashes to be handled beside others, or has been found so elsewhere."""
    count = headers.get("x-delivery-count") if redelivered else None
    return (type(count) is int and count >= CRASHES) or _note(headers).get("service") == service


def may_be_given_back(headers: Mapping[str, Any], *, redelivered: bool) -> bool:
    """Whether a message may be given back to its queue without coming near to what looks like a crash: before RabbitMQ 4 that is counted
    as one."""
    count = headers.get("x-delivery-count") if redelivered else None
    return type(count) is not int or count + 1 < CRASHES


def isolated(message: Message, service: str, queue: str, *, is_reply: bool) -> Outcome:
    """The hand-over of a service's message to the quarantine queue."""
    copied = republished(message, is_reply=is_reply)
    copied.correlation_id = copied.correlation_id or new_cid()
    copied.headers[QUARANTINE] = {"service": service, "deliveries": CRASHES}
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


def elsewhere(message: Message, service: str) -> Outcome:
    """Sends a quarantined message to its service's own queue, note and all, so that a daemon that hosts it finds it."""
    return Outcome(again=delayed(Publishing(service, republished(message, is_reply=False)), ELSEWHERE_AFTER))


def _note(headers: Mapping[str, Any]) -> dict[str, Any]:
    note = headers.get(QUARANTINE)
    return note if isinstance(note, dict) else {}
