"""Which replies on the callback queue are handled where they come in, and which go to their callback's own queue.

All callbacks share the callback queue's window. In place runs what is quick, as that saves a hop, and never in more than half of the
window at its narrowest: then slow callbacks leave room, in which what is for the others is passed on, also when it narrows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from broker.handling.hosts import Host
from broker.handling.intakes import Intake
from broker.transport.interface import Delivery

LOOK_EVERY = 0.05
"""Seconds. A callback that is seen to run at two looks is slow."""
SLOW_FOR = 5.0
"""Seconds for which a callback that was slow is not handled in place."""


class InPlace:
    """What of the callback queue's `intake` is handled in place."""

    def __init__(self, intake: Intake, hosts: Mapping[str, Host]) -> None:
        self._loop = asyncio.get_running_loop()
        self._intake = intake
        self._hosts = hosts
        self._taken: dict[Delivery, Host | None] = {}  # with who handles it, once that has begun
        self._seen: list[Delivery] = []
        self._slow_until: dict[Host, float] = {}
        self._looking = False

    def takes(self, name: str) -> bool:
        """Whether a reply for this callback may be handled in place."""
        host = self._hosts.get(name)
        if host is None or not host.free or 2 * len(self._taken) >= self._intake.window.narrowest:
            return False
        until = self._slow_until.get(host)
        return until is None or time.monotonic() > until

    def take(self, delivery: Delivery) -> None:
        """A reply is to be handled in place: from now on it needs its room, though it may be begun in a later turn."""
        self._taken[delivery] = None

    def begin(self, delivery: Delivery, host: Host) -> None:
        """A reply that was taken is handled."""
        self._taken[delivery] = host
        if not self._looking:
            self._looking = True
            self._loop.call_later(LOOK_EVERY, self._look)

    def ended(self, delivery: Delivery) -> None:
        """A delivery from the callback queue is settled."""
        self._taken.pop(delivery, None)

    def _look(self) -> None:
        until = time.monotonic() + SLOW_FOR
        for delivery in self._seen:
            if host := self._taken.get(delivery):
                self._slow_until[host] = until
        self._seen = [delivery for delivery, host in self._taken.items() if host]
        if self._taken:
            self._loop.call_later(LOOK_EVERY, self._look)
        else:
            self._looking = False
