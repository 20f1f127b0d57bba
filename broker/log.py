"""Logging: one line a record for people, one JSON object a line for machines, every line of a handler with its CID."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from broker.settings import LogSection

logger = logging.getLogger("ackback")

handling: ContextVar[tuple[str, str, int] | None] = ContextVar("ackback_handling", default=None)
"""CID, service and attempt of the message that the running code handles."""

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
# aiormq reports the same events again in its own words; what matters of them, the daemon says once.
_NOISY = ("aiormq", "aio_pika", "asyncio")
# Control characters, separators of lines, marks that turn the direction of writing, and the halves of surrogate pairs, which no stream can
# encode.
_MARKS = (0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROL = {
    code: repr(chr(code))[1:-1] for code in (*range(32), 127, *range(128, 160), *_MARKS, *range(0xD800, 0xE000))
}


def setup(section: LogSection, stream: TextIO | None = None, *, debug: bool = False) -> None:
    """Send all records to `stream` (standard error by default) as the configuration says."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.addFilter(_mark)
    handler.setFormatter(JsonFormatter() if section.format == "json" else TextFormatter(colour=stream.isatty()))
    level = logging.DEBUG if debug else section.level.upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.CRITICAL)
    alarms = logging.getLogger("aiormq.connection")
    alarms.setLevel(logging.DEBUG if debug else logging.WARNING)
    alarms.filters = [] if debug else [_is_alarm]


def _is_alarm(record: logging.LogRecord) -> bool:
    # That RabbitMQ blocks a connection (memory, disk), only aiormq gets to know.
    return "blocked" in str(record.msg)


def _mark(record: logging.LogRecord) -> bool:
    if not hasattr(record, "cid") and (now := handling.get()):
        record.cid, record.service, record.attempt = now
    return True


def escaped(text: str) -> str:
    """The text on one line: control characters, which could forge a line or drive a terminal, as Python writes them."""
    return text.translate(_CONTROL)


class TextFormatter(logging.Formatter):
    """`time level logger: message (CID …)`; a traceback follows on lines of its own, indented."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname:<7}"
        cid = getattr(record, "cid", None)
        tail = f" (CID {cid})" if cid else ""
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
            tail = f"\x1b[2m{escaped(tail)}\x1b[0m" if tail else ""
        else:
            tail = escaped(tail)
        line = f"{time} {level} {record.name}: {escaped(record.getMessage())}{tail}"
        return line + self._traceback(record)

    def _traceback(self, record: logging.LogRecord) -> str:
        text = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        return "".join(f"\n    {escaped(line)}" for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and where they apply cid, service, attempt, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("cid", "service", "attempt"):
            if (value := getattr(record, key, None)) is not None:
                line[key] = value
        if record.exc_info and record.exc_info[0]:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()
