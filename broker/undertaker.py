"""Deaths that only the broker sees: messages that expired in a queue, or were delivered too often.

RabbitMQ moves them to the undertaker's queue with an `x-death` header
(https://www.rabbitmq.com/docs/dlx#effects); here they become dead letters like all others, and whoever waits for a reply gets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.cid import new_cid
from broker.message import Message
from broker.outcome import Outcome, failure, problem

# The broker's word for the death: our reason, a title, and what happened.
_DEATHS = {
    "expired": ("expired", "Expired", "it was not handled before its expiration"),
    "delivery_limit": ("delivery-limit", "Delivery limit", "it was delivered again and again and never finished"),
}


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
    count = message.headers.get("x-delivery-count")
    attempts = count + 1 if isinstance(count, int) and reason == "delivery-limit" else 1
    return failure(message, reason, problem(reason, title, detail, str(death.get("queue", "")), attempts))


def _latest_death(message: Message) -> Mapping[str, Any]:
    deaths = message.headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return deaths[0]
    return {}
