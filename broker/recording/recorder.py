"""Writes events to the stream, a batch at a time, and is in nobody's way: what cannot be written in time is dropped, and counted.

note ─→ events (10,000 at most) ─→ every 0.2 s, or 1,000 of them: a batch ─→ 8 unconfirmed at most ─→ the stream
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from broker.errors import ConnectionLostError, UnroutableError
from broker.log import logger
from broker.protocol.events import IN_HASTE, LEVEL, Event, Row, batch
from broker.protocol.message import Publishing
from broker.transport.interface import Connection

FLUSH_AFTER = 0.2
BATCH = 1000
MOST = 10_000
MOST_UNCONFIRMED = 8
CLOSE_TIMEOUT = 1.0


def writer_name() -> str:
    """Who writes: host and process, and some letters, as in containers every process is number 1."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"


class Observer(Protocol):
    """Is told of events, on the event loop. It is in nobody's way."""

    def note(self, event: Event | Row) -> None: ...


class Observers:
    """Several as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def note(self, event: Event | Row) -> None:
        for one in self._observers:
            one.note(event)


class Recorder:
    """The events of one process. All calls are made on the event loop.

    `connection` is the one of the moment, None while there is none. `missing` is called when there is no stream to write to. Without a
    stream nothing is recorded, and nothing is said.
    """

    def __init__(self, missing: Callable[[], None] | None = None) -> None:
        self.writer = writer_name()
        self.connection: Connection | None = None
        self.dropped = 0
        self._missing = missing
        self._loop = asyncio.get_running_loop()
        self._events: list[Event | Row] = []
        self._again: deque[Publishing] = deque()
        self._unconfirmed: set[asyncio.Future[None]] = set()
        self._batches = 0
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

    def note(self, event: Event | Row) -> None:
        """Write an event down, soon."""
        events = self._events
        if len(events) >= MOST:
            self._drop(1)
            return
        events.append(event)
        if len(events) >= BATCH and len(self._unconfirmed) < MOST_UNCONFIRMED:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_AFTER, self._on_time)

    def flush(self) -> None:
        """Send what there is, as far as the broker keeps up."""
        connection = self.connection
        while connection is not None and len(self._unconfirmed) < MOST_UNCONFIRMED:
            if self._again:
                self._publish(connection, self._again.popleft())
            elif self._events:
                chunk, self._events = self._events[:BATCH], self._events[BATCH:]
                self._batches += 1
                level = IN_HASTE if len(chunk) == BATCH else LEVEL
                self._publish(connection, batch(chunk, self.writer, self._batches, level))
            else:
                break

    async def close(self) -> None:
        """Send what there is, and wait for its confirms, for a second at most."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._loop.time() + CLOSE_TIMEOUT
        self.flush()
        while self._unconfirmed and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(self._unconfirmed, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            self.flush()

    def _on_time(self) -> None:
        self._timer = None
        self.flush()
        if self._events:
            self._timer = self._loop.call_later(FLUSH_AFTER, self._on_time)

    def _publish(self, connection: Connection, publishing: Publishing) -> None:
        confirm = connection.publish(publishing)
        self._unconfirmed.add(confirm)
        confirm.add_done_callback(partial(self._confirmed, publishing))

    def _confirmed(self, publishing: Publishing, confirm: asyncio.Future[None]) -> None:
        self._unconfirmed.discard(confirm)
        error = ConnectionLostError("it is being closed") if confirm.cancelled() else confirm.exception()
        if error is None:
            return
        if isinstance(error, ConnectionLostError):
            self._again.append(publishing)
            self.connection = None  # there will be another
            return
        count = publishing.message.headers["events"]
        if isinstance(error, UnroutableError):
            self.dropped += count
            if self._missing is not None:
                self._missing()
        else:
            self._drop(count, str(error))

    def _drop(self, count: int, why: str = "RabbitMQ does not take them as quickly as they come") -> None:
        self.dropped += count
        if not self._told:
            self._told = True
            logger.warning("events are missing from the record, as %s; nothing else is", why)
