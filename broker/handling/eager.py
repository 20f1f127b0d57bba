"""Coroutines that are begun at once, in place, and become tasks only if a handler waits.

Most handlings never wait: their handlers compute, and what they publish is confirmed by a callback. A task for each would cost an
object, a turn of the event loop and a write of its own. Python 3.12 has eager tasks for that; this does it on every Python from
3.11, and makes no task at all for a coroutine that does not wait.

How: a coroutine's first step is run by hand, and meanwhile a spare task counts as the current one. If the coroutine ends with
its first step, the spare serves the next one. If it waits for something, the spare takes over what is left of it: so whatever the
first step asked of its current task (`asyncio.timeout`, `TaskGroup`) goes on to hold, and a task never goes from a coroutine that
waited to another. Where it is our own code that waits, for a thread or a confirm, it says so with `directly`: then no task is needed
either, the future's callback goes on by hand.

Telling asyncio which task is the current one is documented for such uses:
https://docs.python.org/3/library/asyncio-extending.html#task-lifetime-support
"""

from __future__ import annotations

import asyncio
import types
from asyncio import _enter_task, _leave_task
from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, TypeVar

T = TypeVar("T")


class _Direct:
    """A future that a coroutine waits for with no need of a task."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future


@types.coroutine
def directly(future: asyncio.Future[T]) -> Generator[Any, None, T]:
    """Await a future, in a coroutine that `Eager` has begun; not within an `asyncio.timeout`, which needs the task to cancel it."""
    if not future.done():
        yield _Direct(future)
    return future.result()


class Eager:
    """Begins coroutines. Each runs in a copy of the present context, as a task's does."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spare: _Rest | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._direct: dict[asyncio.Future[Any], tuple[Coroutine[Any, Any, None], Context]] = {}

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine up to where it first waits; what it raises there is raised here, later it is its task's."""
        self._step(coroutine, copy_context())

    async def cancel(self) -> None:
        """Cancel what waits, and let it end."""
        for future, (coroutine, context) in list(self._direct.items()):
            del self._direct[future]
            _Rest(self._loop, self._tasks).take_over(coroutine, context, _Direct(future))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._spare is not None:
            self._spare.task.cancel()
            self._spare = None

    def _step(self, coroutine: Coroutine[Any, Any, None], context: Context) -> None:
        loop, rest = self._loop, self._spare
        if rest is None or rest.task.cancelling():
            rest = self._spare = _Rest(loop, self._tasks)
        current = asyncio.current_task(loop)
        if current is not None:
            _leave_task(loop, current)
        _enter_task(loop, rest.task)
        try:
            waited_for = context.run(coroutine.send, None)
        except StopIteration:
            return
        finally:
            _leave_task(loop, rest.task)
            if current is not None:
                _enter_task(loop, current)
        if type(waited_for) is _Direct:
            future = waited_for.future
            self._direct[future] = coroutine, context
            future.add_done_callback(self._go_on)
            return
        self._spare = None
        rest.take_over(coroutine, context, waited_for)

    def _go_on(self, future: asyncio.Future[Any]) -> None:
        if waiting := self._direct.pop(future, None):
            self._step(*waiting)


class _Rest:
    """A task, and the coroutine whose rest it runs, once it has one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[None]]) -> None:
        self._loop = loop
        self._tasks = tasks
        self._taken: tuple[Coroutine[Any, Any, None], Context, Any] | None = None
        self._parked: asyncio.Future[None] | None = None
        running = self._run()
        # Begun here, up to its first `yield`: so a cancellation finds it within its `try`.
        running.send(None)
        self.task = loop.create_task(running)

    def take_over(self, coroutine: Coroutine[Any, Any, None], context: Context, waited_for: Any) -> None:
        """Go on with a coroutine whose last step has ended with `waited_for`."""
        self._taken = coroutine, context, waited_for
        self._tasks.add(self.task)
        if self._parked is not None and not self._parked.done():
            self._parked.set_result(None)

    async def _run(self) -> None:
        try:
            await self._steps()
        finally:
            self._tasks.discard(self.task)

    @types.coroutine
    def _steps(self) -> Generator[Any, None, None]:
        error: BaseException | None = None
        try:
            yield
            if self._taken is None:
                self._parked = self._loop.create_future()
                yield from self._parked
        except asyncio.CancelledError as cancelled:
            if self._taken is None:
                raise
            error = cancelled
        assert self._taken is not None
        coroutine, context, waited_for = self._taken
        if error is not None and isinstance(waited_for, asyncio.Future):
            waited_for.cancel()
        while True:
            if error is None:
                try:
                    if type(waited_for) is _Direct:
                        yield from asyncio.wait([waited_for.future]).__await__()
                    else:
                        yield waited_for
                except BaseException as thrown:
                    error = thrown
            try:
                if error is None:
                    waited_for = context.run(coroutine.send, None)
                else:
                    throwing, error = error, None
                    waited_for = context.run(coroutine.throw, throwing)
            except StopIteration:
                return
