"""A message as a line of JSON and back, with nothing lost: every property, and headers of every type that AMQP has.

What JSON has no type for is an object with one member whose name begins with `$`: `$bytes` (base64), `$timestamp` (RFC 3339),
`$decimal`, `$float` (what is no number), `$table` (a table that would look like one of these).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from broker.protocol.message import Message

_READERS: dict[str, Callable[[Any], Any]] = {
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$timestamp": datetime.fromisoformat,
    "$decimal": Decimal,
    "$float": float,
    "$table": lambda table: {key: _read(value) for key, value in table.items()},
}
_FIELDS = {field.name for field in dataclasses.fields(Message)}


def dumps(message: Message) -> str:
    """The message as one line of JSON, without properties that it does not have."""
    values = {name: getattr(message, name) for name in _FIELDS}
    values["body"] = _body(message.body)
    values["headers"] = {key: _written(value) for key, value in message.headers.items()}
    return json.dumps({name: values[name] for name in sorted(values) if values[name] not in (None, {})})


def loads(line: str) -> Message:
    """The message of a line that `dumps` wrote.

    Raises:
        ValueError: it is not such a line; the message says why.
    """
    try:
        values = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict) or "body" not in values:
        raise ValueError("it is not a JSON object with a body")
    if unknown := sorted(set(values) - _FIELDS):
        raise ValueError(f"unknown property {unknown[0]!r}")
    try:
        body = _read(values.pop("body"))
        headers = {key: _read(value) for key, value in values.pop("headers", {}).items()}
        message = Message(body.encode() if isinstance(body, str) else body, headers, **values)
        _check_types(message)
    except (AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError(f"a value has a wrong type: {error}") from None
    return message


def _check_types(message: Message) -> None:
    if not isinstance(message.body, bytes):
        raise TypeError("the body is neither text nor bytes")
    for name in _FIELDS - {"body", "headers"}:
        wanted = int if name in ("expiration", "priority", "timestamp") else str
        value = getattr(message, name)
        if value is not None and type(value) is not wanted:
            raise TypeError(f"{name} is a {type(value).__name__}")


def _body(body: bytes) -> Any:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return _written(body)


def _written(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return {"$timestamp": value.isoformat()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, list):
        return [_written(one) for one in value]
    if isinstance(value, dict):
        table = {key: _written(one) for key, one in value.items()}
        return {"$table": table} if _tag(table) else table
    return value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(one) for one in value]
    if isinstance(value, dict):
        if tag := _tag(value):
            return _READERS[tag](value[tag])
        return {key: _read(one) for key, one in value.items()}
    return value


def _tag(table: dict[str, Any]) -> str | None:
    name = next(iter(table)) if len(table) == 1 else None
    return name if name in _READERS else None
