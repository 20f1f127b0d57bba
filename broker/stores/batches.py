"""One transaction for many: what is asked for while one is under way goes into the next, together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")

MOST = 500


class Batches(Generic[Work, Result]):
    """`run_all` does all of a batch, or raises for all of it."""

    def __init__(self, run_all: Callable[[Sequence[Work]], Awaitable[Sequence[Result]]]) -> None:
        self._run_all = run_all
        self._waiting: list[tuple[Work, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    def run(self, work: Work) -> asyncio.Future[Result]:
        """Have it done in the next transaction."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
        return future

    async def close(self) -> None:
        """Wait until all is done that was asked for."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                try:
                    results = await self._run_all([work for work, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                            future.exception()  # whoever waited may be gone
                else:
                    for (_, future), result in zip(batch, results, strict=True):
                        if not future.done():
                            future.set_result(result)
        finally:
            self._running = None
