"""Waiting has an end: for the broker, and for replies that nobody waits for any more."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pamqp.commands import Connection

from broker import AsyncClient, Client, ConfirmTimeoutError, Service
from broker.errors import BrokerUnavailableError
from broker.handling import dead_letters
from broker.protocol import headers as h
from broker.protocol.message import Message, Publishing
from broker.transport.amqp import AmqpTransport
from broker.transport.interface import Transport
from broker.transport.lane import LaneTransport
from broker.transport.memory import MemoryBroker
from tests.contract.services import Seen
from tests.fake_broker import fake_broker
from tests.support import run, running, unique, until

LONG_ENOUGH = 3.0
"""Seconds in which a call gets through two services, on a machine that runs other tests beside."""


@pytest.mark.parametrize("transport", [LaneTransport, AmqpTransport])
@pytest.mark.parametrize("alarm", [False, True])
def test_a_client_waits_for_a_confirm_only_so_long_and_says_what_it_knows(
    transport: type[AmqpTransport], alarm: bool
) -> None:
    async def test() -> None:
        async with fake_broker() as fake, AsyncClient(transport=transport([fake.url])) as client:
            if alarm:
                fake.publisher.send(0, Connection.Blocked("low on memory"))
                await until(lambda: client._connection and client._connection.blocked)
            with pytest.raises(ConfirmTimeoutError) as one:
                await client.invoke_async("orders", 1, cid="mine", timeout=0.1)
            with pytest.raises(ConfirmTimeoutError) as many:
                await client.invoke_many("orders", [1, 2, 3], timeout=0.1)
            with pytest.raises(TimeoutError) as call:
                await client.call("orders", 1, timeout=0.1)
            assert isinstance(one.value, TimeoutError)
            assert "may or may not be accepted" in str(one.value)
            assert "same cid (mine)" in str(one.value)
            assert [rejected.index for rejected in many.value.rejected] == [0, 1, 2]
            for error in (one.value, many.value, call.value):
                assert ("low on memory" in str(error)) == alarm

    run(test())


def test_a_blocking_client_waits_no_longer_either() -> None:
    broker = MemoryBroker()

    async def test() -> None:
        async with running(broker) as daemon:
            broker.block()
            with Client(transport=broker) as client:
                with pytest.raises(TimeoutError, match="low on memory"):
                    await asyncio.to_thread(client.invoke_async, daemon.callback_queue + "x", timeout=0.1)
            broker.unblock()

    run(test())


def test_commands_for_dead_letters_wait_no_longer_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "CONFIRM_TIMEOUT", 0.1)
    broker = MemoryBroker()

    async def test() -> None:
        async with running(broker) as daemon:
            broker.block()
            with pytest.raises(BrokerUnavailableError, match=r"nothing for 0.1 s \(RabbitMQ has raised an alarm"):
                await dead_letters.confirmed(daemon.connection, Publishing(daemon.callback_queue, Message()))
            broker.unblock()

    run(test())


def test_a_call_that_nobody_waits_for_any_more_is_not_handled_and_no_dead_letter(transport: Transport) -> None:
    async def test() -> None:
        seen, hold = Seen(), asyncio.Event()

        class Busy(Service):
            name = unique("busy")
            concurrency = 1

            async def handle(self, number: int) -> int:
                seen.add(number)
                await hold.wait()
                return number

        async with running(transport, Busy) as daemon, AsyncClient(transport=transport) as client:
            first = asyncio.ensure_future(client.call(Busy, 0))
            await seen.wait(1)
            late = await asyncio.gather(
                *(client.call(Busy, number, timeout=0.2) for number in range(1, 6)), return_exceptions=True
            )
            assert {type(one) for one in late} == {TimeoutError}
            hold.set()
            assert await first == 0
            assert await client.call(Busy, 6) == 6
            assert seen.events == [0, 6]
            assert daemon.dead == []

    run(test())


def test_what_a_handler_calls_for_a_caller_ends_with_the_callers_deadline(transport: Transport) -> None:
    async def test() -> None:
        seen, hold, began = Seen(), asyncio.Event(), list[float]()

        class Inner(Service):
            name = unique("inner")

            async def handle(self) -> None:
                seen.add(self.request.headers[h.DEADLINE])
                await hold.wait()

        class Outer(Service):
            name = unique("outer")

            async def handle(self) -> None:
                began.append(time.time())
                seen.add(self.request.headers[h.DEADLINE])
                try:
                    await self.call(Inner)
                except TimeoutError:
                    seen.add("inner")
                with pytest.raises(TimeoutError, match="waits no longer"):
                    await self.call(Inner)
                seen.add("not even called")

        async with running(transport, Inner, Outer), AsyncClient(transport=transport) as client:
            with pytest.raises(TimeoutError):
                await client.call(Outer, timeout=LONG_ENOUGH)
            events: list[Any] = await seen.wait(4)
            hold.set()
            assert events[2:] == ["inner", "not even called"]
            outer, inner = events[:2]
            assert inner == outer <= round(1000 * (began[0] + LONG_ENOUGH)) + 1

    run(test())


def test_a_deadline_that_is_none_is_an_invalid_request(transport: Transport) -> None:
    class Takes(Service):
        name = unique("any")

        async def handle(self) -> None:
            pass

    async def test() -> None:
        async with running(transport, Takes) as daemon:
            reply = await daemon.ask(Takes.name, Message(b"", {h.DEADLINE: "tomorrow"}))
            assert reply.headers["status"] == "error"
            # Only ackback's own calls end without a trace: whoever else sets one is told.
            cid = unique("cid")
            late = await daemon.ask(Takes.name, Message(b"", {h.DEADLINE: 1}, correlation_id=cid))
            assert late.headers["status"] == "error"
            assert (await daemon.dead_letter(cid)).headers["dead-reason"] == "expired"

    run(test())
