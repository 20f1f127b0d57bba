"""What the pages show of this moment, put together once a second."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from broker.log import logger
from broker.protocol.names import DEAD_LETTERS
from broker.recording.lookup import Lookup, Minute
from broker.recording.summary import DaemonLine, ServiceLine
from broker.transport.interface import QueueState
from broker.web.concerns import Backlog, Concern, concerns, of_the_record
from broker.web.follower import Follower
from broker.web.queues import Queues

EVERY = 1.0
TREND_MINUTES = 60
TREND_EVERY = 5.0
"""Seconds between two looks at the last hour."""


@dataclass(frozen=True, slots=True)
class Moment:
    """`number` tells moments apart, `now` is in µs since 1970. `problem` and `progress` are the follower's."""

    number: int
    now: int
    services: tuple[ServiceLine, ...]
    daemons: tuple[DaemonLine, ...]
    queues: Mapping[str, QueueState | None]
    concerns: tuple[Concern, ...]
    trends: Mapping[str, list[Minute]]
    dead_letters: int
    problem: str | None
    progress: float | None

    def ready(self, service: str) -> int | None:
        state = self.queues.get(service)
        return None if state is None else state.ready


class Board:
    """`moment` is what is so now; `next` waits for another."""

    def __init__(self, follower: Follower, queues: Queues, lookup: Lookup) -> None:
        self._follower = follower
        self._queues = queues
        self._lookup = lookup
        self._trends: dict[str, list[Minute]] = {}
        self._known: list[str] = []
        self._trends_of = 0.0
        self._usual: dict[str, float] = {}
        self._waiting_since: dict[str, int] = {}
        self._changed = asyncio.Event()
        self.moment = Moment(0, int(time.time() * 1e6), (), (), {}, (), {}, 0, follower.problem, None)

    def names(self) -> Iterable[str]:
        """Every service that is known of."""
        return dict.fromkeys([*(one.name for one in self.moment.services), *self._known])

    async def next(self) -> Moment:
        """The next moment, once it is there."""
        await self._changed.wait()
        return self.moment

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.update()
            except sqlite3.Error as error:  # the follower has the file made anew if need be
                logger.warning("the index cannot be read: %s", error)
                self._lookup.reopen()

    async def update(self) -> None:
        queues = dict(self._queues.states)
        self.moment = await self._follower.on_thread(lambda: self._see(queues))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _see(self, queues: Mapping[str, QueueState | None]) -> Moment:
        now = int(time.time() * 1e6)
        summary = self._follower.summary
        self._look_at_trends(now)
        services, daemons = summary.services(now), summary.daemons(now)
        is_current = self._follower.problem is None and self._follower.progress is None
        if is_current:
            found = concerns(services, daemons, queues, self._backlogs(services, queues, now), now)
        else:  # it is we who have not heard of them
            daemons = [one._replace(silent=False) for one in daemons]
            found = [of_the_record(self._follower.problem, self._follower.progress)]
        waiting = {name for name in self._known if (state := queues.get(name)) and state.ready}
        idle = {*self._trends, *waiting} - {one.name for one in services}
        services += [ServiceLine(name, 0.0, None, None, None, 0, 0, 0, 0) for name in idle]
        services.sort(key=lambda one: one.name)
        dead = queues.get(DEAD_LETTERS)
        return Moment(
            self.moment.number + 1,
            now,
            tuple(services),
            tuple(daemons),
            queues,
            tuple(found),
            self._trends,
            dead.ready if dead else 0,
            self._follower.problem,
            self._follower.progress,
        )

    def _look_at_trends(self, now: int) -> None:
        if time.monotonic() - self._trends_of >= TREND_EVERY:
            self._trends = self._lookup.minutes(now // 60_000_000 - TREND_MINUTES + 1)
            self._known = self._lookup.services()
            self._trends_of = time.monotonic()
            for name, minutes in self._trends.items():
                slow = [p99 for one in minutes if (p99 := one.tally.times.percentiles([0.99])[0]) is not None]
                self._usual[name] = max(slow, default=0.0) / 1000

    def _backlogs(
        self, services: Iterable[ServiceLine], queues: Mapping[str, QueueState | None], now: int
    ) -> dict[str, Backlog]:
        backlogs = {}
        for one in services:
            state = queues.get(one.name)
            if one.waiting or (state and state.ready):
                since = self._waiting_since.setdefault(one.name, now)
                backlogs[one.name] = Backlog(
                    since, self._follower.summary.last.get(one.name, 0), self._usual.get(one.name)
                )
            else:
                self._waiting_since.pop(one.name, None)
        return backlogs
