"""From a message's body to what `handle` is called with, and from what it returns or raises to an outcome."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Any

from pydantic_core import PydanticUndefined

from broker.errors import InvalidInputError
from broker.hosting.definition import ServiceDefinition
from broker.protocol import bodies
from broker.protocol import headers as h
from broker.protocol.message import Message, Reply
from broker.protocol.outcomes import NOTHING, Outcome, failure, reply, retried
from broker.protocol.problems import problem
from broker.retry import Reject


class TimeoutExceeded(TimeoutError):
    """The handler took longer than the service's `timeout`."""


class TooLarge(Exception):
    """A body of more bytes than the configuration allows."""

    def __init__(self, size: int, maximum: int) -> None:
        super().__init__(f"the body has {size} bytes; at most {maximum} are allowed ([worker] max_body)")


def failure_in(error: BaseException) -> Exception:
    """What a handler raised, as its failure.

    Raises:
        BaseException: it is no failure: the handling was cancelled, or the process is to end.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, SystemExit):
        return RuntimeError(f"the handler called sys.exit({error.code!r})")
    if isinstance(error, asyncio.CancelledError) and not ((task := asyncio.current_task()) and task.cancelling()):
        return RuntimeError("the handler raised CancelledError")
    raise error


def arguments(definition: ServiceDefinition, message: Message, is_reply: bool) -> tuple[Any, ...]:
    """What `handle` is called with.

    Raises:
        InvalidInputError: the body is not what it takes.
    """
    if not definition.has_parameter:
        return ()
    if not message.body and definition.default is not PydanticUndefined:
        return (definition.default,)
    assert definition.takes is not None
    return (bodies.validate(message, definition.takes, or_text=is_reply),)


def answer(definition: ServiceDefinition, message: Message, response: Any) -> Outcome:
    """The reply, if one is wanted. The response is serialised in any case: a bad one should not depend on who asks."""
    replied = reply(message, definition.name, *encoded(definition, response))
    return NOTHING if replied is None else Outcome(replied)


def encoded(definition: ServiceDefinition, response: Any) -> tuple[bytes, str, dict[str, Any] | None]:
    """A response's body, content type and further headers.

    Raises:
        TypeError: it cannot be serialised.
    """
    content_type, headers = None, None
    returns = definition.returns
    if isinstance(response, Reply):
        content_type, headers, response, returns = response.content_type, response.headers, response.payload, None
    try:
        body, default_type = bodies.encode(response, returns)
    except bodies.UnserialisableError as error:
        raise TypeError(f"the response of {definition.name!r} cannot be serialised: {error}") from None
    return body, content_type or default_type, headers


def failed(definition: ServiceDefinition, message: Message, is_reply: bool, error: Exception) -> Outcome:
    """Another attempt at the message if there is one left, else its end."""
    name = definition.name
    attempt = message.headers.get(h.ATTEMPT, 1)
    attempt = attempt if isinstance(attempt, int) else 1
    seconds = wait(definition, attempt, error)
    if seconds is None:
        outcome = final(name, message, attempt, error)
        if is_reply and outcome.dead:
            outcome.dead.message.headers.setdefault(h.STATUS, h.OK)  # or it would be replayed as a request
        return outcome
    log = logging.getLogger(name)
    what = f"{type(error).__name__}: {error}"
    if message.expiration is not None and seconds * 1000 >= message.expiration:
        log.warning("failed, and expires before attempt %d: %s", attempt + 1, what)
        detail = f"it expires before it can be tried again; attempt {attempt} failed: {what}"
        return failure(message, "expired", problem("expired", "Expired", detail, name, attempt))
    log.warning("attempt %d failed: %s; the next one in %d s", attempt, what, seconds)
    told = problem("error", type(error).__name__, str(error), name, attempt)
    return retried(message, name, attempt + 1, seconds, told, is_reply=is_reply)


def wait(definition: ServiceDefinition, attempt: int, error: Exception) -> int | None:
    """Seconds until the next attempt; None if there is none."""
    if definition.retry is None or isinstance(error, (InvalidInputError, TooLarge, Reject)):
        return None
    return definition.retry.wait(attempt, error)


def final(name: str, message: Message, attempts: int, error: Exception) -> Outcome:
    """Say in the log, the reply and the dead letter why a message ends here."""
    log = logging.getLogger(name)
    if isinstance(error, InvalidInputError):
        log.warning("invalid input: %s", error)
        return failure(
            message,
            "invalid",
            problem("invalid", "Invalid input", str(error), name, attempts, errors=tuple(error.errors)),
        )
    if isinstance(error, TooLarge):
        log.warning("too large: %s", error)
        return failure(message, "too-large", problem("too-large", "Too large", str(error), name, attempts))
    if isinstance(error, Reject):
        log.warning("rejected: %s", error)
        return failure(message, "rejected", problem("rejected", "Rejected", str(error), name, attempts))
    if isinstance(error, TimeoutExceeded):
        log.error("timeout: %s", error)
        return failure(message, "error", problem("timeout", "Timeout", str(error), name, attempts))
    log.error("failed: %s: %s", type(error).__name__, error, exc_info=error)
    text = "".join(traceback.format_exception(error))
    return failure(message, "error", problem("error", type(error).__name__, str(error), name, attempts), text)
