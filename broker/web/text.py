"""What messages say, as it may be shown: nothing in it is markup, drives anything, or turns the direction of writing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from broker.log import escaped
from broker.recording.spans import span

NOTHING = "\N{EN DASH}"
MAX_SHOWN = 16_384
"""Characters of a body, or of a header."""


def shown(value: Any) -> Any:
    """What Jinja prints of a value: all text that is not our own markup has its control characters made visible."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else escaped(value)


def block(text: str) -> Markup:
    """Text of several lines."""
    cut = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return Markup("\n").join(escape(escaped_line(line)) for line in cut.split("\n"))


def escaped_line(line: str) -> str:
    return "\t".join(escaped(part) for part in line.removesuffix("\r").split("\t"))


def field(text: str) -> Markup:
    """Text as it is, for a `<textarea>`: HTML swallows the first line break there."""
    return Markup("\n") + escape(text)


def readable(body: bytes) -> str:
    """A body as text; what is no UTF-8 as `\\xff`."""
    return body.decode("utf-8", "backslashreplace")


def editable(body: bytes) -> str | None:
    """A body as a form can hold it, and give it back as it was; None if it cannot."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return None if "\r" in text or any(ord(char) < 32 and char not in "\n\t" for char in text) else text


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def micros(value: int) -> str:
    """A length of time, given in µs."""
    return span(max(0, value))


def millis(value: float | None) -> str:
    """Milliseconds for a column."""
    return NOTHING if value is None else decimal(value)


def decimal(value: float) -> str:
    """A number for a column, with as many decimals as tell something."""
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def clock(value: int | float) -> str:
    """When: µs since 1970 (or seconds, if it is a float) as `11-25 15:04:05`, in UTC."""
    seconds = value if isinstance(value, float) else value / 1e6
    return datetime.fromtimestamp(seconds, UTC).strftime("%m-%d %H:%M:%S")


def exactly(value: int) -> str:
    """When, to the millisecond."""
    return (
        datetime.fromtimestamp(value / 1e6, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")
    )


def size(value: int) -> str:
    """Bytes."""
    for unit, one in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= one:
            return f"{value / one:,.1f} {unit}"
    return "1 byte" if value == 1 else f"{value:,} bytes"


def count(value: int, what: str) -> str:
    """`1 dead letter`, `1,204 dead letters`."""
    return f"{value:,} {what}" if value == 1 else f"{value:,} {what}s"
