"""Field tables and strings, in RabbitMQ's dialect of AMQP 0-9-1: values to bytes and back.

Text that is not UTF-8 is kept byte for byte (`surrogateescape`), as what comes from abroad must not end a connection.
The types: https://www.rabbitmq.com/docs/amqp-0-9-1-errata#section_3
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

# Most messages of a queue have the same few headers; larger tables are seldom the same twice.
MAX_REMEMBERED_TABLE = 512
MAX_REMEMBERED_TEXT = 200
_SELDOM_REPEATED = frozenset({"parent", "traceparent"})
_PARENT = b"\x06parent"
_WITH_PARENT = len(_PARENT) + 5 + 32  # bytes of a table with nothing but a parent of ackback's own

_TEXT = ord("S")
_LENGTHS = [bytes([length]) for length in range(256)]
_LONG = struct.Struct(">I")
_TIMESTAMP = struct.Struct(">Q")


# Writing


def shortstr(text: str) -> bytes:
    """A string of at most 255 bytes, with its length before it."""
    encoded = text.encode("utf-8", "surrogateescape")
    try:
        return _LENGTHS[len(encoded)] + encoded
    except IndexError:
        raise ValueError(f"AMQP allows 255 bytes here, not {len(encoded)}: {text[:40]!r}…") from None


cached_shortstr = lru_cache(maxsize=1024)(shortstr)


def encode_table(table: dict[str, Any]) -> bytes:
    """A field table, with its length before it."""
    encoded = b"".join(
        [
            _text_field(key, value)
            if type(value) is str and len(value) <= MAX_REMEMBERED_TEXT and key not in _SELDOM_REPEATED
            else cached_shortstr(key) + _encode_value(value)
            for key, value in table.items()
        ]
    )
    return _LONG.pack(len(encoded)) + encoded


# Of other headers, few values are new: names, and the words that the protocol itself has.
@lru_cache(maxsize=1024)
def _text_field(key: str, value: str) -> bytes:
    return shortstr(key) + _encode_value(value)


def _encode_value(value: Any) -> bytes:
    if isinstance(value, str):
        encoded = value.encode("utf-8", "surrogateescape")
        return b"S" + _LONG.pack(len(encoded)) + encoded
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return struct.pack(">ci", b"I", value)
        if -(2**63) <= value < 2**63:
            return struct.pack(">cq", b"l", value)
        raise TypeError("AMQP has no type for a whole number of more than 64 bits")
    if isinstance(value, float):
        return struct.pack(">cd", b"d", value)
    if isinstance(value, (bytes, bytearray)):
        return b"x" + _LONG.pack(len(value)) + value
    if isinstance(value, list):
        encoded = b"".join(_encode_value(item) for item in value)
        return b"A" + _LONG.pack(len(encoded)) + encoded
    if isinstance(value, dict):
        return b"F" + encode_table(value)
    if isinstance(value, datetime):
        return b"T" + _TIMESTAMP.pack(int(value.timestamp()))
    if isinstance(value, Decimal):
        return _encode_decimal(value)
    raise TypeError(f"AMQP has no type for a {type(value).__name__}")


def _encode_decimal(value: Decimal) -> bytes:
    exponent = value.as_tuple().exponent
    scale = -exponent if isinstance(exponent, int) and exponent < 0 else 0
    return struct.pack(">cBi", b"D", scale, int(value.scaleb(scale)))


# Reading


def read_shortstr(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    if end > len(data):
        raise ValueError("a string ends too late")
    return data[at + 1 : end].decode("utf-8", "surrogateescape"), end


def _read_timestamp(data: bytes, at: int) -> tuple[datetime | None, int]:
    seconds = _TIMESTAMP.unpack_from(data, at)[0]
    if seconds > 0xFFFFFFFF:  # some clients send milliseconds
        seconds /= 1000
    try:
        return datetime.fromtimestamp(seconds, UTC), at + 8
    except (ValueError, OverflowError, OSError):
        return None, at + 8


def read_table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    size = _LONG.unpack_from(data, at)[0]
    start, end = at + 4, at + 4 + size
    if end > len(data):
        raise ValueError("a table ends too late")
    fields = data[start:end]
    if size > MAX_REMEMBERED_TABLE or (size > _WITH_PARENT and _PARENT in fields):
        return _read_fields(fields), end
    table, has_only_text = _remembered_fields(fields)
    # What is remembered is shared, so it must have no mutable parts.
    return table.copy() if has_only_text else _read_fields(fields), end


@lru_cache(maxsize=1024)
def _remembered_fields(fields: bytes) -> tuple[dict[str, Any], bool]:
    table = _read_fields(fields)
    return table, all(type(value) is str for value in table.values())


def _read_fields(fields: bytes) -> dict[str, Any]:
    at, end, table = 0, len(fields), {}
    while at < end:
        start = at + 1
        at = start + fields[at]
        key = fields[start:at].decode("utf-8", "surrogateescape")
        if fields[at] == _TEXT:
            start = at + 5
            at = start + int.from_bytes(fields[at + 1 : start])
            table[key] = fields[start:at].decode("utf-8", "surrogateescape")
        else:
            table[key], at = _read_value(fields, at)
    if at != end:
        raise ValueError("a table's length is not that of its fields")
    return table


def _read_value(data: bytes, at: int) -> tuple[Any, int]:
    kind = data[at : at + 1]
    at += 1
    if fixed := _FIXED.get(kind):
        return fixed.unpack_from(data, at)[0], at + fixed.size
    if kind in (b"S", b"x"):
        start = at + 4
        end = start + _LONG.unpack_from(data, at)[0]
        if end > len(data):
            raise ValueError("a string ends too late")
        return data[start:end].decode("utf-8", "surrogateescape") if kind == b"S" else data[start:end], end
    if kind == b"t":
        return data[at] != 0, at + 1
    if kind in (b"V", b"\x00"):
        return None, at
    if kind == b"F":
        return read_table(data, at)
    if kind == b"A":
        return _read_array(data, at)
    if kind == b"T":
        return _read_timestamp(data, at)
    if kind == b"D":
        scale, digits = struct.unpack_from(">Bi", data, at)
        return Decimal(digits).scaleb(-scale), at + 5
    raise ValueError(f"there is no field type {kind!r}")


_FIXED = {
    b"b": struct.Struct(">b"),
    b"B": struct.Struct(">B"),
    b"s": struct.Struct(">h"),
    b"u": struct.Struct(">H"),
    b"I": struct.Struct(">i"),
    b"i": struct.Struct(">I"),
    b"l": struct.Struct(">q"),
    b"L": struct.Struct(">q"),
    b"f": struct.Struct(">f"),
    b"d": struct.Struct(">d"),
}


def _read_array(data: bytes, at: int) -> tuple[list[Any], int]:
    end = at + 4 + _LONG.unpack_from(data, at)[0]
    if end > len(data):
        raise ValueError("an array ends too late")
    at += 4
    array = []
    while at < end:
        value, at = _read_value(data, at)
        array.append(value)
    if at != end:
        raise ValueError("an array's length is not that of its items")
    return array, end
