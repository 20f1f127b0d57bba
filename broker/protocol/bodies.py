"""Between a message's body and a Python value, both ways.

The content type decides. Without one, a body is JSON if it parses, else text if it is UTF-8, else bytes. Nothing
but JSON and text is ever interpreted: no pickle, no code.
"""

from __future__ import annotations

import codecs
import json
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from broker.errors import InvalidInputError
from broker.protocol import amqp_value
from broker.protocol.message import Message

JSON = "application/json"
TEXT = "text/plain"
BINARY = "application/octet-stream"

# RFC 2045 transfer encodings that leave the body as it is; kombu writes 'binary' on every bytes body.
_NO_ENCODING = frozenset({"", "identity", "binary", "8bit", "7bit"})


class UnserialisableError(TypeError):
    """A value cannot be a message's body."""


def encode(value: Any, adapter: TypeAdapter[Any] | None = None) -> tuple[bytes, str]:
    """Turn a value into a body and its content type: `str` as text, `bytes` as they are, the rest as JSON.

    Raises:
        UnserialisableError: the value has no JSON form; the message names its type.
    """
    if isinstance(value, str):
        return value.encode(), TEXT
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), BINARY
    try:
        if adapter is not None:
            return adapter.serializer.to_json(value, warnings=False), JSON
        return to_json(value, inf_nan_mode="null"), JSON
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise UnserialisableError(f"a {type(value).__qualname__} cannot be sent as JSON: {error}") from error


def decode(message: Message) -> Any:
    """The body as its content type says: the parsed value of JSON, a `str` of text, else `bytes`.

    An empty body of JSON or of no type at all is the empty string.

    Raises:
        InvalidInputError: the body is not what its content type or encoding says.
    """
    kind = media_type(message)
    if not message.body:
        return b"" if kind not in ("", "json", "text") else ""
    if kind == "json":
        return _parse(message.body)
    if kind == "text":
        return text(message)
    if kind == amqp_value.TYPE:
        return amqp_value.decode(message.body)
    if kind == "":
        try:
            return json.loads(message.body)
        except (ValueError, RecursionError):
            pass
        try:
            return message.body.decode()
        except UnicodeDecodeError:
            pass
    return message.body


def text(message: Message) -> str:
    """The body as text, in the character set that the message names, else UTF-8. An AMQP 1.0 value that is no text is JSON.

    Raises:
        InvalidInputError: it is not text of that character set.
    """
    if is_amqp_value(message):
        return _text_of(amqp_value.decode(message.body))
    charset = _charset(message)
    try:
        return message.body.decode(charset)
    except UnicodeDecodeError:
        raise InvalidInputError(f"the body is not text in {charset}") from None


def is_amqp_value(message: Message) -> bool:
    """Whether RabbitMQ hands on what an AMQP 1.0 client has sent as a value, in its encoding."""
    return message.type == amqp_value.TYPE and not message.content_type


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode() if isinstance(value, bytes) else to_json(value).decode()
    except (UnicodeDecodeError, PydanticSerializationError) as error:
        raise InvalidInputError(f"the body is no text: {error}") from None


def validate(message: Message, adapter: TypeAdapter[Any], *, or_text: bool = False) -> Any:
    """The body as a value of the adapter's type.

    JSON is tried before text unless the content type says text, so that `str` takes a text body as it stands and
    a model takes its JSON even from a client that calls it text. With `or_text`, as in a callback, where the payload is
    the response's text, JSON that is not valid is tried as text, too.

    Raises:
        InvalidInputError: it is not valid; `errors` has pydantic's locations and messages, never the input.
    """
    body = message.body
    if message.content_type == JSON and message.content_encoding is None:
        try:
            return adapter.validator.validate_json(body)
        except ValidationError:
            pass  # the rare case: find out why, or whether it is text
    kind = media_type(message)
    if kind == "json" and not or_text:
        return _validated(adapter.validate_json, body)
    if kind == "text":
        return _first_valid((adapter.validate_python, text(message)), (adapter.validate_json, body))
    if kind == amqp_value.TYPE:
        value = amqp_value.decode(body)
        as_json = [(adapter.validate_json, value)] if isinstance(value, (str, bytes)) else []
        return _first_valid((adapter.validate_python, value), *as_json)
    if kind in ("", "json"):
        try:
            return _first_valid((adapter.validate_json, body), (adapter.validate_python, body.decode()))
        except UnicodeDecodeError:
            return _validated(adapter.validate_python, body)
    return _validated(adapter.validate_python, body)


def media_type(message: Message) -> str:
    """Which way to read the body: `json`, `text`, empty when the sender does not say, or the type itself. `amqp-1.0` is a value.

    Raises:
        InvalidInputError: the body is compressed or encoded in a way that is not understood.
    """
    encoding = (message.content_encoding or "").lower()
    if encoding not in _NO_ENCODING and not _is_charset(encoding):
        raise InvalidInputError(f"content encoding {encoding[:40]!r} is not supported; send the body as it is")
    name = (message.content_type or "").partition(";")[0].strip().lower()
    if is_amqp_value(message):
        return amqp_value.TYPE
    if name == JSON or name.endswith("+json"):
        return "json"
    return "text" if name.startswith("text/") else name


def _first_valid(*attempts: tuple[Any, Any]) -> Any:
    first: InvalidInputError | None = None
    for validator, value in attempts:
        try:
            return _validated(validator, value)
        except InvalidInputError as error:
            first = first or error
    assert first is not None
    raise first


def _validated(validator: Any, value: Any) -> Any:
    try:
        return validator(value)
    except ValidationError as error:
        errors: list[dict[str, object]] = [
            {"loc": list(one["loc"]), "msg": one["msg"], "type": one["type"]}
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise InvalidInputError(_summary(errors), errors) from None


def _summary(errors: list[dict[str, object]]) -> str:
    def place(loc: object) -> str:
        assert isinstance(loc, list)
        return ".".join(str(part) for part in loc) or "the body"

    shown = "; ".join(f"{place(one['loc'])}: {one['msg']}" for one in errors[:5])
    return shown + (f"; and {len(errors) - 5} more" if len(errors) > 5 else "")


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the body is not JSON: {_where(error)}") from None


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it is not UTF-8"


def _charset(message: Message) -> str:
    parameters = (message.content_type or "").partition(";")[2]
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"')
            if not _is_charset(charset):
                raise InvalidInputError(f"character set {charset[:40]!r} is not known")
            return charset
    encoding = message.content_encoding or ""
    return encoding if encoding and _is_charset(encoding) else "utf-8"


def _is_charset(name: str) -> bool:
    try:
        # Python also registers transforms such as 'zlib' as codecs: those are not character sets.
        return codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        return False
