"""Messages that nobody should send, and somebody will."""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any

import pika

from tests.faults.ledger import GARBAGE_MARK

QUEUES = (
    "faults.work",
    "faults.work-in-thread",
    "faults.told",
    "callbacks",
    "ackback.due",
    "ackback.quarantine.callbacks",
)
HEADERS = (
    "callback",
    "source",
    "parent",
    "attempt",
    "status",
    "service",
    "traceparent",
    "delayed",
    "quarantine",
    "x-death",
    "odd",
)


def send(url: str, count: int, rng: random.Random, first: int = 0) -> None:
    """Publish those from `first` up to `count`, confirmed. Their bodies begin with their numbers, by which each can be known again."""
    channel = None
    number = first
    while number < count:
        mark = GARBAGE_MARK + str(number).encode() + b" "
        size = rng.choice((0, 10, 1000, 200_000 if rng.random() < 0.05 else 100))
        try:
            if channel is None:
                channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
                channel.confirm_delivery()
            channel.basic_publish("", rng.choice(QUEUES), mark + rng.randbytes(size), _properties(rng), mandatory=True)
        except (pika.exceptions.AMQPError, OSError):
            channel = None  # RabbitMQ itself refuses some
            continue
        number += 1
    with suppress(pika.exceptions.AMQPError):
        if channel is not None:
            channel.connection.close()


def _properties(rng: random.Random) -> pika.BasicProperties:
    def some(*choices: Any) -> Any:
        return rng.choice((None, *choices))

    return pika.BasicProperties(
        content_type=some(
            "application/json", "text/plain", "text/plain; charset=nonsense", "\x00", "application/xml", "/"
        ),
        content_encoding=some("gzip", "utf-8", "latin-1", "no such"),
        headers={name: _value(rng) for name in HEADERS if rng.random() < 0.25},
        delivery_mode=some(1, 2),
        priority=some(0, 9, 255),
        correlation_id=some("x" * 255, "a\r\nb", "\u2028", ""),
        reply_to=some("nowhere", "amq.rabbitmq.reply-to.nonsense", "callbacks", "\n"),
        message_id=some("same", "same", "x" * 255),
        timestamp=some(0, 2**40),
        type=some("t" * 255),
        app_id=some("a"),
    )


def _value(rng: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [
        None,
        True,
        -1,
        0,
        2**62,
        "",
        "faults.told",
        "ok",
        "error",
        "text\r\nWARNING forged",
        "x" * 5000,
        b"\xff\xfe",
        Decimal("1.5"),
        datetime(2020, 1, 1),
    ]
    if depth < 3:
        kinds.append([_value(rng, depth + 1) for _ in range(3)])
        kinds.append({"to": _value(rng, depth + 1), "seconds": _value(rng, depth + 1), "service": "faults.told"})
    return rng.choice(kinds)
