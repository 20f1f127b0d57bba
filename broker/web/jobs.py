"""What is done to dead letters from the page, one job after the other: they are replayed, or dropped."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from broker.errors import AckbackError, NotAcceptedError
from broker.handling import dead_letters
from broker.protocol.deadletters import DeadLetter
from broker.protocol.message import Message
from broker.protocol.names import DEAD_LETTERS
from broker.transport.browsing import walk
from broker.transport.interface import Connection, Transport
from broker.web.dead_letters import DeadLetters

KEPT = 50
"""Jobs that are remembered once they have ended."""
BACK_WITHIN = 2.0
"""Seconds."""
What = Literal["replay", "drop"]
State = Literal["waits", "runs", "finished", "stopped", "failed"]


@dataclass
class Job:
    """`of` says in words which dead letters are meant, `total` how many these are. `refused` counts those that stay, by the reason.

    Times are in seconds since 1970.
    """

    number: int
    what: What
    of: str
    total: int
    is_meant: Callable[[DeadLetter], bool] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    """What the message is to have instead of its own, if it was edited."""
    state: State = "waits"
    done: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    began: float = field(default_factory=time.time)
    ended: float | None = None
    is_to_stop: bool = False

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")


class _EnoughError(Exception):
    """All that were meant are done with, or it is to stop."""


class Jobs:
    """Runs jobs in their order, each on a connection of its own: what it has not taken is back when that is closed."""

    def __init__(self, transport: Transport, callback_queue: str, dead: DeadLetters) -> None:
        self._transport = transport
        self._callback_queue = callback_queue
        self._dead = dead
        self._numbers = itertools.count(1)
        self._jobs: deque[Job] = deque(maxlen=KEPT)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Job]:
        """The newest first."""
        return iter(list(reversed(self._jobs)))

    def get(self, number: int) -> Job | None:
        return next((job for job in self._jobs if job.number == number), None)

    def start(
        self, what: What, of: str, total: int, is_meant: Callable[[DeadLetter], bool], body: bytes | None = None
    ) -> Job:
        job = Job(next(self._numbers), what, of, total, is_meant, body)
        self._jobs.append(job)
        task = self._tasks[job.number] = asyncio.ensure_future(self._run(job))
        task.add_done_callback(lambda _: self._tasks.pop(job.number, None))
        return job

    async def wait(self, job: Job, timeout: float) -> None:
        """Until it is over, but no longer than this."""
        if (task := self._tasks.get(job.number)) is not None:
            await asyncio.wait({task}, timeout=timeout)

    async def close(self) -> None:
        for job in self._jobs:
            job.is_to_stop = True
        for task in list(self._tasks.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self, job: Job) -> None:
        async with self._dead.alone:
            job.state = "runs"
            try:
                connection = await self._transport.connect()
                try:
                    await _all_back(connection, job.total)
                    with suppress(_EnoughError):
                        await walk(connection, DEAD_LETTERS, lambda message: self._visit(job, message, connection))
                finally:
                    await connection.close()
                job.state = (
                    "stopped" if job.is_to_stop and job.done + sum(job.refused.values()) < job.total else "finished"
                )
            except AckbackError as error:
                job.state, job.problem = "failed", str(error)
            except asyncio.CancelledError:
                job.state = "stopped"
                raise
            finally:
                job.ended = time.time()
        await self._dead.look_again()

    async def _visit(self, job: Job, message: Message, connection: Connection) -> bool:
        if job.is_to_stop or job.done + sum(job.refused.values()) >= job.total:
            raise _EnoughError
        dead = DeadLetter.of(message)
        if not job.is_meant(dead):
            return False
        if job.what == "replay":
            try:
                await dead_letters.replay(connection, self._edited(job, dead), self._callback_queue)
            except NotAcceptedError as error:
                job.refused[str(error)] = job.refused.get(str(error), 0) + 1
                return False
        job.done += 1
        return True

    @staticmethod
    def _edited(job: Job, dead: DeadLetter) -> DeadLetter:
        return dead if job.body is None else replace(dead, message=replace(dead.message, body=job.body))


async def _all_back(connection: Connection, count: int) -> None:
    """Wait until what somebody has looked at is on the queue again, if it comes at all."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BACK_WITHIN):
            while (seen := await connection.look_at(DEAD_LETTERS)) is not None and seen.ready < count:
                await asyncio.sleep(0.05)
