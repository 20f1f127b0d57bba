"""Plain values: a message, a message and where it goes, a response with its own content type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(slots=True)
class Message:
    """An AMQP 0-9-1 message: a body and its properties, named as the specification names them.

    `expiration` is in milliseconds, `timestamp` in whole seconds since 1970. `delivery_mode` is left out: everything ackback
    publishes is persistent.
    """

    body: bytes = b""
    headers: dict[str, Any] = field(default_factory=dict)
    content_type: str | None = None
    content_encoding: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    expiration: int | None = None
    priority: int | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


class Publishing(NamedTuple):
    """A message and where it goes: by way of the default exchange, to the queue that the routing key names."""

    routing_key: str
    message: Message
    exchange: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What `handle` returns when the response needs a content type or headers of its own.

    `payload` is anything that could be returned alone. `headers` are added to those that every reply carries.
    """

    payload: Any
    content_type: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
