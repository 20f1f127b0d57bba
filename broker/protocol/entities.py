"""Queues, exchanges and bindings, which AMQP 0-9-1 calls entities (https://www.rabbitmq.com/tutorials/amqp-concepts#amqp-model)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, or one that belongs to its connection alone and goes with it (`exclusive`)."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    exclusive: bool = False

    def __str__(self) -> str:
        return f"queue {self.name!r}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange, `topic` or `fanout`."""

    name: str
    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"exchange {self.name!r}"


@dataclass(frozen=True, slots=True)
class Binding:
    """What `exchange` gets goes to `to`, a queue or another exchange, where the routing key matches `pattern`."""

    exchange: str
    to: Queue | Exchange
    pattern: str = ""

    def __str__(self) -> str:
        return f"binding of exchange {self.exchange!r} to {self.to}"
