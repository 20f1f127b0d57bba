"""Looking through a queue, message by message, and taking out what one is done with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.errors import ConnectionLostError
from broker.protocol.message import Message
from broker.transport.interface import Connection, Delivery

# How many messages are in the process at once. What is looked at and left alone stays unacknowledged, so that it is not seen twice:
# once this many are, a further consumer goes on.
WINDOW = 500
SILENCE = 3.0


async def walk(connection: Connection, queue: str, visit: Callable[[Message], Awaitable[bool]]) -> None:
    """Visit once each message that is in a queue now, in order and in bounded memory.

    A message that `visit` returns True for is acknowledged, and so gone. All others are back in the queue once the connection is
    closed, as are those that were not reached if this is interrupted.

    Raises:
        ConnectionLostError: the connection ended before all were visited.
    """
    seen = await connection.look_at(queue)
    remaining = seen.ready if seen else 0
    arrived: asyncio.Queue[Delivery | None] = asyncio.Queue()
    connection.lost.add_done_callback(lambda _: arrived.put_nowait(None))
    left_alone = WINDOW
    while remaining:
        if left_alone == WINDOW:
            await connection.consume(queue, WINDOW, arrived.put_nowait, lambda _: arrived.put_nowait(None))
            left_alone = 0
        try:
            delivery = await asyncio.wait_for(arrived.get(), SILENCE)
        except TimeoutError:
            return  # somebody else has taken the rest
        if delivery is None:
            raise ConnectionLostError("RabbitMQ ended the deliveries")
        if await visit(delivery.message):
            delivery.ack()
        else:
            left_alone += 1
        remaining -= 1
