"""The queues that a process consumes: how each is consumed, what of it is in hand, and when its window changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from broker.handling.windows import Window
from broker.transport.interface import Delivery

LOOK_EVERY = 0.05
"""Seconds."""
TURNED_OVER = 2
CLOSE_TIMEOUT = 5.0
NOT_FULL = 0.75
"""A consumer whose prefetch leaves more of its window unused is begun again."""


class Intake:
    """One queue that is consumed.

    `timeout` is its acknowledgement timeout in seconds, `take` is given its deliveries, `longest_wait` says how many seconds the first of
    those that wait for a slot has waited. A queue that does not adapt keeps its window.
    """

    def __init__(
        self,
        queue: str,
        window: int,
        timeout: float,
        take: Callable[[Delivery], None],
        longest_wait: Callable[[float], float] = lambda now: 0.0,
        *,
        adapts: bool = False,
    ) -> None:
        self.queue = queue
        self.window = Window(window)
        self.granted = window
        """The prefetch of its consumer, which does not count what was in hand when it began."""
        self.timeout = timeout
        self.take = take
        self.adapts = adapts
        self.watched = False
        self.in_hand = 0
        self._longest_wait = longest_wait
        self._waits = True
        self._room: asyncio.Event | None = None
        # Since the last look:
        self._began = 0.0
        self._taken_bytes = self._finished = self._most_in_hand = 0

    def begun(self, size: int) -> None:
        """A delivery with a body of so many bytes is in hand."""
        self.in_hand += 1
        self._taken_bytes += size
        if self.in_hand > self._most_in_hand:
            self._most_in_hand = self.in_hand

    def ended(self) -> None:
        """A delivery is acknowledged or given back."""
        self.in_hand -= 1
        self._finished += 1
        if self._room is not None and self.in_hand < self.window.size:
            self._room.set()

    def idle(self) -> bool:
        """Nothing is in hand, and nothing was since the last look."""
        return not self.in_hand and not self._finished

    def look(self, now: float) -> bool:
        """Judge what was seen since the last look; whether it is to be consumed with another prefetch."""
        size = self.window.after(
            now,
            rate=self._finished / max(now - self._began, 1e-3),
            # What is handled in place is in hand for a moment: that the window limits it shows in how often it was turned over.
            was_full=self._most_in_hand >= self.granted or self._finished >= TURNED_OVER * self.granted,
            bytes_each=self._taken_bytes / max(self._finished, 1),
            longest_wait=self._longest_wait(now),
        )
        changed = size != self.window.size or (self.granted < size and self.in_hand <= NOT_FULL * size)
        self.window.size = size
        self.start_over(now)
        return changed

    def start_over(self, now: float) -> None:
        """What was seen so far says nothing about what comes."""
        self._began = now
        self._taken_bytes = self._finished = 0
        self._most_in_hand = self.in_hand

    @property
    def is_overfull(self) -> bool:
        """Whether its window has become as narrow as it gets, and more is in hand, or could be by now."""
        return self.window.size == self.window.narrowest and self.window.size < max(self.granted, self.in_hand)

    async def room(self) -> None:
        """Wait until less is in hand than the window allows."""
        if self._waits and self.in_hand >= self.window.size:
            self._room = asyncio.Event()
            await self._room.wait()
            self._room = None

    def wait_no_longer(self) -> None:
        """Let `room` end at once, from now on."""
        self._waits = False
        if self._room is not None:
            self._room.set()

    def grant(self) -> int:
        """The prefetch for its consumer from now on: of the window, what is not in hand already."""
        self.granted = max(1, self.window.size - self.in_hand)
        return self.granted


class Regulator:
    """Looks at the intakes in use every twentieth of a second; has `resize` consume with another prefetch where that is better."""

    def __init__(self, resize: Callable[[Intake], Coroutine[Any, Any, None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._resize = resize
        self._watched: list[Intake] = []
        self._resizing: dict[Intake, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, intake: Intake) -> None:
        """Look at an intake from now on, until nothing comes any more."""
        intake.watched = True
        intake.start_over(time.monotonic())
        self._watched.append(intake)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_EVERY, self._look)

    async def close(self) -> None:
        """Change nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        # Not cancelled: aiormq ends a channel whose call is cancelled, and RabbitMQ delivers all that is in hand on it again.
        for intake in self._resizing:
            intake.wait_no_longer()
        if self._resizing:
            await asyncio.wait(self._resizing.values(), timeout=CLOSE_TIMEOUT)

    def _resized(self, intake: Intake, _: asyncio.Task[None]) -> None:
        del self._resizing[intake]

    def _look(self) -> None:
        now = time.monotonic()
        watched, self._watched = self._watched, []
        for intake in watched:
            if intake.idle():
                intake.watched = False
                continue
            self._watched.append(intake)
            if intake not in self._resizing and intake.look(now):
                task = self._resizing[intake] = self._loop.create_task(self._resize(intake))
                task.add_done_callback(partial(self._resized, intake))
        self._timer = self._loop.call_later(LOOK_EVERY, self._look) if self._watched else None
