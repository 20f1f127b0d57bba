"""The event loop that a durable handler runs on: it does the same, in the same order, whenever it is given the same answers.

Ready callbacks run first in, first out, as asyncio's own loop has it. Time stands still but for what the journal says. There is nothing
else: no sockets, no threads, no clock. `asyncio.sleep`, `timeout`, `gather`, `TaskGroup`, locks, queues and events need no more than that.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
import weakref
from asyncio import _enter_task, _leave_task, events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, NoReturn, TypeVar

from broker.log import logger

T = TypeVar("T")

LONGEST_TURN = 5.0
"""Seconds that a handler may compute, or go round in circles, before it waits for something."""
LOOK_EVERY = 1000
MOST_CLOSES = 100
"""How often a coroutine may wait for something although it is closed."""

_REFUSED = (
    "is not to be had in a durable handler, which has to do the same whenever it is run again: put what needs it into a function, "
    "and `await self.step(function)`"
)


class NeverWaitsError(Exception):
    """A durable handler computes, or goes round in circles, and waits for nothing."""


class _Future(asyncio.Future[Any]):
    """`TaskGroup` and `wait` keep theirs in sets, whose order is that of their hashes: an address would be another one each time."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number

    def cancel(self, msg: Any = None) -> bool:
        is_left = super().cancel(msg)
        if is_left:
            self.get_loop()._leaves(self)  # type: ignore[attr-defined]
        return is_left


class _Task(asyncio.Task[T]):
    def __init__(self, number: int, coro: Coroutine[Any, Any, T], **options: Any) -> None:
        self._number = number  # first, as asyncio puts it into a set at once
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class DurableLoop(asyncio.AbstractEventLoop):
    """`ask_timer` is called with every timer; it fires when `fire` is called with it. `now` is in seconds since 1970; `seed` is a number
    that other runs have not."""

    def __init__(self, now: float, ask_timer: Callable[[asyncio.TimerHandle], None], seed: int = 0) -> None:
        self.now = now
        self._number = seed
        self._ask_timer = ask_timer
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self.is_abandoned = False
        self.left: list[object] = []
        """Futures and timers that were given up, since somebody last looked."""

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.is_abandoned:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._check()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if when <= self.now:
            self._ready.append(timer)
        else:
            self._ask_timer(timer)
        return timer

    def fire(self, timer: asyncio.TimerHandle) -> None:
        """A timer is due; what it calls is run by `run_until_all_waits`."""
        self.now = max(self.now, timer.when())
        self._ready.append(timer)

    def run_until_all_waits(self) -> None:
        """Run what is ready, and what becomes ready by that.

        Raises:
            NeverWaitsError: that has no end.
        """
        self._as_running_loop(self._run)

    def _as_running_loop(self, run: Callable[[], None]) -> None:
        outer = events._get_running_loop()
        task = asyncio.current_task(outer) if outer is not None else None
        if outer is not None and task is not None:
            _leave_task(outer, task)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._generators.add, self._finalize)
        events._set_running_loop(self)
        try:
            run()
        finally:
            events._set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)
            if outer is not None and task is not None:
                _enter_task(outer, task)

    def _run(self) -> None:
        ready, count, ends = self._ready, 0, 0.0
        while ready:
            handle = ready.popleft()
            if handle.cancelled():
                continue
            with suppress(SystemExit):  # it is the exception of its task, too
                handle._run()
            count += 1
            if count % LOOK_EVERY == 0:
                now = time.monotonic()
                if not ends:
                    ends = now + LONGEST_TURN
                elif now > ends:
                    raise NeverWaitsError(f"it has run for {LONGEST_TURN:g} s without waiting for anything")

    def abandon(self) -> None:
        """Nothing of it will run any more. What its coroutines do as they are closed has no effect. Nothing refers in a circle then: there
        may be a hundred thousand of these a minute, and the collector is in no hurry."""
        self.is_abandoned = True
        self._ready.clear()
        # Now, and not when they are collected, which may be while another handler runs: they would find themselves on its loop.
        self._as_running_loop(self._close_all)
        self._ask_timer = _ask_nobody

    def _close_all(self) -> None:
        for task in list(self._tasks):
            _close(task)

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[Any]:
        self._check()
        return _Future(self._next_number(), self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None, **options: Any
    ) -> asyncio.Task[T]:
        self._check()
        task = _Task(self._next_number(), coro, loop=self, name=name, context=context, **options)
        self._tasks.add(task)
        return task

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.is_abandoned

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Of a task whose error nobody has looked at, or that was not run to its end, asyncio tells when it is collected."""
        if not self.is_abandoned:
            logger.warning("in a durable handler: %s", context.get("message"), exc_info=context.get("exception"))

    def default_exception_handler(self, context: dict[str, Any]) -> None: ...
    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._leaves(handle)

    def _leaves(self, one: object) -> None:
        if not self.is_abandoned:
            self.left.append(one)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _check(self) -> None:
        if self.is_abandoned:
            # As it came in: a coroutine that is closed ends quietly with this, in its `finally` and `async with`, too.
            raise GeneratorExit

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self.is_abandoned:
            self.create_task(generator.aclose())


def _ask_nobody(timer: asyncio.TimerHandle) -> None:
    """Of a loop that is abandoned nobody wants to know."""


def _close(task: asyncio.Task[Any]) -> None:
    waits_for = task._fut_waiter  # type: ignore[attr-defined]
    if waits_for is not None:
        waits_for.cancel()  # with all that it waits for itself, if it is a `gather`
    for future in (task, waits_for):
        for callback, _ in getattr(future, "_callbacks", None) or ():
            future.remove_done_callback(callback)
    coroutine = task.get_coro()
    if coroutine is None or task.done():
        return
    for _ in range(MOST_CLOSES):
        with suppress(BaseException):
            coroutine.close()
            return


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refused(self: object, *args: object, **options: object) -> NoReturn:
        raise RuntimeError(f"loop.{name} {_REFUSED}")

    return refused


for _name, _member in vars(asyncio.AbstractEventLoop).items():
    if inspect.isfunction(_member) and _name not in vars(DurableLoop) and not _name.startswith("__"):
        setattr(DurableLoop, _name, _refusing(_name))
