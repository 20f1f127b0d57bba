"""Deaths that only the broker sees: messages that expired in a queue, or were delivered too often.

RabbitMQ moves them to the undertaker's queue with an `x-death` header
(https://www.rabbitmq.com/docs/dlx#effects); here they become dead letters like all others, and whoever waits for a reply gets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from broker.errors import InvalidInputError
from broker.protocol import delays, quarantine
from broker.protocol.cids import new_cid
from broker.protocol.message import Message
from broker.protocol.outcomes import Outcome, failure
from broker.protocol.problems import problem
from broker.protocol.queues import is_call, own_queue

# The broker's word for the death: our reason, a title, and what happened.
_DEATHS = {
    "expired": ("expired", "Expired", "it was not handled before its expiration"),
    "delivery_limit": (
        "delivery-limit",
        "Delivery limit",
        "it was delivered again and again and never finished: does it end the process that handles it?",
    ),
}


def convict(message: Message) -> Outcome:
    """The end of a message that has killed its process in quarantine."""
    reason, title, detail = _DEATHS["delivery_limit"]
    count = quarantine.crashes(message.headers, redelivered=True)
    service, before, message = _service_of(message, "")
    return failure(message, reason, problem(reason, title, detail, service, before + count))


def expired_call(message: Message) -> str | None:
    """The queue in which a call has expired that its caller waits for no longer, by the name of its reply queue; None for all else."""
    death = _latest_death(message)
    return str(death.get("queue", "")) if death.get("reason") == "expired" and is_call(message) else None


def bury(message: Message) -> Outcome:
    """The dead letter, and the failure reply if one is wanted, for a message that the broker gave up on."""
    message.correlation_id = message.correlation_id or new_cid()
    death = _latest_death(message)
    told = str(death.get("reason", ""))
    reason, title, detail = _DEATHS.get(
        told, ("error", "Given up by RabbitMQ", f"RabbitMQ gave it up: {told or 'it does not say why'}")
    )
    expiration = death.get("original-expiration")
    if message.expiration is None and isinstance(expiration, str) and expiration.isdigit():
        message.expiration = int(expiration)
    queue = str(death.get("queue", ""))
    attempts = _deliveries(message, queue) if reason == "delivery-limit" else 1
    service, deliveries, message = _service_of(message, queue)
    return failure(message, reason, problem(reason, title, detail, service, attempts + deliveries))


def _deliveries(message: Message, queue: str) -> int:
    # RabbitMQ 3 does not count in what it dead-letters.
    count = quarantine.crashes(message.headers, redelivered=True)
    return count or own_queue(queue).arguments["x-delivery-limit"] + 1


def _service_of(message: Message, queue: str) -> tuple[str, int, Message]:
    """The service that a message was for, its deliveries before the queue that it died in, and the message as that service would
    have got it."""
    with suppress(InvalidInputError):
        if quarantine.QUARANTINE in message.headers:
            return quarantine.released(message)
        if delays.DELAYED in message.headers:
            publishing = delays.due(message).publishing
            return delays.target(publishing), 0, publishing.message
    return queue, 0, message


def _latest_death(message: Message) -> Mapping[str, Any]:
    deaths = message.headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return deaths[0]
    return {}
