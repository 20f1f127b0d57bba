"""Reading the dead letters: what each died of, which ones are meant, and what is to be published to try one again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from broker.protocol import headers as h
from broker.protocol.message import Message, Publishing
from broker.protocol.names import name_problem
from broker.protocol.outcomes import (
    DEAD_AT,
    DEAD_ATTEMPTS,
    DEAD_ERROR,
    DEAD_ORIGINAL,
    DEAD_REASON,
    DEAD_SERVICE,
    NOTES_ON_DELIVERIES,
)

REASONS = ("error", "rejected", "invalid", "expired", "delivery-limit", "no-callback", "unroutable", "too-large")

_DEAD = frozenset({DEAD_REASON, DEAD_SERVICE, DEAD_ATTEMPTS, DEAD_AT, DEAD_ERROR, DEAD_ORIGINAL})
MAX_KIND = 200
"""Characters of an error that tell kinds of dead letters apart."""
_VARIABLE = re.compile(r"""'[^']*'|"[^"]*"|\b(?=[0-9a-fA-F-]*\d)[0-9a-fA-F-]{8,}\b|\d+(?:[.,:-]\d+)*""")
_PROPERTIES = (
    "message_id",
    "reply_to",
    "content_type",
    "content_encoding",
    "priority",
    "timestamp",
    "expiration",
    "type",
    "app_id",
)
_DEATHS = ("x-death", "x-first-death-", "x-last-death-")


class Kind(NamedTuple):
    """Dead letters of one service that died of the same error, its numbers and names left aside."""

    service: str
    reason: str
    title: str
    detail: str

    @property
    def key(self) -> str:
        return hashlib.blake2s("\0".join(self).encode("utf-8", "replace"), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What the headers of a dead letter say. What they do not say, or not properly, is empty."""

    cid: str
    reason: str
    service: str
    attempts: int
    at: datetime | None
    error: dict[str, Any]
    message: Message

    @classmethod
    def of(cls, message: Message) -> DeadLetter:
        headers = {k: v for k, v in message.headers.items() if k not in NOTES_ON_DELIVERIES}
        attempts = headers.get(DEAD_ATTEMPTS)
        return cls(
            message.correlation_id or "",
            str(headers.get(DEAD_REASON, "")),
            str(headers.get(DEAD_SERVICE, "")),
            attempts if isinstance(attempts, int) else 0,
            _time(headers.get(DEAD_AT)),
            _object(headers.get(DEAD_ERROR)),
            replace(message, headers=headers),
        )

    @property
    def key(self) -> str:
        """Tells it apart from the others, also from those with the same CID, and stays the same however often it is looked at."""
        what = (self.cid, self.reason, self.service, str(self.at), str(self.message.message_id))
        return hashlib.blake2s("\0".join(what).encode("utf-8", "replace"), digest_size=8).hexdigest()

    @property
    def kind(self) -> Kind:
        """What it has in common with others that died of the same."""
        title, detail = (str(self.error.get(name, ""))[:MAX_KIND] for name in ("title", "detail"))
        return Kind(self.service, self.reason, title, _VARIABLE.sub("…", detail))

    def properties(self) -> Iterator[tuple[str, Any]]:
        """The message's own properties that are set, the CID aside."""
        for name in _PROPERTIES:
            if (value := getattr(self.message, name)) is not None:
                yield name, value

    def age(self, now: datetime) -> timedelta | None:
        return None if self.at is None else now - self.at

    def replayed(self, callback_queue: str, now: datetime) -> Publishing | None:
        """The original message, to be published to the queue that it was for; None if nothing says which.

        Its attempts begin again, and so does its expiration: it is replayed `now`.
        """
        headers = self.message.headers
        original = headers.get(DEAD_ORIGINAL)
        original = original if isinstance(original, dict) else {}
        queue = original.get("queue") or self.service or (callback_queue if self.reason == "no-callback" else "")
        if not isinstance(queue, str) or (not original.get("queue") and name_problem(queue)):
            return None
        again = copy(self.message)
        again.headers = {k: v for k, v in headers.items() if k not in _DEAD and not k.startswith(_DEATHS)}
        again.headers.pop(h.ATTEMPT, None)
        expiration = original.get("expiration")
        if isinstance(expiration, str) and expiration.isascii() and expiration.isdigit():
            again.expiration = int(expiration)
            again.timestamp = int(now.timestamp())
        return Publishing(queue, again)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant: those that every given condition holds for. Services may be patterns such as `orders.*`."""

    cids: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    services: tuple[str, ...] = ()
    older_than: timedelta | None = None
    newer_than: timedelta | None = None

    def __bool__(self) -> bool:
        return bool(self.cids or self.reasons or self.services or self.older_than or self.newer_than)

    def matches(self, dead: DeadLetter, now: datetime) -> bool:
        age = dead.age(now)
        return (
            (not self.cids or dead.cid in self.cids)
            and (not self.reasons or dead.reason in self.reasons)
            and (not self.services or any(fnmatchcase(dead.service, pattern) for pattern in self.services))
            and (self.older_than is None or (age is not None and age > self.older_than))
            and (self.newer_than is None or (age is not None and age < self.newer_than))
        )


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _object(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
