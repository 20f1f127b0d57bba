"""The services that a process hosts: the slots of each, and what waits for one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from broker.hosting.definition import ServiceDefinition
from broker.protocol.headers import Headers
from broker.protocol.message import Message
from broker.transport.interface import Delivery

TURN = 0.01
"""Seconds for which handlers may be begun in one turn of the event loop, before it looks after its sockets again."""


class Turn:
    """How long the present turn of the event loop has begun handlers for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends = 0.0
        self._running = False

    def is_over(self) -> bool:
        now = time.monotonic()  # the loop's own time may stand still within a turn
        if not self._running:
            self._running = True
            self._ends = now + TURN
            self._loop.call_soon(self._next)
        return now > self._ends

    def _next(self) -> None:
        self._running = False


class Host:
    """A hosted service. `begin` is given what may be handled now, and has `release` called once that has ended.

    `headers` are those of a reply to the callback queue, None for any other message.
    """

    __slots__ = ("_begin", "_loop", "_pumping", "_turn", "definition", "free", "waiting")

    def __init__(
        self,
        definition: ServiceDefinition,
        begin: Callable[[Host, Delivery, Message, Headers | None], None],
        turn: Turn,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin = begin
        self._turn = turn
        self._pumping = False
        self.definition = definition
        self.free = definition.concurrency
        self.waiting: deque[tuple[float, Delivery, Message, Headers | None]] = deque()

    def admit(self, delivery: Delivery, message: Message, headers: Headers | None) -> None:
        """Have a message handled as soon as there is a free slot, which may be now."""
        if self.waiting or not self.free or self._turn.is_over():
            self.waiting.append((time.monotonic(), delivery, message, headers))
            if self.free and not self._pumping:
                self._pump_next_turn()
        else:
            self.free -= 1
            self._begin(self, delivery, message, headers)

    def release(self) -> None:
        """A handling has ended: its slot is free."""
        self.free += 1
        if self.waiting and not self._pumping:
            self._pump_next_turn()

    def longest_wait(self, now: float) -> float:
        """Seconds that the first of those that wait has waited."""
        return now - self.waiting[0][0] if self.waiting else 0.0

    def take_back(self, choose: Callable[[Delivery], bool]) -> list[Delivery]:
        """Of those that wait, the ones that are chosen; they wait here no longer."""
        chosen = []
        for _ in range(len(self.waiting)):
            one = self.waiting.popleft()
            if choose(one[1]):
                chosen.append(one[1])
            else:
                self.waiting.append(one)
        return chosen

    def _pump_next_turn(self) -> None:
        self._pumping = True
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = True
        while self.waiting and self.free:
            if self._turn.is_over():
                self._pump_next_turn()
                return
            self.free -= 1
            _, delivery, message, headers = self.waiting.popleft()
            self._begin(self, delivery, message, headers)
        self._pumping = False
