"""Reads the stream, without end, into the index and the summary of the last minute."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from broker.errors import AckbackError, ConnectionLostError
from broker.protocol.events import DEAD, EVENTS
from broker.recording.index import Index, Place
from broker.recording.lookup import Lookup
from broker.recording.reading import REMEMBERED, Batch, NoRecordError, batch_at, events_of, offset_of, read
from broker.recording.summary import WINDOW, Summary
from broker.transport.interface import Connection, Offset

T = TypeVar("T")
BATCHES = 40
"""Of a transaction at most: some ten thousand events."""
FLUSH_AFTER = 0.25
"""Seconds for which batches are gathered, once all that was there is read."""
FORGET_EVERY = 60.0
SILENCE = 0.5


class Follower:
    """`problem` says why nothing is read at the moment; None while the stream is. `progress` is how much of what was there has been read,
    from 0 to 1; None once all of it is.

    The index is written, and the summary kept, on a thread of its own: `on_thread`.
    """

    def __init__(self, index: Index, lookup: Lookup) -> None:
        self.problem: str | None = "RabbitMQ has not been reached yet"
        self.progress: float | None = None
        self.summary = Summary()
        self.dead_letters = 0
        """How many have been filed since this page was started."""
        self._index = index
        self._lookup = lookup
        self._executor = ThreadPoolExecutor(1, "ackback-index")
        self._end = -1

    async def on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def remember(self) -> None:
        """Take the last minute from what has been indexed before."""
        await self.on_thread(self._remember)

    def _remember(self) -> None:
        for t, service, took_ms, failed in self._lookup.handlings_since(int((time.time() - WINDOW) * 1e6)):
            self.summary.add_handling(t, service, took_ms, failed)
        for writer, event in self._lookup.daemons():
            self.summary.add(event, writer)

    async def follow(self, connection: Connection) -> None:
        """Read for as long as the connection lasts.

        Raises:
            AckbackError: the connection is lost, there is no stream, or the user may not read it.
        """
        place = await self._place(connection)
        forgetting = asyncio.ensure_future(self._forget(connection))
        try:
            await self._read(connection, place)
        finally:
            forgetting.cancel()
            with suppress(asyncio.CancelledError, AckbackError):
                await forgetting

    async def _place(self, connection: Connection) -> Place:
        """Where the index is in this stream; at its beginning if it is of another."""
        if await connection.look_at(EVENTS) is None:
            raise NoRecordError
        place = await self.on_thread(lambda: self._index.place)
        self._end = await offset_of(connection, "last", SILENCE)
        if place.offset >= 0:
            found = await batch_at(connection, place.offset)
            if found is None or (found.offset == place.offset and (found.writer, found.number) != place[1:]):
                place = await self.on_thread(self._begin_anew)
        self.problem = None
        self.progress = 0.0 if place.offset < self._end else None
        return place

    def _begin_anew(self) -> Place:
        self._index.clear()
        return self._index.place

    async def _read(self, connection: Connection, place: Place) -> None:
        batches: asyncio.Queue[Batch] = asyncio.Queue(2 * BATCHES)
        reading = asyncio.ensure_future(self._gather(connection, place, batches))
        try:
            while not reading.done() or not batches.empty():
                getting = asyncio.ensure_future(batches.get())
                await asyncio.wait({getting, reading}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    break
                taken = [getting.result()]
                if self.progress is None:
                    await asyncio.sleep(FLUSH_AFTER)
                while len(taken) < BATCHES and not batches.empty():
                    taken.append(batches.get_nowait())
                await self.on_thread(lambda taken=taken: self._take(taken))  # type: ignore[misc]
                done = taken[-1].offset
                self.progress = None if done >= self._end else max(0.0, (done + 1) / (self._end + 1))
            await reading
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, AckbackError):
                await reading

    async def _gather(self, connection: Connection, place: Place, batches: asyncio.Queue[Batch]) -> None:
        # Some batches that are in the index already are read again, so that those are known that their writer repeats.
        begin: Offset = max(0, place.offset - REMEMBERED) if place.offset >= 0 else "first"
        async for batch in read(connection, begin, follow=True):
            if batch.offset > place.offset:
                await batches.put(batch)

    def _take(self, batches: list[Batch]) -> None:
        found = [(batch, events_of(batch)) for batch in batches]
        for batch, events in found:
            for event in events:
                self.summary.add(event, batch.writer)
                self.dead_letters += event["event"] == DEAD
        try:
            self._index.add(found)
        except sqlite3.OperationalError as error:
            raise ConnectionLostError(f"the index cannot be written: {error}") from None
        except sqlite3.DatabaseError as error:
            self._index.remake(error)
            self._lookup.reopen()
            raise ConnectionLostError(f"the index is made anew: {error}") from None

    async def _forget(self, connection: Connection) -> None:
        """Have the index forget what the stream has, now and then."""
        while True:
            await asyncio.sleep(FORGET_EVERY)
            first = await offset_of(connection, "first")
            if first > 0:
                steps = self._index.forget_before(first)
                while await self.on_thread(lambda: next(steps, None)) is not None:  # noqa: B023
                    await asyncio.sleep(0)

    async def close(self) -> None:
        await self.on_thread(self._index.close)
        self._executor.shutdown()
