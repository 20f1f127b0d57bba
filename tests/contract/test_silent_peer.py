"""A peer that keeps its connections open and says nothing any more."""

from __future__ import annotations

import asyncio

import pytest

from broker.transport.amqp import AmqpTransport
from broker.transport.lane import LaneTransport
from tests.fake_broker import fake_broker
from tests.support import TIMEOUT, run


@pytest.mark.parametrize("transport", [LaneTransport, AmqpTransport])
def test_of_a_peer_that_falls_silent_is_said_for_how_long_and_on_which_connection(
    transport: type[AmqpTransport],
) -> None:
    async def test() -> None:
        async with fake_broker() as fake:
            connection = await transport([f"{fake.url}?heartbeat=1"]).connect()
            reason = await asyncio.wait_for(connection.lost, TIMEOUT)
            assert reason in [f"nothing was heard for 6 s on the one that {what}" for what in ("publishes", "consumes")]
            await connection.close()

    run(test())
