"""Every queue and exchange that ackback declares: its name and its arguments.

All durable queues are quorum queues, so what they confirmed is on a majority of disks. Messages that the broker itself
gives up on (expired, delivered too often) go to the undertaker's queue, whose consumer files them as dead letters.
`at-least-once` with `reject-publish` makes that move safe, too: the message leaves its queue only once the
undertaker's queue has confirmed it (https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from broker.protocol.delays import LEVELS, former_level_name, level_name
from broker.protocol.entities import Binding, Exchange, Queue
from broker.protocol.message import Message
from broker.protocol.names import DEAD_LETTERS, RESERVED_PREFIX, SCHEDULES
from broker.protocol.quarantine import QUEUE_PREFIX as QUARANTINE_PREFIX
from broker.protocol.quarantine import queue_name as quarantine_queue

UNDERTAKER = RESERVED_PREFIX + "undertaker"
DUE = RESERVED_PREFIX + "due"
REPLY_PREFIX = RESERVED_PREFIX + "reply."
DELIVERY_LIMIT = 20
QUARANTINE_LIMIT = 3
ACKNOWLEDGEMENT_TIMEOUT = 30 * 86400.0
"""Seconds that RabbitMQ waits for an acknowledgement. A handler without a timeout may take days: 30 of them is what RabbitMQ's timers are
good for, as they count milliseconds in 32 bits. As a queue's argument it is heard from 3.12 on."""
ADDRESSED = ".for."
MIGRATION = RESERVED_PREFIX + "migration"
"""There while queues are brought over from an earlier version's arguments, also if that was interrupted."""

# Leaders of new queues spread over a cluster's nodes (3.10 and later). What was delivered by way of a node that has died is delivered
# again after 5 s, where RabbitMQ 4.3 would wait for a minute; earlier ones do not hear it, and do not wait.
_SPREAD: Mapping[str, Any] = MappingProxyType({"x-queue-leader-locator": "balanced"})
_CONSUMED: Mapping[str, Any] = MappingProxyType(
    {
        **_SPREAD,
        "x-consumer-disconnected-timeout": 5000,
        "x-consumer-timeout": round(ACKNOWLEDGEMENT_TIMEOUT * 1000),
    }
)


def _dying_to(graveyard: str) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": graveyard,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            **_CONSUMED,
        }
    )


_WORK = _dying_to(UNDERTAKER)
_QUARANTINE: Mapping[str, Any] = MappingProxyType({**_WORK, "x-delivery-limit": QUARANTINE_LIMIT})
# What even the undertaker cannot read is kept as it is.
_UNDERTAKERS = _dying_to(DEAD_LETTERS)
# What is dead must not die again. RabbitMQ 4 would set a limit of 20 by default; -1, which it takes for none, RabbitMQ 3 takes at its
# word: there a message that is looked at and given back is gone (seen on 3.10.8).
_KEPT: Mapping[str, Any] = MappingProxyType({"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1, **_CONSUMED})
_KEEPING = frozenset({DEAD_LETTERS, MIGRATION, f"{MIGRATION}.messages"})
_ONE_CONSUMES: Mapping[str, Any] = MappingProxyType({**_KEPT, "x-single-active-consumer": True})


def own_queue(name: str) -> Queue:
    """A durable queue of ackback's: a service's, the callback queue, or one of those by which messages are kept safe."""
    if name.startswith(QUARANTINE_PREFIX):
        return Queue(name, _QUARANTINE)
    if name in _KEEPING:
        return Queue(name, _KEPT)
    if name == SCHEDULES:
        return Queue(name, _ONE_CONSUMES)
    return Queue(name, _UNDERTAKERS if name == UNDERTAKER else _WORK)


def as_before(queue: Queue) -> Queue:
    """A queue of ours as earlier versions have declared it."""
    former = {name: value for name, value in queue.arguments.items() if name not in _CONSUMED}
    return Queue(queue.name, former | {"x-delivery-limit": -1} if queue.name in _KEEPING else former)


def durable_queues(services: Iterable[str], callback_queue: str) -> list[Queue]:
    """What a daemon that hosts `services` declares, the dead letters' way first."""
    safety = (DEAD_LETTERS, UNDERTAKER, DUE, quarantine_queue(callback_queue))
    return [own_queue(name) for name in (*safety, callback_queue, *services)]


def with_what_leads_there(queue: Queue) -> tuple[Queue | Exchange | Binding, ...]:
    """A queue of ours, and what has to be declared with it."""
    if queue.name == DUE:
        return Exchange(DUE, "fanout"), queue, Binding(DUE, queue)
    return (queue,)


def delay_chain() -> Iterator[Queue | Exchange | Binding]:
    """What `delays.py` describes, each after what it refers to."""
    yield from with_what_leads_there(own_queue(DUE))
    below = Exchange(DUE, "fanout")
    for level in range(LEVELS):
        name = level_name(level)
        exchange = Exchange(name, "topic", {"alternate-exchange": DUE})
        queue = Queue(name, _waiting(1000 << level, below.name))
        passed = "*." * (LEVELS - 1 - level)
        yield exchange
        yield queue
        yield Binding(name, queue, f"{passed}1.#")
        yield Binding(name, below, f"{passed}0.#")
        below = exchange


def _waiting(milliseconds: int, then: str) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": then,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **_SPREAD,
    }


def addressed_queue(callback_queue: str, callback: str) -> Queue:
    """Where a server replies that echoes nothing but the correlation ID: what comes here goes on to the callback queue at once, and its
    header `x-first-death-queue` says there which callback it is for."""
    return Queue(
        f"{callback_queue}{ADDRESSED}{callback}", _waiting(0, "") | {"x-dead-letter-routing-key": callback_queue}
    )


def delay_chain_as_before() -> Iterator[Queue | Exchange]:
    """The chain that earlier versions have declared, from its beginning."""
    for level in reversed(range(LEVELS)):
        yield Queue(former_level_name(level))
        yield Exchange(former_level_name(level), "topic")


def is_call(message: Message) -> bool:
    """Whether a request is one of ackback's own calls: the name of its reply queue says so."""
    return message.reply_to is not None and message.reply_to.startswith(REPLY_PREFIX)


def reply_queue() -> Queue:
    """A queue for the replies to one connection's own calls; it goes when the connection goes."""
    return Queue(f"{REPLY_PREFIX}{secrets.token_hex(8)}", exclusive=True)
