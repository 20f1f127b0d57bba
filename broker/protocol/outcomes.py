"""What becomes of a message: a reply, a dead letter, copies for several callbacks. Plain values, made here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any, NamedTuple

from broker.errors import Problem
from broker.protocol import headers as h
from broker.protocol import problems
from broker.protocol.cids import reply_id
from broker.protocol.delays import delayed
from broker.protocol.message import Message, Publishing
from broker.protocol.names import DEAD_LETTERS

DEAD_REASON = "dead-reason"
DEAD_SERVICE = "dead-service"
DEAD_ATTEMPTS = "dead-attempts"
DEAD_AT = "dead-at"
DEAD_ERROR = "dead-error"
DEAD_ORIGINAL = "dead-original"
MAX_TRACEBACK = 8 * 1024

# By these RabbitMQ routes a message to further queues; publishing them again would send further copies.
_SENDER_SELECTED = ("CC", "BCC")
GIVEN_BACK = "given-back"
"""The header of what was given back to its queue as a copy: what RabbitMQ had counted against it."""
# On an earlier life of the message.
NOTES_ON_DELIVERIES = ("x-delivery-count", "x-acquired-count", GIVEN_BACK)


class Outcome(NamedTuple):
    """All that is to be published, and confirmed, before a message is acknowledged."""

    reply: Publishing | None = None
    dead: Publishing | None = None
    forwards: tuple[Publishing, ...] = ()
    again: Publishing | None = None
    """The message itself, to be handled once more, now or later."""
    refused: int = 0
    """For how many seconds their queues have refused these already."""
    error: Problem | None = None
    """What went wrong, if something has; not published by itself."""


NOTHING = Outcome()
LATE = Outcome()
"""Nothing, as nobody waits for it any more."""


def reply(
    request: Message, service: str, body: bytes, content_type: str | None, extra_headers: dict[str, Any] | None = None
) -> Publishing | None:
    """The successful reply to `request`, whose headers were readable, or None if it wants none."""
    return _reply(request, service, h.OK, body, content_type, h.echoed, extra_headers)


def failure(request: Message, reason: str, error: Problem, traceback: str = "") -> Outcome:
    """The end of a message that failed for good: a dead letter, and a failure reply if one is wanted.

    `reason` is the dead letter's; the problem's own may be finer (`timeout` is an `error`).
    """
    answer = _reply(
        request, error.service, h.ERROR, problems.to_json(error), problems.CONTENT_TYPE, h.echoed_if_readable, None
    )
    return Outcome(reply=answer, dead=dead_letter(request, reason, error, traceback), error=error)


def dead_letter(
    message: Message, reason: str, error: Problem, traceback: str = "", queue: str | None = None
) -> Publishing:
    """The message as it came, with what it died of in headers that begin with `dead-`.

    What RabbitMQ would act on if it were published again (expiration, user ID, sender-selected routing) is kept in the table
    `dead-original`, and so is the `queue` that it was for, where that is not its service's.
    """
    dead = copy(message)
    dead.headers = {k: v for k, v in message.headers.items() if k not in (*_SENDER_SELECTED, *NOTES_ON_DELIVERIES)}
    original = {k: message.headers[k] for k in _SENDER_SELECTED if k in message.headers}
    if message.expiration is not None:
        original["expiration"] = str(message.expiration)
    if message.user_id is not None:
        original["user_id"] = message.user_id
    if queue is not None:
        original["queue"] = queue
    dead.expiration = None
    dead.user_id = None
    more = {"traceback": _cut(traceback)} if traceback else {}
    dead.headers |= {
        DEAD_REASON: reason,
        DEAD_SERVICE: error.service,
        DEAD_ATTEMPTS: error.attempts,
        DEAD_ERROR: problems.to_json(error, **more).decode(),
    }
    if original:
        dead.headers[DEAD_ORIGINAL] = original
    return Publishing(DEAD_LETTERS, dead)


def filed(dead: Publishing, at: datetime) -> Publishing:
    """A dead letter with the time (UTC) that it is filed."""
    dead.message.headers[DEAD_AT] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return dead


def stripped(dead: Publishing) -> Publishing:
    """A dead letter with nothing of the original's headers, and without a traceback: what always fits into a frame."""
    headers = {k: v for k, v in dead.message.headers.items() if k.startswith("dead-") and k != DEAD_ORIGINAL}
    told = json.loads(headers[DEAD_ERROR])
    told.pop("traceback", None)
    small = copy(dead.message)
    small.headers = {**headers, DEAD_ERROR: json.dumps(told)}
    return Publishing(dead.routing_key, small)


def forwards(message: Message, cid: str, names: Sequence[str]) -> Outcome:
    """A copy of a reply for each callback's own queue, marked as the reply that it is."""
    return Outcome(forwards=tuple(Publishing(name, _forward(message, cid, name)) for name in names))


def retried(
    message: Message, service: str, attempt: int, seconds: int, error: Problem | None = None, *, is_reply: bool
) -> Outcome:
    """Another attempt at a message, after so many seconds, as the one before failed with `error`."""
    again = republished(message, is_reply=is_reply)
    again.headers[h.ATTEMPT] = attempt
    if again.expiration is not None:
        again.expiration -= seconds * 1000
        if again.timestamp is not None:
            again.timestamp += seconds  # both together still say when it expires
    return Outcome(again=delayed(Publishing(service, again), seconds), error=error)


def republished(message: Message, *, is_reply: bool) -> Message:
    """A copy that may be published to a queue of our own; a reply is marked as one, as anything else on a service's queue is a request."""
    copied = copy(message)
    copied.headers = {k: v for k, v in message.headers.items() if k not in (*_SENDER_SELECTED, *NOTES_ON_DELIVERIES)}
    if is_reply:
        copied.headers.setdefault(h.STATUS, h.OK)
    copied.user_id = None
    return copied


def _forward(message: Message, cid: str, name: str) -> Message:
    copied = republished(message, is_reply=True)
    copied.correlation_id = cid
    copied.message_id = reply_id(cid, name)
    copied.reply_to = None
    return copied


def _reply(
    request: Message,
    service: str,
    status: str,
    body: bytes,
    content_type: str | None,
    echo: Callable[[Mapping[str, Any]], dict[str, Any]],
    extra_headers: dict[str, Any] | None,
) -> Publishing | None:
    if not request.reply_to or h.STATUS in request.headers:
        return None
    headers = echo(request.headers)
    if extra_headers:
        headers = extra_headers | headers
    headers[h.SERVICE] = service
    headers[h.STATUS] = status
    message = Message(
        body=body,
        headers=headers,
        content_type=content_type,
        correlation_id=request.correlation_id,
        message_id=reply_id(request.correlation_id or ""),
    )
    return Publishing(request.reply_to, message)


def _cut(traceback: str) -> str:
    # The end of a traceback tells more than its beginning. JSON escapes can lengthen it: what counts is the encoded size.
    while len(json.dumps(traceback)) > MAX_TRACEBACK:
        traceback = "…" + traceback[max(1, len(traceback) // 10) + 1 :]
    return traceback
