"""Threads for `def` handlers: they pull jobs from a queue, and their answers come back to the event loop in batches.

To wake a thread costs more than a quick handler. So jobs do not each wake one: at most one thread is ever being woken, and it wakes the
next as it takes a job and sees another. While handlers wait for something, that goes on until every job has its thread; while they are
quick, one thread takes job after job and hardly anybody else gets up.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, NamedTuple


class _Job(NamedTuple):
    future: asyncio.Future[Any]
    context: Context
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Threads:
    """At most `maximum` daemon threads, started as they are needed.

    Daemon threads, as a handler that does not end must not keep the process from ending; and a thread takes one job at a
    time, so a slow one holds up nobody queued behind it.
    """

    def __init__(self, maximum: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._maximum = maximum
        self._jobs: deque[_Job] = deque()
        self._answers: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._collecting = False
        self._starting = threading.Lock()
        self._started = 0
        self._asleep = 0
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._calling = False
        self._closed = False

    def run(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a function in a thread, in a copy of the present context; the future has its result."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.append(_Job(future, copy_context(), function, args))
        self._call_one()
        return future

    def close(self) -> None:
        """Let the threads end once they are done; does not wait for them."""
        self._closed = True
        for _ in range(self._started):
            self._calls.put(None)

    def _call_one(self) -> None:
        """Have one more thread look for a job, unless one is on its way already."""
        if self._calling:
            return
        self._calling = True
        if not self._asleep and self._start_one():
            return
        # Nobody need be asleep yet: the call is there for the next who is about to.
        self._calls.put(None)

    def _start_one(self) -> bool:
        with self._starting:
            if self._started == self._maximum:
                return False
            thread = threading.Thread(target=self._work, name=f"ackback-{self._started + 1}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._started:
                    # Nobody will ever come for what waits: who asked is told, and may ask again.
                    self._jobs.clear()
                    self._calling = False
                    raise
                self._maximum = self._started  # the system allows no more
                return False
            self._started += 1
            return True

    def _work(self) -> None:
        while not self._closed:
            # Before looking, so that whoever adds a job after the last look calls again.
            self._calling = False
            while self._jobs:
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    break
                if self._jobs:
                    self._call_one()
                self._run(job)
                del job  # what it holds should not wait here for the next one
            with self._starting:
                self._asleep += 1
            self._calls.get()
            with self._starting:
                self._asleep -= 1

    def _run(self, job: _Job) -> None:
        try:
            result = job.context.run(job.function, *job.arguments)
        except BaseException as error:
            self._answer(job.future, None, error)
        else:
            self._answer(job.future, result, None)

    def _answer(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._answers.append((future, result, error))
        if not self._collecting:
            self._collecting = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                return  # the loop has ended, and with it everybody who would want the answer

    def _collect(self) -> None:
        # Before the answers are taken: a thread that adds one from now on wakes the loop again.
        self._collecting = False
        while self._answers:
            _resolve(*self._answers.popleft())


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, (StopIteration, asyncio.CancelledError)):
        # Neither can be a future's exception as it is.
        future.set_exception(RuntimeError(f"the handler raised {type(error).__name__}"))
    else:
        future.set_exception(error)
