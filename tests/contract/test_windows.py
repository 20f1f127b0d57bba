"""How much a daemon fetches: a slow service never holds work that another daemon could begin, a quick one is not held up by that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker import Service
from broker.handling import windows
from broker.protocol.message import Message, Publishing
from broker.protocol.queues import own_queue
from broker.transport.interface import Delivery, Transport
from broker.transport.memory import MemoryBroker
from tests.support import Running, named, run, running, unique, until


class Watched(Service):
    """Notes who handles what, and how many at once. While `hangs` is there, handlers wait for it."""

    concurrency = 2
    seconds = 0.0
    hangs: asyncio.Event | None = None
    where = ""
    begun: list[str]
    redelivered: list[bytes]
    running = 0
    most = 0

    async def handle(self) -> None:
        cls: Any = type(self)
        cls.running += 1
        cls.most = max(cls.most, cls.running)
        cls.begun.append(cls.where)
        if self.request.redelivered:
            cls.redelivered.append(self.request.raw)
        if cls.seconds:
            await asyncio.sleep(cls.seconds)
        if cls.hangs:
            await cls.hangs.wait()
        cls.running -= 1


def two(name: str, **attributes: Any) -> tuple[Any, Any]:
    """The same service as two daemons host it."""
    shared: dict[str, Any] = {"name": name, "begun": [], "redelivered": [], **attributes}
    return tuple(
        type(Watched.__name__, (named(name, Watched),), {"where": where, **shared}) for where in ("first", "second")
    )


async def leave_quarantine_to_others(one: Running) -> None:
    """As a daemon does in production, which has a process for what is in quarantine.

    RabbitMQ 3 counts what is on its way to a consumer whose window changes: what it has counted twice is handled there.
    """
    await one.daemon._consumers[one.daemon._quarantine].pause()


def test_two_daemons_share_slow_work_evenly_and_none_exceeds_its_concurrency(transport: Transport) -> None:
    first, second = two(unique("slow"), seconds=0.5)

    async def test() -> None:
        async with running(transport, first) as one, running(transport, second):
            for number in range(40):
                await one.publish(first.name, Message(str(number).encode()))
            await until(lambda: len(first.begun) == 40)
            for cls in (first, second):
                assert 18 <= first.begun.count(cls.where) <= 22
                assert cls.most == 2

    run(test())


def test_what_waits_behind_a_service_that_hangs_is_begun_elsewhere(transport: Transport) -> None:
    """The first daemon has been quick, and so has fetched a lot, when its handlers begin to hang. The second has free slots."""
    first, second = two(unique("turning"))

    async def test() -> None:
        published, shared = 1500, {"callbacks": {"queue": unique("callbacks")}}
        beside = await transport.connect()
        await beside.declare(own_queue(first.name))
        await asyncio.gather(*(beside.publish(Publishing(first.name, Message())) for _ in range(published)))
        await beside.close()
        async with running(
            transport, first, **shared
        ) as one:  # which has all that to handle, and nobody to share the processor with
            arrivals = one.daemon._arrivals
            await until(lambda: len(first.begun) == published)
            while arrivals.intakes[first.name].window.size < 50:  # until its window is wide
                await asyncio.gather(*(one.publish(first.name, Message()) for _ in range(500)))
                published += 500
            await until(lambda: len(first.begun) == published)
            assert first.most <= 2
            await leave_quarantine_to_others(one)
            first.hangs = asyncio.Event()
            begun = len(first.begun)
            async with running(transport, second, **shared):
                await asyncio.gather(*(one.publish(first.name, Message()) for _ in range(300)))
                await until(lambda: len(first.begun) == begun + 300)  # and the first has finished none of them
                assert first.begun[begun:].count("first") == first.most == 2
                first.hangs.set()

    run(test())


def test_what_waits_is_begun_elsewhere_though_hardly_more_was_to_be_fetched(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first daemon's window was full when it last began to consume, with a prefetch of one."""
    first, second = two(unique("full"))
    first.hangs = asyncio.Event()

    async def test() -> None:
        async with running(transport, first) as one:
            intake = one.daemon._arrivals.intakes[first.name]
            with monkeypatch.context() as patch:
                patch.setattr(windows, "TOO_LONG", 3600.0)
                intake.window.size = 100
                await one.daemon._resize(intake)
                await asyncio.gather(*(one.publish(first.name, Message()) for _ in range(100)))
                await until(lambda: intake.in_hand == 100)
                await one.daemon._resize(intake)
                assert intake.granted == 1
            async with running(transport, second):
                await until(lambda: len(first.begun) == 100)
                assert first.begun.count("first") == 2
                first.hangs.set()

    run(test())


async def give_back(transport: Transport, queue: str, bodies: list[bytes]) -> None:
    """Publish messages, fetch them, and give them back."""
    connection = await transport.connect()
    await connection.declare(own_queue(queue))
    await asyncio.gather(*(connection.publish(Publishing(queue, Message(body))) for body in bodies))
    fetched: list[Delivery] = []
    consumer = await connection.consume(queue, len(bodies), fetched.append, lambda reason: None)
    await until(lambda: len(fetched) == len(bodies))
    await consumer.pause()
    for delivery in fetched:
        delivery.requeue()
    await connection.close()


def test_what_has_been_given_back_before_is_begun_elsewhere_too(transport: Transport) -> None:
    """RabbitMQ 3 counts as a crash what is given back: that must neither hold a message where it waits, nor make it a suspect."""
    first, second = two(unique("returning"))
    bodies = [b"%d" % number for number in range(3000)]

    async def test() -> None:
        shared = {"callbacks": {"queue": unique("callbacks")}}
        await give_back(transport, first.name, bodies)
        async with running(transport, first, **shared) as one:
            await leave_quarantine_to_others(one)
            await until(lambda: len(first.begun) >= 1000)  # of which it has many in hand now
            first.hangs = asyncio.Event()
            begun = len(first.begun)
            async with running(transport, second, **shared):
                await until(lambda: len(first.begun) == len(bodies))
                assert first.begun[begun:].count("first") <= 2
                assert sorted(first.redelivered) == sorted(bodies)
                first.hangs.set()

    run(test())


@pytest.mark.embedded
@pytest.mark.parametrize("moment", ["something waits", "the window is made narrower"])
def test_what_has_been_given_back_before_and_waits_at_a_stop_is_no_suspect(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the embedded broker, which counts as RabbitMQ 3 does, but for what is on its way when a window changes."""
    first, second = two(unique("stopping"))
    first.hangs = asyncio.Event()
    bodies = [b"%d" % number for number in range(3000)]
    transport = MemoryBroker()

    async def test() -> None:
        await give_back(transport, first.name, bodies)
        async with running(transport, first) as one:
            arrivals = one.daemon._arrivals
            intake = arrivals.intakes[first.name]
            with monkeypatch.context() as patch:
                patch.setattr(windows, "TOO_LONG", 3600.0)
                intake.window.size = 1000
                await one.daemon._resize(intake)
                await until(lambda: intake.in_hand == 1000)
            if moment == "the window is made narrower":
                await until(lambda: intake._room)
            one.daemon.stop()
            await until(lambda: arrivals._refusing)
            first.hangs.set()
            await one.serving
            assert len(first.begun) == 2
            async with running(transport, second) as other:
                await until(lambda: len(first.redelivered) == len(bodies))
                assert not other.daemon._arrivals.isolated.is_set()

    run(test())
