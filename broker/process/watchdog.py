"""Names who holds up the event loop: an `async def` handler that blocks stops all others, and after 20 seconds ends the connection."""

from __future__ import annotations

import asyncio
import linecache
import sys
import sysconfig
import threading
import time
from pathlib import Path
from types import FrameType

from broker.handling.dispatcher import Dispatcher
from broker.log import escaped, logger

BEAT = 0.25
HELD = 1.0
"""Seconds for which the loop may be held before somebody is named."""
_OWN = Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class Watchdog:
    """Watches the loop that it is made on, from a thread. Each place is named once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._told: set[tuple[str, int]] = set()
        self._timer = self._loop.call_soon(self._on_beat)
        self._thread = threading.Thread(target=self._watch, name="ackback-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._timer.cancel()
        self._stop.set()
        self._thread.join()

    def _on_beat(self) -> None:
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(BEAT, self._on_beat)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(BEAT):
            now = time.monotonic()
            # Where this thread did not run either, the whole process was stopped: nobody holds it up.
            if now - looked < 2 * BEAT and now - self._beat > HELD:
                self._tell(now - self._beat)
            looked = now

    def _tell(self, held: float) -> None:
        frame = sys._current_frames().get(self._thread_of_loop)
        if frame is None:
            return
        service, at = _service_and_place(frame)
        place = at.f_code.co_filename, at.f_lineno
        if place in self._told:
            return
        self._told.add(place)
        source = linecache.getline(*place).strip()
        logger.warning(
            "the event loop has been held for %.1f s%s, in %s:%d, %s%s: nothing else is handled meanwhile, and after 20 s RabbitMQ "
            "ends the connection. Make the handler `def`, or await what takes time",
            held,
            f" by {service!r}" if service else "",
            *place,
            at.f_code.co_name,
            f": `{escaped(source)}`" if source else "",
        )


def _service_and_place(innermost: FrameType) -> tuple[str | None, FrameType]:
    """The service whose handler runs, if one does, and the innermost frame that is neither a library's nor ackback's own."""
    place, service = None, None
    frame: FrameType | None = innermost
    while frame is not None and service is None:
        if place is None and _is_users(frame.f_code.co_filename):
            place = frame
        if frame.f_code is Dispatcher.dispatch.__code__:
            service = frame.f_locals["definition"].name
        frame = frame.f_back
    return service, place or innermost


def _is_users(file: str) -> bool:
    return not (file.startswith(("<", *_LIBRARIES)) or Path(file).is_relative_to(_OWN))
