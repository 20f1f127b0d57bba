"""How many messages are ready on the queues of services, and on that of the dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from broker.protocol.names import DEAD_LETTERS, name_problem
from broker.transport.interface import Connection, QueueState

EVERY = 2.0
MISSING_EVERY = 30.0
"""Seconds between two looks for a queue that is not there: RabbitMQ closes a channel each time."""
MOST = 500


class Queues:
    """`states` has what was seen last, by name; None where there is no queue. `names` says which services there are."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self.states: dict[str, QueueState | None] = {}
        self._names = names
        self._missing: dict[str, float] = {}

    async def watch(self, connection: Connection) -> None:
        """Look for as long as the connection lasts."""
        while True:
            await self.look(connection)
            await asyncio.wait({connection.lost}, timeout=EVERY)

    async def look(self, connection: Connection) -> None:
        now = time.monotonic()
        names = [DEAD_LETTERS, *(name for name in self._names() if name_problem(name) is None)][:MOST]
        due = [name for name in names if now - self._missing.get(name, -MISSING_EVERY) >= MISSING_EVERY]
        for name, state in zip(due, await asyncio.gather(*map(connection.look_at, due)), strict=True):
            self.states[name] = state
            if state is None and name != DEAD_LETTERS:
                self._missing[name] = now
            else:
                self._missing.pop(name, None)
        for gone in self.states.keys() - set(names):
            del self.states[gone]
