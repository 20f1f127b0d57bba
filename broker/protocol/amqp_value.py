"""Bodies that AMQP 1.0 clients send as a value, or as a sequence of lists, rather than as data.

RabbitMQ 4 hands them to AMQP 0-9-1 consumers in their AMQP 1.0 encoding, with property `type` = `amqp-1.0` (seen on 4.3.6). The encoding is
http://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-types-v1.0-os.html, the sections are in
http://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-messaging-v1.0-os.html#section-message-format.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from broker.errors import InvalidInputError

TYPE = "amqp-1.0"
DEEPEST = 100

_VALUE, _SEQUENCE = 0x77, 0x76
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _timestamp(data: bytes) -> datetime:
    return _EPOCH + timedelta(milliseconds=struct.unpack(">q", data)[0])


def _decimal(data: bytes) -> Decimal:
    """IEEE 754-2008, binary integer significand."""
    bits, number = 8 * len(data), int.from_bytes(data)
    exponent_bits = {32: 8, 64: 10, 128: 14}[bits]
    negative, rest = number >> (bits - 1), number & ((1 << (bits - 1)) - 1)
    if rest >> (bits - 5) == 0b1111:
        special = rest >> (bits - 6)
        return Decimal("NaN" if special & 1 else "-Infinity" if negative else "Infinity")
    shift = bits - 1 - exponent_bits
    if rest >> (bits - 3) == 0b11:
        exponent, significand = (rest >> (shift - 2)) & ((1 << exponent_bits) - 1), 0b100 << (shift - 2)
        significand |= rest & ((1 << (shift - 2)) - 1)
    else:
        exponent, significand = rest >> shift, rest & ((1 << shift) - 1)
    bias = {32: 101, 64: 398, 128: 6176}[bits]
    digits = tuple(int(digit) for digit in str(significand))
    return Decimal((negative, digits, exponent - bias))


def _number(code: str) -> Callable[[bytes], Any]:
    return lambda data: struct.unpack(code, data)[0]


_FIXED: dict[int, tuple[int, Callable[[bytes], Any]]] = {
    0x40: (0, lambda _: None),
    0x41: (0, lambda _: True),
    0x42: (0, lambda _: False),
    0x43: (0, lambda _: 0),
    0x44: (0, lambda _: 0),
    0x45: (0, lambda _: []),
    0x50: (1, _number(">B")),
    0x51: (1, _number(">b")),
    0x52: (1, _number(">B")),
    0x53: (1, _number(">B")),
    0x54: (1, _number(">b")),
    0x55: (1, _number(">b")),
    0x56: (1, lambda data: data != b"\0"),
    0x60: (2, _number(">H")),
    0x61: (2, _number(">h")),
    0x70: (4, _number(">I")),
    0x71: (4, _number(">i")),
    0x72: (4, _number(">f")),
    0x73: (4, lambda data: data.decode("utf-32-be")),
    0x74: (4, _decimal),
    0x80: (8, _number(">Q")),
    0x81: (8, _number(">q")),
    0x82: (8, _number(">d")),
    0x83: (8, _timestamp),
    0x84: (8, _decimal),
    0x94: (16, _decimal),
    0x98: (16, lambda data: UUID(bytes=data)),
}


def decode(body: bytes) -> Any:
    """The value of a body, or the list of all that its sequences hold. A described value is the value alone, a symbol a string.

    Raises:
        InvalidInputError: it is no such body; the message says why.
    """
    try:
        return _Reader(body).sections()
    except (IndexError, struct.error, UnicodeDecodeError, OverflowError, TypeError, ValueError) as error:
        raise InvalidInputError(f"the body is no AMQP 1.0 value: {error or 'it ends too early'}") from None


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def sections(self) -> Any:
        sequence: list[Any] = []
        while self._at < len(self._body) or not self._body:
            section = self._section()
            value = self._value(0)
            if section == _VALUE:
                if self._at != len(self._body) or sequence:
                    raise ValueError("there is more after it")
                return value
            if not isinstance(value, list):
                raise ValueError("a sequence is not a list")
            sequence.extend(value)
        return sequence

    def _section(self) -> int:
        if self._take(1) != b"\0":
            raise ValueError("it does not begin with a section")
        section = self._value(0)
        if section not in (_VALUE, _SEQUENCE):
            raise ValueError(f"it has section {section!r}")
        return int(section)

    def _take(self, size: int) -> bytes:
        taken = self._body[self._at : self._at + size]
        if len(taken) < size:
            raise ValueError("it ends too early")
        self._at += size
        return taken

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self._take(size))

    def _value(self, depth: int) -> Any:
        return self._of(self._constructor(depth), depth)

    def _constructor(self, depth: int) -> int:
        """The code of the value that follows; what describes it is read and forgotten."""
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        if (code := self._unsigned(1)) == 0:
            self._value(depth + 1)
            return self._constructor(depth + 1)
        return code

    def _of(self, code: int, depth: int) -> Any:
        if fixed := _FIXED.get(code):
            size, read = fixed
            return read(self._take(size))
        width = 4 if code & 0x10 else 1
        kind = code & 0xEF
        if kind in (0xA0, 0xA1, 0xA3):
            data = self._take(self._unsigned(width))
            return data if kind == 0xA0 else data.decode("ascii" if kind == 0xA3 else "utf-8")
        if kind not in (0xC0, 0xC1, 0xE0):
            raise ValueError(f"it has type {code:#04x}, which AMQP 1.0 does not know")
        return self._compound(kind, width, depth + 1)

    def _compound(self, kind: int, width: int, depth: int) -> Any:
        size = self._unsigned(width)
        end = self._at + size
        count = self._unsigned(width)
        if end > len(self._body) or count > len(self._body):  # elements of an array may take no room
            raise ValueError("it ends too early")
        if kind == 0xE0:
            code = self._constructor(depth)
            values = [self._of(code, depth) for _ in range(count)]
        else:
            values = [self._value(depth) for _ in range(count)]
        if self._at != end:
            raise ValueError("a list, map or array does not end where it says")
        if kind != 0xC1:
            return values
        if count % 2:
            raise ValueError("a map has a key without a value")
        return dict(zip(values[::2], values[1::2], strict=True))
