"""Plain values: a message, a response with its own content type, a problem."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PROBLEM_CONTENT_TYPE = "application/problem+json"
PROBLEM_TYPE = "urn:ackback:problem:"


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


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an invocation failed: the body of a failure reply (RFC 9457, `application/problem+json`).

    `type` is a URN that ends in the reason (`urn:ackback:problem:invalid`), `title` names the error in a
    few words, `detail` says what happened. `attempts` counts the times the service was tried.
    """

    type: str
    title: str
    detail: str
    service: str
    attempts: int = 1
    errors: tuple[dict[str, object], ...] = ()

    @property
    def reason(self) -> str:
        """The last word of `type`: `error`, `rejected`, `invalid`, `expired`, `timeout`, …"""
        return self.type.removeprefix(PROBLEM_TYPE)

    def to_json(self, **more: object) -> bytes:
        """The problem as a JSON object, with `more` members added."""
        members: dict[str, object] = {
            "type": self.type,
            "title": self.title,
            "detail": self.detail,
            "service": self.service,
            "attempts": self.attempts,
        }
        if self.errors:
            members["errors"] = list(self.errors)
        return json.dumps(members | more, default=str).encode()

    @classmethod
    def from_json(cls, body: bytes, service: str) -> Problem:
        """Read a failure reply. A body of any other shape, as a foreign replier may send, becomes the detail."""
        try:
            members = json.loads(body)
        except ValueError:
            members = None
        if not isinstance(members, dict):
            members = {"detail": body.decode("utf-8", "replace")}
        attempts, errors = members.get("attempts"), members.get("errors")
        return cls(
            type=str(members.get("type", "about:blank")),
            title=str(members.get("title", "The service failed")),
            detail=str(members.get("detail", "")),
            service=str(members.get("service", service)),
            attempts=attempts if isinstance(attempts, int) else 1,
            errors=tuple(one for one in errors if isinstance(one, dict)) if isinstance(errors, list) else (),
        )
