"""Dead letters, taken off their queue: one is published again, confirmed, before it may be acknowledged there."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from broker.errors import BrokerUnavailableError, NotAcceptedError, alarm_note
from broker.protocol.deadletters import DeadLetter
from broker.protocol.message import Publishing
from broker.transport.interface import Connection

CONFIRM_TIMEOUT = 30.0
"""Seconds."""


async def confirmed(connection: Connection, publishing: Publishing) -> None:
    """Publish, and wait for the broker's confirm.

    Raises:
        NotAcceptedError: the broker refused it.
        BrokerUnavailableError: the connection ended, or nothing was confirmed for too long.
    """
    try:
        async with asyncio.timeout(CONFIRM_TIMEOUT):
            await connection.publish(publishing)
    except TimeoutError:
        raise BrokerUnavailableError(
            f"RabbitMQ has confirmed nothing for {CONFIRM_TIMEOUT:g} s{alarm_note(connection.blocked)}"
        ) from None


async def replay(connection: Connection, dead: DeadLetter, callback_queue: str) -> None:
    """Publish a dead letter to the queue that it was for. It is still among the dead letters then: acknowledge it.

    Raises:
        NotAcceptedError: nothing says which queue that was, or the broker refused it.
        BrokerUnavailableError: the connection ended, or nothing was confirmed for too long.
    """
    publishing = dead.replayed(callback_queue, datetime.now(UTC))
    if publishing is None:
        raise NotAcceptedError("nothing in it says which queue it was for")
    await confirmed(connection, publishing)
