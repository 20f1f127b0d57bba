"""Who misbehaves holds up nobody else: what cannot go on waits in the broker."""

from __future__ import annotations

import asyncio

from broker import Service
from broker.protocol.entities import Queue
from broker.protocol.message import Message
from broker.transport.interface import Transport
from tests.contract.services import Seen, collecting_callback, echo
from tests.support import Inbox, run, running, unique

FULL = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
MANY = 80  # more than a window at its narrowest


def test_a_clients_full_reply_queue_stops_nobody_and_the_replies_come_once_it_has_room(transport: Transport) -> None:
    async def test() -> None:
        service = echo()
        async with running(transport, service) as daemon:
            full = Inbox(unique("full"))
            await daemon.connection.declare(Queue(full.queue, FULL))
            for number in range(MANY):
                await daemon.publish(service.name, Message(b"%d" % number, reply_to=full.queue))
            for _ in range(5):
                assert (await daemon.ask(service.name, Message(b"innocent"))).body == b"innocent"
            # Answered though the others could not be. (A quorum queue takes some more than its length before it refuses.)
            seen = await daemon.connection.look_at(full.queue)
            assert seen is not None and seen.ready < MANY // 2
            await daemon.connection.consume(full.queue, 100, full.take, lambda _: None)
            got = {(await full.next()).body for _ in range(MANY)}
            assert got == {b"%d" % number for number in range(MANY)}
            assert daemon.dead == []

    run(test())


def test_a_callbacks_full_queue_stops_no_other_callback(transport: Transport) -> None:
    async def test() -> None:
        seen = Seen()
        innocent = collecting_callback(seen)
        async with running(transport, innocent) as daemon:
            full = Inbox(unique("full-callback"))
            await daemon.connection.declare(Queue(full.queue, FULL))
            for number in range(5 * MANY):
                reply = Message(b"%d" % number, {"callback": full.queue}, correlation_id=f"c{number}")
                await daemon.publish(daemon.callback_queue, reply)
            for number in range(20):
                reply = Message(b"%d" % number, {"callback": innocent.name}, correlation_id=f"i{number}")
                await daemon.publish(daemon.callback_queue, reply)
            await seen.wait(20)
            await daemon.connection.consume(full.queue, 100, full.take, lambda _: None)
            got = {(await full.next()).body for _ in range(5 * MANY)}
            assert got == {b"%d" % number for number in range(5 * MANY)}
            assert daemon.dead == []

    run(test())


def test_slow_callbacks_hold_up_no_quick_one(transport: Transport) -> None:
    async def test() -> None:
        seen, hold = Seen(), asyncio.Event()

        class Slow(Service):
            async def handle(self) -> None:
                await hold.wait()
                seen.add("slow")

        slow = [type("Slow", (Slow,), {"name": unique("slow"), "__module__": __name__}) for _ in range(5)]
        quick = collecting_callback(seen)
        async with running(transport, *slow, quick) as daemon:
            for number in range(300):
                reply = Message(b"", {"callback": slow[number % 5].name}, correlation_id=f"s{number}")
                await daemon.publish(daemon.callback_queue, reply)
            for number in range(20):
                reply = Message(b"%d" % number, {"callback": quick.name}, correlation_id=f"q{number}")
                await daemon.publish(daemon.callback_queue, reply)
            await seen.wait(20)
            assert "slow" not in seen.events
            hold.set()
            await seen.wait(320)

    run(test())


def test_a_delayed_request_whose_queue_is_full_waits_and_holds_up_no_other(transport: Transport) -> None:
    async def test() -> None:
        seen = Seen()
        innocent = collecting_callback(seen)

        class Sends(Service):
            name = unique("sends")

            async def handle(self) -> None:
                for number in range(5 * MANY):
                    self.invoke_async(full.queue, number, delay=1)
                self.invoke_async(innocent, "innocent", delay=2)

        full = Inbox(unique("full-target"))
        async with running(transport, innocent, Sends) as daemon:
            await daemon.connection.declare(Queue(full.queue, FULL))
            await daemon.publish(Sends.name, Message(b""))
            await seen.wait(1)
            await daemon.connection.consume(full.queue, 100, full.take, lambda _: None)
            got = {(await full.next()).body for _ in range(5 * MANY)}
            assert got == {b"%d" % number for number in range(5 * MANY)}

    run(test())
