"""Reading the stream: batch after batch, from some place in it to its end, or on and on."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from broker.errors import AckbackError, ConnectionLostError, InvalidInputError
from broker.protocol.events import EVENTS, Event, inflated, parsed
from broker.protocol.message import Message
from broker.transport.interface import Connection, Delivery, Offset

REMEMBERED = 64
"""Of a writer's batches, the last: it has far fewer unconfirmed at once."""
WINDOW = 100
"""Messages that are in this process at once; each may be some tens of kilobytes."""
SILENCE = 0.3
"""Seconds without a message after which the last chunk of a stream is taken to be read."""
FIRST_PATIENCE = 5.0
"""Seconds within which the first message of a stream that has some is to come."""
UNKNOWN = "unknown"


class NoRecordError(AckbackError):
    """Nothing is recorded."""

    def __init__(self) -> None:
        super().__init__(
            "nothing is recorded: there is no stream 'ackback.events' (a daemon declares it, unless [events] enabled = false)"
        )


class Batch(NamedTuple):
    """One message of the stream. `number` is 0 where the writer has not said which of its batches this is."""

    offset: int
    writer: str
    number: int
    message: Message


class Repeats:
    """Knows a batch that was written again, as its writer was not told that it is confirmed: soon after the first time, if at all."""

    def __init__(self) -> None:
        self._last: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def is_one(self, batch: Batch) -> bool:
        last = self._last[batch.writer]
        if not batch.number or batch.number not in last:
            last.append(batch.number)
            return False
        return True


async def read(connection: Connection, offset: Offset = "first", *, follow: bool = False) -> AsyncIterator[Batch]:
    """The batches from `offset` on, each once, up to those that are there now; with `follow`, without end.

    Raises:
        NoRecordError: there is no stream.
        ConnectionLostError: the connection ended.
        ConfigurationError: the user may not read the stream.
    """
    seen = await connection.look_at(EVENTS)
    if seen is None:
        raise NoRecordError
    # RabbitMQ counts what is on a stream some seconds after the fact: none counted may still be some.
    end = -1 if follow else await offset_of(connection, "last", FIRST_PATIENCE if seen.ready else SILENCE)
    if end < 0 and not follow:
        return
    arrived: asyncio.Queue[Delivery | str] = asyncio.Queue()
    connection.lost.add_done_callback(lambda lost: arrived.put_nowait(lost.result()))
    consumer = await connection.consume(EVENTS, WINDOW, arrived.put_nowait, arrived.put_nowait, offset=offset)
    reached, repeats = -1, Repeats()
    try:
        while True:
            try:
                async with asyncio.timeout(None if follow else SILENCE if reached >= end else FIRST_PATIENCE):
                    delivery = await arrived.get()
            except TimeoutError:
                return
            if isinstance(delivery, str):
                raise ConnectionLostError(delivery)
            delivery.ack()
            batch = _batch(delivery.message)
            reached = batch.offset
            if not repeats.is_one(batch):
                yield batch
    finally:
        await consumer.cancel()


async def offset_of(connection: Connection, place: Literal["first", "last"], patience: float = FIRST_PATIENCE) -> int:
    """The offset of the stream's first message, or of the first of its last chunk; -1 if nothing comes within so many seconds."""
    found = await batch_at(connection, place, patience)
    return -1 if found is None else found.offset


async def batch_at(connection: Connection, place: Offset, patience: float = FIRST_PATIENCE) -> Batch | None:
    """The first batch from there on; None if nothing comes within so many seconds."""
    arrived: asyncio.Queue[Delivery | None] = asyncio.Queue()
    consumer = await connection.consume(
        EVENTS, WINDOW, arrived.put_nowait, lambda _: arrived.put_nowait(None), offset=place
    )
    try:
        async with asyncio.timeout(patience):
            while (delivery := await arrived.get()) is not None:
                delivery.ack()
                batch = _batch(delivery.message)
                if not isinstance(place, int) or batch.offset >= place:
                    return batch
    except TimeoutError:
        pass
    finally:
        await consumer.cancel()
    return None


def _batch(message: Message) -> Batch:
    offset, writer, number = (message.headers.get(name) for name in ("x-stream-offset", "daemon", "batch"))
    return Batch(
        offset if isinstance(offset, int) else 0,
        writer if isinstance(writer, str) else UNKNOWN,
        number if isinstance(number, int) else 0,
        message,
    )


def events_of(batch: Batch) -> list[Event]:
    """The events of a batch; none if it is no batch: anybody may have written to the stream."""
    try:
        return parsed(inflated(batch.message))
    except InvalidInputError:
        return []


def when(event_time: int) -> datetime:
    """An event's `t` as a time in UTC."""
    return datetime.fromtimestamp(event_time / 1e6, UTC)
