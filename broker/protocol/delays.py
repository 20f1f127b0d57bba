"""Messages that are to arrive later: the way of a retry's wait and of `delay=`, all of it in the broker.

A chain of queues, one for each bit of a whole number of seconds, as NServiceBus and Celery have it. Where the bit is 1, a
message waits in that level's queue for its power of two of seconds, by the queue's TTL; where it is 0, it is passed on at once:

    ackback.later.24 ─┬─ *1* ─→ queue, 2**24 s ─┬─→ ackback.later.23 ─┬─ … ─→ ackback.later.00 ─┬─→ queue, 1 s ─┬─→ ackback.due
                      └─ *0* ───────────────────┘                     └─ … ─→                   └───────────────┘

The routing key spells the bits (`0.0.….1.0.1`). One TTL for all of a queue's messages, as RabbitMQ looks for expired ones at a queue's
head only. Each step is dead-lettering `at-least-once`, so no step loses one. What leaves the chain comes to the queue `ackback.due`,
whose consumers publish it to the queue that its header `delayed` names. That header also keeps what would be acted on in the
chain already: a message's own expiration would end each wait early.

What a queue refuses waits here, too (`postponed`), each time longer.

An exchange of the chain that finds a queue or exchange missing (somebody deleted it) gives the message to `ackback.due`, too: what
it has waited so far is in its `x-death`, and it goes back for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

from broker.errors import InvalidInputError
from broker.protocol.message import Message, Publishing
from broker.protocol.names import RESERVED_PREFIX, queue_problem

LEVELS = 25
MAXIMUM = 366 * 86400
LONGEST_POSTPONEMENT = 60
"""Seconds."""
DELAYED = "delayed"
REFUSED = "refused"
IS_REPLY = "is-reply"
EXCHANGE_PREFIX = f"{RESERVED_PREFIX}later."
FORMER_PREFIX = f"{RESERVED_PREFIX}delay."
"""The chain of earlier versions: its queues have other arguments, so ours have other names, and what waits there comes out as ever."""

_DEATHS = ("x-first-death-", "x-last-death-")


def level_name(level: int) -> str:
    """The exchange, and the queue, of one power of two."""
    return f"{EXCHANGE_PREFIX}{level:02}"


def former_level_name(level: int) -> str:
    return f"{FORMER_PREFIX}{level:02}"


def whole_seconds(delay: float) -> int:
    """A delay in the chain's resolution, never shorter than asked for.

    Raises:
        ValueError: it is negative or longer than a year.
    """
    if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay <= MAXIMUM:
        raise ValueError(f"delay is in seconds, from 0 to a year, not {delay!r}")
    return math.ceil(delay)


def delayed(publishing: Publishing, seconds: int) -> Publishing:
    """The publishing that reaches its queue after so many seconds, by way of the chain."""
    if seconds == 0:
        return publishing
    message = copy(publishing.message)
    note: dict[str, Any] = {"to": publishing.routing_key, "seconds": seconds}
    if message.expiration is not None:
        note["expiration"] = message.expiration
        message.expiration = None
    message.headers = _without_waits(message.headers) | {DELAYED: note}
    bits = ".".join(f"{seconds:0{LEVELS}b}")
    return Publishing(bits, message, level_name(seconds.bit_length() - 1))


def postponed(publishing: Publishing, refused: int, *, is_reply: bool) -> Publishing:
    """A publishing that its queue has refused for so many seconds, to be tried again after about as many more.

    `is_reply`: it is a reply to a client.
    """
    wait = min(refused + 1, LONGEST_POSTPONEMENT)
    return _with_refusal(delayed(publishing, wait), refused + wait, is_reply=is_reply)


def target(publishing: Publishing) -> str:
    """The queue that a publishing reaches in the end."""
    note = publishing.message.headers.get(DELAYED)
    return str(note["to"]) if publishing.exchange and isinstance(note, dict) else publishing.routing_key


def wait(publishing: Publishing) -> int:
    """For how many seconds a publishing is delayed."""
    note = publishing.message.headers.get(DELAYED)
    return int(note["seconds"]) if publishing.exchange and isinstance(note, dict) else 0


class Due(NamedTuple):
    """What a message that left the chain is to be published as: to its queue, or into the chain again for the rest of its wait.

    `refused` is for how many seconds its queue has refused it, `is_reply` whether it is a reply to a client.
    """

    publishing: Publishing
    refused: int = 0
    is_reply: bool = False


def due(message: Message) -> Due:
    """Read what has left the chain.

    Raises:
        InvalidInputError: its header `delayed` is not what the chain puts there.
    """
    note = message.headers.get(DELAYED)
    told: dict[str, Any] = note if isinstance(note, dict) else {}
    queue, seconds, expiration = told.get("to"), told.get("seconds"), told.get("expiration")
    refused, is_reply = told.get(REFUSED, 0), told.get(IS_REPLY) is True
    if not isinstance(queue, str) or (problem := queue_problem(queue)):
        raise InvalidInputError(f"header 'delayed' names no queue: {problem if isinstance(queue, str) else queue!r}")
    if type(seconds) is not int or not 0 <= seconds < 2**LEVELS or not isinstance(expiration, (int, type(None))):
        raise InvalidInputError("header 'delayed' does not say for how long")
    if type(refused) is not int or refused < 0:
        raise InvalidInputError("header 'delayed' does not say for how long it was refused")
    original = copy(message)
    original.headers = _without_waits(message.headers)
    original.expiration = expiration
    rest = delayed(Publishing(queue, original), max(0, seconds - _waited(message)))
    return Due(_with_refusal(rest, refused, is_reply=is_reply), refused, is_reply)


def _with_refusal(publishing: Publishing, refused: int, *, is_reply: bool) -> Publishing:
    if refused and publishing.exchange:
        publishing.message.headers[DELAYED] |= {REFUSED: refused, IS_REPLY: is_reply}
    return publishing


def _waited(message: Message) -> int:
    deaths = message.headers.get("x-death")
    queues = [death.get("queue") for death in deaths if isinstance(death, dict)] if isinstance(deaths, list) else []
    levels = range(LEVELS)
    return sum(1 << level for level in levels if level_name(level) in queues or former_level_name(level) in queues)


def _without_waits(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers without the broker's notes on the chain, by which it would take a second wait for a cycle and drop the message
    (https://www.rabbitmq.com/docs/dlx#effects)."""
    kept = {name: value for name, value in headers.items() if name != DELAYED and not name.startswith(_DEATHS)}
    if isinstance(deaths := kept.pop("x-death", None), list):
        others = [one for one in deaths if not (isinstance(one, dict) and _is_level(one.get("queue")))]
        if others:
            kept["x-death"] = others
    return kept


def _is_level(queue: object) -> bool:
    return isinstance(queue, str) and queue.startswith((EXCHANGE_PREFIX, FORMER_PREFIX))
