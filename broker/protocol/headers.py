"""The AMQP headers of the wire protocol: their names, and how they are read from what anybody may have sent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from broker.errors import InvalidInputError
from broker.protocol.message import Message
from broker.protocol.names import name_problem

CALLBACK = "callback"
SOURCE = "source"
PARENT = "parent"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
ATTEMPT = "attempt"
SERVICE = "service"
STATUS = "status"
DEADLINE = "deadline"
"""When the caller stops waiting for the reply: milliseconds since 1970."""
OK = "ok"
ERROR = "error"

TRACING = (TRACEPARENT, TRACESTATE)
ECHOED = (CALLBACK, SOURCE, PARENT, *TRACING)
OWN = frozenset({*ECHOED, ATTEMPT, SERVICE, STATUS, DEADLINE})
MAX_CALLBACKS = 64
# As much as W3C asks of those who pass tracestate on: https://www.w3.org/TR/trace-context/#tracestate-limits
MAX_TEXT = 512


class Headers(NamedTuple):
    """What the protocol's headers of a message say."""

    callbacks: tuple[str, ...] = ()
    source: str | None = None
    attempt: int = 1
    status: str | None = None


_NONE = Headers()
_TEXTS = (PARENT, *TRACING, SERVICE)


def read(message: Message) -> Headers:
    """Read and check the protocol's headers.

    Raises:
        InvalidInputError: one has a wrong type or an impossible value; the message names it.
    """
    headers = message.headers
    if not headers:
        return _NONE
    for name in _TEXTS:
        if name in headers:
            _text(name, headers[name])
    values = headers.get(CALLBACK), headers.get(SOURCE), headers.get(ATTEMPT), headers.get(STATUS)
    try:
        return _checked(*values)
    except TypeError:  # a list cannot be remembered
        return _checked.__wrapped__(*values)


def deadline(message: Message) -> float | None:
    """When the caller stops waiting for the reply, in seconds since 1970; None if it does not say.

    Raises:
        InvalidInputError: the header is no whole number.
    """
    if (value := message.headers.get(DEADLINE)) is None:
        return None
    if type(value) is not int:
        raise InvalidInputError(f"header {DEADLINE!r} is a whole number of milliseconds, not {type(value).__name__}")
    return value / 1000


# The same few names come again and again. `typed`, as True is no attempt but equals 1.
@lru_cache(maxsize=4096, typed=True)
def _checked(callback: Any, source: Any, attempt: Any, status: Any) -> Headers:
    if _text(SOURCE, source) is not None and (problem := name_problem(source)):
        raise InvalidInputError(f"header 'source' is not a service's name: {problem}")
    return Headers(_callbacks(callback), source, _attempt(attempt), _text(STATUS, status))


def _callbacks(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    names = value if isinstance(value, list) else [value]
    if len(names) > MAX_CALLBACKS:
        raise InvalidInputError(f"header 'callback' lists {len(names)} names; {MAX_CALLBACKS} are allowed")
    for name in names:
        if problem := name_problem(name):
            raise InvalidInputError(f"header 'callback' is not a service's name or a list of names: {problem}")
    return tuple(dict.fromkeys(names))


def echoed(headers: Mapping[str, Any]) -> dict[str, Any]:
    """What a reply repeats of its request's headers."""
    return {name: headers[name] for name in ECHOED if name in headers}


def echoed_if_readable(headers: Mapping[str, Any]) -> dict[str, Any]:
    """What a reply repeats of headers that may be nonsense."""
    return {name: value for name, value in echoed(headers).items() if _is_readable(name, value)}


def _is_readable(name: str, value: Any) -> bool:
    try:
        _callbacks(value) if name == CALLBACK else _text(name, value)
    except InvalidInputError:
        return False
    return True


def check_encodable(value: Any, name: str) -> None:
    """Check that AMQP has a type for a header's value.

    Raises:
        TypeError: it has none; the message names the header.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or len(key.encode()) > 255:
                raise TypeError(f"header {name!r} has the key {key!r:.40}; keys are strings of at most 255 bytes")
            check_encodable(item, name)
    elif isinstance(value, list):
        for item in value:
            check_encodable(item, name)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TypeError(f"header {name!r} has a whole number of more than 64 bits")
    elif not isinstance(value, (str, bytes, bytearray, int, float, bool, datetime, Decimal, type(None))):
        raise TypeError(f"header {name!r} holds a {type(value).__name__}, for which AMQP has no type")


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInputError(f"header {name!r} must be a string, not {type(value).__name__}")
    if len(value) > MAX_TEXT:
        raise InvalidInputError(f"header {name!r} has {len(value)} characters; {MAX_TEXT} are allowed")
    return value


def _attempt(value: Any) -> int:
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError("header 'attempt' must be a whole number from 1 up")
    return value
