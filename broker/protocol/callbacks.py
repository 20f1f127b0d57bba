"""Which callback services a reply is for, and the end of one that is for nobody."""

from __future__ import annotations

from broker.errors import InvalidInputError
from broker.protocol.headers import Headers
from broker.protocol.message import Message
from broker.protocol.names import callback_name
from broker.protocol.outcomes import Outcome, failure
from broker.protocol.problems import problem

NONE_NAMED = "the reply names no callback: it has neither a header 'callback' nor a header 'source'"


def names_for(headers: Headers) -> tuple[str, ...]:
    """The names in header `callback`, else the convention's for the source; empty if the reply has neither."""
    if headers.callbacks:
        return headers.callbacks
    return (callback_name(headers.source),) if headers.source else ()


def no_callback(message: Message, detail: str, name: str = "") -> Outcome:
    """The end of a reply that no callback service takes: a dead letter."""
    return failure(message, "no-callback", problem("no-callback", "No callback", detail, name))


def unreadable(message: Message, error: InvalidInputError) -> Outcome:
    """The end of a reply whose headers are nonsense: a dead letter."""
    return failure(message, "invalid", problem("invalid", "Invalid headers", str(error), ""))
