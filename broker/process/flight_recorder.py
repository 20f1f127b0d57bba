"""A daemon's part in the flight recorder: it declares the stream, and gives signs of life."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import resource
import socket
import time
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter

from broker.errors import AckbackError, BrokerUnavailableError, ConnectionLostError, OtherArgumentsError
from broker.handling.arrivals import Arrivals
from broker.hosting.definition import ServiceDefinition
from broker.log import logger
from broker.protocol.events import DAEMON, EVENTS, Event, event_stream
from broker.recording.recorder import Recorder
from broker.settings import EventsSection
from broker.transport.interface import Connection, Transport

SIGN_EVERY = 5.0
DESCRIBED_EVERY = 120
"""Signs of life: so often one of them tells what the services are, as the stream forgets what is old."""
MAX_SCHEMA = 16_384
"""Characters of a JSON Schema; a larger one is not told."""
PAUSE = 10.0
"""Seconds for which nothing is written after the record has cost a connection."""
DECLARE_EVERY = 5.0
"""Seconds at least between two declarations, should the stream be deleted again and again."""


class FlightRecorder:
    """Declares the stream on the connection of the moment, and again if it is deleted; notes that the daemon lives, and what it does."""

    def __init__(self, settings: EventsSection, transport: Transport) -> None:
        self._transport = transport
        self._stream = event_stream(settings.max_age, settings.max_bytes, settings.segment_bytes)
        self._self = {"host": socket.gethostname(), "pid": os.getpid(), "version": version("ackback")}
        self._described: dict[str, tuple[str, Event]] = {}
        self._loop = asyncio.get_running_loop()
        self._paused_until = 0.0
        self._resume: asyncio.TimerHandle | None = None
        self._connection: Connection | None = None
        self._was_declared = False
        self._missing = asyncio.Event()
        self._is_described = False
        self._told: str | None = None
        self._stopping = False
        self._is_gone = False
        self.recorder = Recorder(self._gone)

    def connected(self, connection: Connection) -> None:
        if self._resume is not None:
            self._resume.cancel()
        rest = self._paused_until - self._loop.time()
        if rest > 0:
            self._resume = self._loop.call_later(rest, self.connected, connection)
            return
        self._connection = connection
        if self._was_declared:
            self.recorder.connection = connection
        self._missing.set()

    def disconnected(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        self._connection = self.recorder.connection = None

    def lost(self, reason: str) -> None:
        """A connection was lost. RabbitMQ ends one that publishes to a stream which is not there yet after its own restart: then nothing is
        written for a while, or the next connection would end as soon."""
        if EVENTS in reason:
            self._paused_until = self._loop.time() + PAUSE

    def _gone(self) -> None:
        self._is_gone = True
        self._missing.set()

    def stop(self) -> None:
        """Have `run` end, also where aiormq swallows its cancellation."""
        self._stopping = True
        self._missing.set()

    async def run(self, arrivals: Arrivals) -> None:
        """Until it is cancelled, after `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._declare_when_missing())
            group.create_task(self._live(arrivals))

    async def _declare_when_missing(self) -> None:
        while not self._stopping:
            await self._missing.wait()
            self._missing.clear()
            if (connection := self._connection) is not None and not self._stopping:
                await self._declare(connection)
            if not self._stopping:
                await asyncio.sleep(DECLARE_EVERY)

    async def _declare(self, connection: Connection) -> None:
        is_gone, self._is_gone = self._is_gone, False
        try:
            if is_gone:
                await self._declare_beside()
            else:
                await connection.declare(self._stream)
        except OtherArgumentsError as error:
            self._tell(f"{error}. Events are recorded there as it is")
        except (ConnectionLostError, BrokerUnavailableError):
            if is_gone:
                self._gone()
            return  # else there will be another connection
        except AckbackError as error:
            self._tell(f"nothing is recorded for `ackback trace` and the page: {error}")
        else:
            self._is_described = False  # it may be a new one, and what was written before is gone
        # Not before, as a first sign of life to a stream that is not there would be lost.
        self._was_declared = True
        self.recorder.connection = self._connection
        self.recorder.flush()

    async def _declare_beside(self) -> None:
        """On a connection of its own: RabbitMQ 4.3 ends one that declares a stream which somebody deletes at that moment (INTERNAL_ERROR,
        rabbit_stream_queue:set_leader_pid)."""
        beside = await self._transport.connect()
        try:
            await beside.declare(self._stream)
        finally:
            await beside.close()

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            logger.warning("%s", what)

    async def _live(self, arrivals: Arrivals) -> None:
        definitions = [definition for definition, _, _ in arrivals.services()]
        # In a thread, as it takes a moment where there are many services.
        self._described = await asyncio.to_thread(lambda: {one.name: description_of(one) for one in definitions})
        self.note("started", arrivals, described=True)
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
            if self._stopping:
                return
            due = loop.time() + SIGN_EVERY
            await asyncio.sleep(SIGN_EVERY)
            described = number % DESCRIBED_EVERY == 0 or not self._is_described
            self.note("lives", arrivals, lag=loop.time() - due, described=described)
            self._is_described = True

    def note(self, state: str, arrivals: Arrivals, lag: float = 0.0, *, described: bool = False) -> None:
        """What the daemon does, and how it is; with `described`, what its services are."""
        services = {
            definition.name: [
                running,
                waiting,
                definition.concurrency,
                self._described.get(definition.name, (None,))[0],
            ]
            for definition, running, waiting in arrivals.services()
        }
        self.recorder.note(
            {
                "event": DAEMON,
                "t": int(time.time() * 1e6),
                "state": state,
                **self._self,
                "services": services,
                "dropped": self.recorder.dropped,
                "resident": _resident(),
                "lag_ms": round(max(lag, 0.0) * 1e3, 1),
                **({"about": {name: about for name, (_, about) in self._described.items()}} if described else {}),
            }
        )

    async def close(self, arrivals: Arrivals) -> None:
        """The last sign of life."""
        self.note("stopped", arrivals)
        with suppress(ConnectionLostError):
            await self.recorder.close()


def description_of(definition: ServiceDefinition) -> tuple[str, Event]:
    """A few letters that are the same where a service is the same (module, class, and the JSON Schema of its input), and what somebody who
    has not got its code wants to know of it."""
    place = f"{definition.cls.__module__}.{definition.cls.__qualname__}"
    schemas = {
        name: json.dumps(schema, sort_keys=True)
        for name, adapter in (("takes", definition.takes), ("returns", definition.returns))
        if adapter is not None and (schema := _schema(adapter)) is not None
    }
    about: Event = {
        "class": place,
        "concurrency": definition.concurrency,
        "attempts": definition.retry.attempts if definition.retry else 1,
        **({} if definition.timeout is None else {"timeout": definition.timeout}),
        **{name: json.loads(text) for name, text in schemas.items() if len(text) <= MAX_SCHEMA},
    }
    what = [place, definition.input_type, *([schemas["takes"]] if "takes" in schemas else [])]
    return hashlib.blake2s("\n".join(what).encode(), digest_size=4).hexdigest(), about


def _schema(adapter: TypeAdapter[Any]) -> dict[str, Any] | None:
    try:
        return adapter.json_schema()
    except Exception as error:  # types have hooks of their authors', and no daemon ends because of what is told of it
        logger.debug("no JSON Schema is told of %r: %s", adapter, error)
        return None


def _resident() -> int:
    """Bytes of memory that this process has, or has had at most where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
