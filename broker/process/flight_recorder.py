"""A daemon's part in the flight recorder: it gives signs of life."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import resource
import socket
import time
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter

from broker.handling.arrivals import Arrivals
from broker.hosting.definition import ServiceDefinition
from broker.log import logger
from broker.protocol.events import DAEMON, Event, event_stream
from broker.recording.connection import RecordConnection
from broker.settings import EventsSection
from broker.transport.interface import Transport

SIGN_EVERY = 5.0
DESCRIBED_EVERY = 120
"""Signs of life: so often one of them tells what the services are, as the stream forgets what is old."""
MAX_SCHEMA = 16_384
"""Characters of a JSON Schema; a larger one is not told."""


class FlightRecorder:
    """Notes that the daemon lives, and what it does, on a stream that it declares."""

    def __init__(self, settings: EventsSection, transport: Transport) -> None:
        stream = event_stream(settings.max_age, settings.max_bytes, settings.segment_bytes)
        self._connection = RecordConnection(transport, stream, self._declared)
        self._self = {"host": socket.gethostname(), "pid": os.getpid(), "version": version("ackback")}
        self._described: dict[str, tuple[str, Event]] = {}
        self._is_described = False
        self.recorder = self._connection.recorder

    def _declared(self) -> None:
        self._is_described = False  # it may be a new one, and what was written before is gone

    def connected(self) -> None:
        """The daemon has a connection for its work."""
        self._connection.start()

    async def run(self, arrivals: Arrivals) -> None:
        """Until it is cancelled."""
        definitions = [definition for definition, _, _ in arrivals.services()]
        # In a thread, as it takes a moment where there are many services.
        self._described = await asyncio.to_thread(lambda: {one.name: description_of(one) for one in definitions})
        self.note("started", arrivals, described=True)
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
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
        await self._connection.close()


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
