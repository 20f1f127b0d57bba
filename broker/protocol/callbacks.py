"""Which callback services a reply is for, and the end of one that is for nobody."""

from __future__ import annotations

from copy import copy

from broker.errors import InvalidInputError
from broker.protocol.headers import CALLBACK, Headers
from broker.protocol.message import Message
from broker.protocol.names import callback_name
from broker.protocol.outcomes import Outcome, failure
from broker.protocol.problems import problem
from broker.protocol.queues import ADDRESSED

SENT_TO = "x-first-death-queue"
_DEATHS = ("x-death", "x-first-death-", "x-last-death-")

NONE_NAMED = "the reply names no callback: it has neither a header 'callback' nor a header 'source'"


def names_for(headers: Headers) -> tuple[str, ...]:
    """The names in header `callback`, else the convention's for the source; empty if the reply has neither."""
    if headers.callbacks:
        return headers.callbacks
    return (callback_name(headers.source),) if headers.source else ()


def sent_to(message: Message, callback_queue: str) -> str | None:
    """The callback that the queue names which a reply was sent to; None if that names none."""
    queue = message.headers.get(SENT_TO)
    prefix = callback_queue + ADDRESSED
    return queue.removeprefix(prefix) if isinstance(queue, str) and queue.startswith(prefix) else None


def by_address(message: Message, callback_queue: str) -> Message:
    """A reply to the callback queue with its callback in its headers, where the queue that it was sent to says which that is."""
    callback = sent_to(message, callback_queue)
    if callback is None:
        return message
    named = copy(message)
    named.headers = {key: value for key, value in message.headers.items() if not key.startswith(_DEATHS)}
    named.headers.setdefault(CALLBACK, callback)
    return named


def no_callback(message: Message, detail: str, name: str = "") -> Outcome:
    """The end of a reply that no callback service takes: a dead letter."""
    return failure(message, "no-callback", problem("no-callback", "No callback", detail, name))


def unreadable(message: Message, error: InvalidInputError) -> Outcome:
    """The end of a reply whose headers are nonsense: a dead letter."""
    return failure(message, "invalid", problem("invalid", "Invalid headers", str(error), ""))
