"""What the pages show of runs and schedules: both are asked for when somebody looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from broker.durable.journal import Journal
from broker.errors import AckbackError, ConfigurationError
from broker.handling.schedules import NobodyFiresError, ScheduleCommands
from broker.protocol.schedules import Do, Line
from broker.stores.factory import open_existing
from broker.stores.interface import Head, Store, StoreError
from broker.transport.interface import Connection, Transport

FRESH = 1.0
"""Seconds for which what was seen of the schedules is shown to others, too."""

T = TypeVar("T")


class RunsInStore:
    """The runs of durable services, in the configuration's store. Every method raises HTTPException if that cannot be read."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: Store | None = None

    async def heads(self, **filters: Any) -> list[Head]:
        """See `Store.heads`."""
        return await self._asked(lambda store: store.heads(**filters))

    async def journal(self, cid: str, service: str | None) -> tuple[Head, Journal]:
        """The run that a CID began (the newest, if several services have one), and its journal."""
        for head in await self.heads(cid=cid, service=service, most=1):
            if chunks := await self._asked(partial(_chunks, head.run)):
                return head, Journal.of(chunks)
        raise HTTPException(404, "There is no such run: it ended long ago ([store] keep), or never began.")

    async def _asked(self, ask: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        try:
            if self._store is None:
                self._store = open_existing(self._url)
            return await ask(self._store)
        except (ConfigurationError, StoreError) as error:
            raise HTTPException(503, f"The runs cannot be read: {error}") from None

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()


async def _chunks(run: str, store: Store) -> list[str]:
    return await store.read(run)


class Schedules:
    """What the daemon that fires says of the schedules. Every method raises HTTPException if it says nothing."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._connection: Connection | None = None
        self._commands: ScheduleCommands
        self._lines: list[Line] = []
        self._seen = 0.0
        self._asking = asyncio.Lock()

    async def lines(self) -> list[Line]:
        """All of them, as they are now, or were a moment ago."""
        async with self._asking:
            if time.monotonic() - self._seen >= FRESH:
                self._lines = await self._asked(lambda commands: commands.lines())
                self._seen = time.monotonic()
            return self._lines

    async def tell(self, do: Do, service: str) -> Any:
        """See `ScheduleCommands.tell`."""
        async with self._asking:
            self._seen = 0.0
            return await self._asked(lambda commands: commands.tell(do, service))

    async def _asked(self, ask: Callable[[ScheduleCommands], Coroutine[Any, Any, T]]) -> T:
        try:
            if self._connection is None or self._connection.lost.done():
                self._connection = await self._transport.connect()
                self._commands = ScheduleCommands(self._connection)
            return await ask(self._commands)
        except NobodyFiresError as error:
            raise HTTPException(503, f"Nothing is known of schedules: {error}.") from None
        except (AckbackError, TimeoutError) as error:
            raise HTTPException(503, f"Nothing is known of schedules now: {error}.") from None

    async def close(self) -> None:
        if self._connection is not None:
            with suppress(AckbackError):
                await self._connection.close()
