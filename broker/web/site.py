"""Everything behind the pages, alive for as long as the server is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from broker.client import AsyncClient
from broker.errors import AckbackError
from broker.log import logger
from broker.recording.index import Index
from broker.recording.lookup import Lookup
from broker.settings import Settings
from broker.transport.factory import create
from broker.transport.interface import Connection, Transport
from broker.web.board import Board
from broker.web.dead_letters import DeadLetters
from broker.web.durable import RunsInStore, Schedules
from broker.web.follower import Follower
from broker.web.guard import Tokens
from broker.web.jobs import Jobs
from broker.web.queues import Queues

AGAIN_AFTER = 1.0


class Site:
    def __init__(self, settings: Settings, index: Index, *, read_only: bool) -> None:
        self.settings = settings
        self.is_read_only = read_only
        self.transport: Transport = create(settings.urls, settings.broker.transport)
        self.lookup = Lookup(index.path)
        self.follower = Follower(index, self.lookup)
        self.queues = Queues(lambda: self.board.names())
        self.board = Board(self.follower, self.queues, self.lookup)
        self.dead = DeadLetters(self.transport)
        self.jobs = Jobs(self.transport, settings.callbacks.queue, self.dead)
        self.runs = RunsInStore(settings.store_url)
        self.schedules = Schedules(self.transport)
        self.tokens = Tokens()
        self.client = AsyncClient(settings=settings, transport=self.transport)

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Follow the record, look at queues, and keep the board, within."""
        await self.follower.remember()
        await self.board.update()
        tasks = [
            asyncio.ensure_future(self._again_and_again(self.follower.follow, self._tell)),
            asyncio.ensure_future(self._again_and_again(self.queues.watch, lambda _: None)),
            asyncio.ensure_future(self.board.run()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for close in (
                self.jobs.close,
                self.dead.close,
                self.client.close,
                self.runs.close,
                self.schedules.close,
                self.follower.close,
            ):
                with suppress(AckbackError):
                    await close()

    def _tell(self, problem: str) -> None:
        if problem != self.follower.problem:
            logger.warning("the record cannot be read: %s", problem)
        self.follower.problem = problem

    async def _again_and_again(
        self, work: Callable[[Connection], Awaitable[None]], tell: Callable[[str], None]
    ) -> None:
        while True:
            try:
                connection = await self.transport.connect()
                try:
                    await work(connection)
                finally:
                    await connection.close()
            except AckbackError as error:
                tell(str(error))
            except Exception as error:
                logger.exception("the page goes on after an error of its own")
                tell(f"{type(error).__name__}: {error}")
            await asyncio.sleep(AGAIN_AFTER)
