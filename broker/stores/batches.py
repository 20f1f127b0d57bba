"""One transaction for many: what is asked for while one is under way goes into the next, together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from broker.stores.interface import StoreError

Work = TypeVar("Work")
Result = TypeVar("Result")

MOST = 500


class Batches(Generic[Work, Result]):
    """`run_all` does all of a batch, or raises for all of it: StoreError if the store is to blame, else one of them is, and each is done by
    itself."""

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
                if not await self._is_done(batch):
                    for one in batch:
                        await self._is_done([one])
        finally:
            self._running = None

    async def _is_done(self, batch: list[tuple[Work, asyncio.Future[Result]]]) -> bool:
        try:
            results = await self._run_all([work for work, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreError):
                return False
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # whoever waited may be gone
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        return True
