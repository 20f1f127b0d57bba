"""The recorder's connection, one of its own: what happens to the stream happens to no work.

RabbitMQ 4.3 ends a connection that publishes to a stream which somebody deletes at that moment, or which is not there yet after its own
restart (RESOURCE_ERROR, "Stream not found for queue"), and one that declares it at such a moment (INTERNAL_ERROR,
rabbit_stream_queue:set_leader_pid). And it reads nothing more from one that publishes faster than the stream is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from broker.backoff import backoff
from broker.errors import (
    AckbackError,
    BrokerUnavailableError,
    ConfigurationError,
    ConnectionLostError,
    OtherArgumentsError,
)
from broker.log import logger
from broker.protocol.entities import Queue
from broker.recording.recorder import CLOSE_TIMEOUT, Recorder
from broker.transport.interface import Connection, Transport

LONGEST_PAUSE = 10.0
"""Seconds at most before it connects again."""
DECLARE_EVERY = 5.0
"""Seconds at least between two declarations, should the stream be deleted again and again."""


class RecordConnection:
    """Gives `recorder` a connection for as long as RabbitMQ is there, from `start` to `close`.

    With `stream` that is declared first, and again if it is deleted; `declared` is called each time. Whoever has none writes to the stream
    that is there.
    """

    def __init__(
        self, transport: Transport, stream: Queue | None = None, declared: Callable[[], None] = lambda: None
    ) -> None:
        self._transport = transport
        self._stream = stream
        self._declared = declared
        self._missing = asyncio.Event()
        self._tried = asyncio.Event()
        self._closing = False
        self._connecting: asyncio.Task[None] | None = None
        self._told: str | None = None
        self.recorder = Recorder(self._missing.set)

    def start(self) -> None:
        """Once the work is connected, so that of a cluster's nodes the record takes one that the work has not."""
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._stay_connected())

    async def close(self) -> None:
        """Write what there is and end the connection; each step has a second."""
        if self._connecting is None:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), CLOSE_TIMEOUT)
        await self.recorder.close()
        self._closing = True  # aiormq may swallow the cancellation
        self._connecting.cancel()
        await asyncio.wait([self._connecting], timeout=CLOSE_TIMEOUT)

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        pauses = backoff(maximum=LONGEST_PAUSE)
        while not self._closing:
            began = loop.time()
            # Nothing is said here: whoever has work for RabbitMQ says that it is not there.
            with suppress(BrokerUnavailableError, ConfigurationError):
                connection = await self._transport.connect(in_one=True)
                try:
                    await self._write_by(connection)
                finally:
                    self.recorder.connection = None
                    await connection.close()
            self._tried.set()
            if loop.time() - began > LONGEST_PAUSE:
                pauses = backoff(maximum=LONGEST_PAUSE)
            if not self._closing:
                await asyncio.sleep(next(pauses))

    async def _write_by(self, connection: Connection) -> None:
        """Until it is lost."""
        while not self._closing and not connection.lost.done():
            self._missing.clear()
            await self._declare(connection)
            self.recorder.connection = connection
            self.recorder.flush()
            self._tried.set()
            await asyncio.wait([connection.lost], timeout=DECLARE_EVERY)
            missing: asyncio.Future[Any] = asyncio.ensure_future(self._missing.wait())
            try:
                await asyncio.wait({connection.lost, missing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                missing.cancel()

    async def _declare(self, connection: Connection) -> None:
        if self._stream is None:
            return
        try:
            await connection.declare(self._stream)
        except OtherArgumentsError as error:
            self._tell(f"{error}. Events are recorded there as it is")
        except ConnectionLostError:
            pass  # there will be another
        except AckbackError as error:
            self._tell(f"nothing is recorded for `ackback trace` and the page: {error}")
        else:
            self._declared()

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            logger.warning("%s", what)
