"""Which callback services a reply is for, and whether it is handled here and now or passed on to their queues."""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import InvalidInputError
from broker.headers import Headers
from broker.message import Message
from broker.naming import callback_name
from broker.outcome import Outcome, failure, forwards, problem
from broker.registry import ServiceDefinition


def names_for(headers: Headers) -> tuple[str, ...]:
    """The names in header `callback`, else the convention's for the source; empty if the reply has neither."""
    if headers.callbacks:
        return headers.callbacks
    return (callback_name(headers.source),) if headers.source else ()


def route(
    message: Message, headers: Headers, cid: str, free: Callable[[str], ServiceDefinition | None]
) -> ServiceDefinition | Outcome:
    """Decide what to do with a reply that came to the callback queue: the callback to run here and now, or what to publish.

    `free` gives a hosted service by name if it has a free slot.
    """
    names = names_for(headers)
    if not names:
        return no_callback(
            message, "the reply names no callback: it has neither a header 'callback' nor a header 'source'"
        )
    if len(names) == 1 and (callback := free(names[0])):
        return callback
    return forwards(message, cid, names)


def no_callback(message: Message, detail: str, name: str = "") -> Outcome:
    """The end of a reply that no callback service takes: a dead letter."""
    return failure(message, "no-callback", problem("no-callback", "No callback", detail, name))


def unreadable(message: Message, error: InvalidInputError) -> Outcome:
    """The end of a reply whose headers are nonsense: a dead letter."""
    return failure(message, "invalid", problem("invalid", "Invalid headers", str(error), ""))
