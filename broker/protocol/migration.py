"""Bringing a queue over to other arguments: what is noted on the way, so that it can be interrupted anywhere.

RabbitMQ changes no arguments of a queue that exists. So its messages move to a queue beside it, it is deleted and declared anew, and
they move back. Each move goes batch by batch: the batch is noted, published to the other queue, confirmed, and acknowledged as one. The
note has how many messages were on both queues before. So after an interruption it is known how many of the batch are there already.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

from broker.protocol.archive import dumps
from broker.protocol.message import Message
from broker.protocol.queues import MIGRATION

BESIDE = f"{MIGRATION}.messages"
LOCK = f"{MIGRATION}.lock"
EXPIRATION = "ackback-migration-expiration"

_COUNTS = ("x-delivery-count", "x-acquired-count")


@dataclass(frozen=True, slots=True)
class Note:
    """How far the bringing over of `queue` has got: it moves `out` of it, or `back`.

    Of the batch under way: the digests of its messages, how many were on the queue that it comes from (its own included) and on the one
    that it goes to, and whether that one has got other messages, too.
    """

    queue: str
    direction: Literal["out", "back"]
    batch: Sequence[str] = ()
    left: int = 0
    arrived: int = 0
    others: bool = False
    number: int = 0

    def encode(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, body: bytes) -> Note:
        return cls(**json.loads(body))


def digest(message: Message) -> str:
    """What tells a message from others, however often it has been delivered. RabbitMQ 3 gives headers in another order then."""
    members = json.loads(dumps(_uncounted(message)))
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()


def set_aside(message: Message) -> Message:
    """The message as it waits on the queue beside: nothing there may expire."""
    kept = _uncounted(message)
    if message.expiration is not None:
        kept.headers[EXPIRATION] = message.expiration
        kept.expiration = None
    return kept


def put_back(message: Message) -> Message:
    """The message as it was before it was set aside. How long it may live counts from now on."""
    original = _uncounted(message)
    original.expiration = original.headers.pop(EXPIRATION, None)
    return original


def _uncounted(message: Message) -> Message:
    """A copy without RabbitMQ's counts of deliveries, and without what it would act on: `CC` names further queues, and only its
    own user may be named as the publisher."""
    kept = copy(message)
    kept.user_id = None
    kept.headers = {name: value for name, value in message.headers.items() if name not in (*_COUNTS, "CC")}
    return kept
