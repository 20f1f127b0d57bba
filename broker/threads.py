"""Threads for `def` handlers. Answers come back to the event loop in batches: one wake-up for many."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Threads:
    """At most `maximum` daemon threads, started as they are needed.

    Daemon threads, as a handler that does not end must not keep the process from ending; and a thread takes one job at a
    time, so a slow one holds up nobody queued behind it.
    """

    def __init__(self, maximum: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._maximum = maximum
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._answers: deque[Callable[[], None]] = deque()
        self._started = 0
        self._unfinished = 0
        self._woken = False

    def run(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a function in a thread, in a copy of the present context; the future has its result."""
        future: asyncio.Future[Any] = self._loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            try:
                result = context.run(function, *args)
            except BaseException as error:
                self._answer(future, None, error)
            else:
                self._answer(future, result, None)

        self._unfinished += 1
        if self._unfinished > self._started < self._maximum:
            self._started += 1
            threading.Thread(target=self._work, name=f"ackback-{self._started}", daemon=True).start()
        self._jobs.put(job)
        return future

    def close(self) -> None:
        """Let the threads end once they are done; does not wait for them."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _answer(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._answers.append(lambda: _resolve(future, result, error))
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                return  # the loop has ended, and with it everybody who would want the answer

    def _collect(self) -> None:
        # Before the answers are taken: a thread that adds one from now on wakes the loop again.
        self._woken = False
        while self._answers:
            self._unfinished -= 1
            self._answers.popleft()()


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
