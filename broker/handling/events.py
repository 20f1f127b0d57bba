"""What the flight recorder is told of a handling. Made for every message: a row where all went well, else all that there is to say."""

from __future__ import annotations

import time
from typing import Any

from broker.protocol import delays, problems
from broker.protocol import headers as h
from broker.protocol.events import DEAD, HANDLED, HANDLED_ROW, MAX_ERROR, SENT, Event, Row
from broker.protocol.message import Message
from broker.protocol.outcomes import DEAD_ERROR, DEAD_REASON, DEAD_SERVICE, LATE, Outcome

LONG_AGO = 2
"""Seconds from which on a message's own timestamp, which has whole ones, says how long it has waited."""
Sent = list[Any]
"""When, target, CID, and for how many seconds it is delayed if it is."""


def handled(
    service: str,
    message: Message,
    began: float,
    outcome: Outcome,
    sent: list[Sent] | None,
    redelivered: bool,
    is_reply: bool,
) -> Event | Row:
    """A handling has ended. `began` is in seconds since 1970."""
    now = time.time()
    headers, published = message.headers, message.timestamp
    if outcome.error is None and not sent and not redelivered and outcome is not LATE and h.ATTEMPT not in headers:
        row = (
            HANDLED_ROW,
            int(now * 1e6),
            message.correlation_id,
            service,
            int((now - began) * 1e6),
            headers.get(h.SOURCE),
            headers.get(h.PARENT),
            headers.get(h.STATUS, h.OK) if is_reply else None,
        )
        return row if published is None or began - published < LONG_AGO else (*row, published)
    return _handled_in_full(service, message, began, now, outcome, sent, redelivered, is_reply)


def _handled_in_full(
    service: str,
    message: Message,
    began: float,
    now: float,
    outcome: Outcome,
    sent: list[Sent] | None,
    redelivered: bool,
    is_reply: bool,
) -> Event:
    event: Event = {
        "event": HANDLED,
        "t": int(now * 1e6),
        "cid": message.correlation_id,
        "service": service,
        "took_ms": round((now - began) * 1e3, 3),
    }
    headers = message.headers
    if (source := headers.get(h.SOURCE)) is not None:
        event["source"] = source
    if (parent := headers.get(h.PARENT)) is not None:
        event["parent"] = parent
    if is_reply:
        event["reply"] = headers.get(h.STATUS, h.OK)
    if (attempt := headers.get(h.ATTEMPT)) is not None:
        event["attempt"] = attempt
    if (published := message.timestamp) is not None and began - published >= LONG_AGO:
        event["published"] = published
    if redelivered:
        event["redelivered"] = True
    if outcome.again is not None:
        event["outcome"] = "retried"
        event["retry_in"] = delays.wait(outcome.again)
    elif outcome.dead is not None:
        event["outcome"] = outcome.dead.message.headers[DEAD_REASON]
        for name in ("source", "parent", "attempt", "reply"):  # it may have died of one of them
            if name in event:
                event[name] = _short(event[name])
    elif outcome is LATE:
        event["outcome"] = "expired"
    if outcome.error is not None:
        event["error"] = [_short(outcome.error.title), _short(outcome.error.detail)]
    if sent:
        event["sent"] = sent
    return event


def sent_by(service: str, cid: str, sent: list[Sent]) -> Event:
    """Some of the many that a handler invokes, before it has ended."""
    return {"event": SENT, "t": sent[-1][0], "parent": cid, "service": service, "sent": sent}


def dead(message: Message) -> Event:
    """A dead letter is filed."""
    headers = message.headers
    error = problems.from_json(headers[DEAD_ERROR].encode(), "")
    return {
        "event": DEAD,
        "t": int(time.time() * 1e6),
        "cid": message.correlation_id,
        "service": headers.get(DEAD_SERVICE),
        "reason": headers.get(DEAD_REASON),
        "error": [_short(error.title), _short(error.detail)],
    }


def _short(value: object) -> str | int:
    return value if isinstance(value, int) else str(value)[:MAX_ERROR]
