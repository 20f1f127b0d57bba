"""A peer that keeps its connections open and says nothing any more."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

import pamqp.frame
import pytest
import uvloop
from pamqp.commands import Connection

from broker.errors import BrokerUnavailableError
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


START = pamqp.frame.marshal(Connection.Start(), 0)
TUNE = pamqp.frame.marshal(Connection.Tune(2047, 131_072, 60), 0)


@pytest.mark.parametrize("transport", [LaneTransport, AmqpTransport])
@pytest.mark.parametrize("said", [b"", START[:3], START[:-1], START, START + TUNE], ids=len)
def test_a_peer_that_hangs_up_while_it_is_greeted_is_not_there_yet(transport: type[AmqpTransport], said: bytes) -> None:
    """So does the proxy before a RabbitMQ that is only starting: wherever it does, trying again is right."""

    def hang_up() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listening.accept()
                with accepted:
                    accepted.sendall(said)
                    accepted.shutdown(socket.SHUT_WR)
                    while accepted.recv(4096):  # else what it is greeted with is answered by a reset
                        pass

    async def test() -> None:
        for _ in range(20):
            with pytest.raises(BrokerUnavailableError, match=f"RabbitMQ at 127.0.0.1:{port} "):
                await transport([f"amqp://127.0.0.1:{port}/"]).connect()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        # In a thread: it hangs up while the loop is still busy with the connection.
        threading.Thread(target=hang_up, daemon=True).start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test())
        listening.shutdown(socket.SHUT_RDWR)
