"""Losing connections, queues and time: the daemon says so, recovers, and drains when it is told to."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from broker import Service
from broker.errors import ConfigurationError
from broker.handling import arrivals
from broker.hosting import registry
from broker.process.daemon import Daemon
from broker.protocol.entities import Queue
from broker.protocol.message import Message, Publishing
from broker.settings import Settings
from broker.transport.interface import Connection, Delivery, Transport
from broker.transport.memory import MemoryBroker
from tests.conftest import USED
from tests.contract.conftest import Cuttable
from tests.support import TIMEOUT, delete_queues, named, run, running, unique, until

Through = Callable[[], AbstractAsyncContextManager[Cuttable]]


async def consumers(connection: Connection, queue: str) -> int:
    state = await connection.look_at(queue)
    return 0 if state is None else state.consumers


class Echo(Service):
    async def handle(self) -> Any:
        return self.request.payload


def test_a_lost_connection_is_said_once_and_made_again(
    transport: Transport, cuttable: Through, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        handled: list[str] = []

        class Target(Service):
            name = unique("target")

            async def handle(self) -> None:
                handled.append(self.request.text)

        async with cuttable() as through, running(through.transport, Target) as daemon:
            for number in range(3):
                caplog.clear()
                through.cut()
                await until(lambda: not daemon.daemon.ready.is_set())
                await until(daemon.daemon.ready.is_set)
                connection = await transport.connect()
                await connection.publish(Publishing(Target.name, Message(b"%d" % number)))
                await until(lambda n=number: str(n) in handled)
                await connection.close()
                told = [one for one in caplog.messages if "was lost" in one]
                assert len(told) == 1
                assert "reconnecting" in told[0]
                assert len([one for one in caplog.messages if one.startswith("ready: ")]) == 1

    with caplog.at_level(logging.INFO):
        run(test())


@pytest.mark.parametrize("style", ["def", "async def"])
def test_a_message_whose_connection_was_lost_while_it_was_handled_comes_again(
    transport: Transport, cuttable: Through, style: str
) -> None:
    async def test() -> None:
        release = threading.Event()
        attempts: list[bool] = []
        target = unique("target")

        class Async(Service):
            name = target

            async def handle(self) -> str:
                attempts.append(self.request.redelivered)
                while not release.is_set():
                    await asyncio.sleep(0.005)
                return "done"

        class Sync(Service):
            name = target

            def handle(self) -> str:
                attempts.append(self.request.redelivered)
                release.wait()
                return "done"

        inbox = unique("inbox")
        async with cuttable() as through, running(through.transport, Async if style == "async def" else Sync) as daemon:
            asking = await transport.connect()
            if not isinstance(transport, MemoryBroker):
                replies: list[Delivery] = []
                await asking.declare(Queue(inbox, exclusive=True))
                await asking.consume(inbox, 10, replies.append, lambda _: None)
            await asking.publish(Publishing(target, Message(correlation_id="c", reply_to=inbox)))
            await until(lambda: len(attempts) == 1)
            through.cut()
            await until(lambda: len(attempts) == 2)
            release.set()
            await until(lambda: not daemon.daemon.busy())
            assert attempts == [False, True]
            if not isinstance(transport, MemoryBroker):
                await until(lambda: replies)
                # The first attempt's outcome went with its connection.
                assert [one.message.body for one in replies] == [b"done"]
            await asking.close()

    run(test())


def test_a_deleted_queue_is_declared_and_consumed_again(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        handled: list[str] = []

        class Target(Service):
            name = unique("target")

            async def handle(self) -> None:
                handled.append(self.request.text)

        async with running(transport, Target) as daemon:
            for queue in (Target.name, daemon.callback_queue):
                if isinstance(transport, MemoryBroker):
                    transport.delete(queue)
                else:
                    await delete_queues(transport, [queue])
                told = f"queue {queue!r}"
                await until(
                    lambda t=told: any(
                        t in one and "declaring and consuming it again" in one for one in caplog.messages
                    )
                )
                # RabbitMQ may end the whole connection of who consumes a queue whose predecessor is not quite gone.
                await until(lambda q=queue: consumers(daemon.connection, q))
            await daemon.publish(Target.name, Message(b"direct"))
            await daemon.publish(
                daemon.callback_queue, Message(b"callback", correlation_id="c", headers={"callback": Target.name})
            )
            await until(lambda: sorted(handled) == ["callback", "direct"])
            assert daemon.daemon.ready.is_set()

    with caplog.at_level(logging.INFO):
        run(test())


def test_a_queue_with_other_arguments_stops_the_start_up(transport: Transport) -> None:
    async def test() -> None:
        connection = await transport.connect()
        target = unique("target")
        await connection.declare(Queue(target, {"x-queue-type": "quorum", "x-delivery-limit": 3}))
        service = type("Target", (Echo,), {"name": target})
        with pytest.raises(ConfigurationError) as caught:
            async with running(transport, service):
                raise AssertionError("it must not start")
        assert f"queue '{target}' exists with other arguments" in str(caught.value)
        assert "delete the queue" in str(caught.value)
        await connection.close()
        await delete_queues(transport, [target])

    run(test())


def test_a_drain_finishes_what_runs_gives_back_what_waits_and_repeats_nothing(transport: Transport) -> None:
    async def test() -> None:
        started: list[str] = []
        release = threading.Event()

        class Target(Service):
            name = unique("target")
            concurrency = 4

            def handle(self) -> None:
                started.append(self.request.text)
                release.wait()

        async with running(transport, Target) as daemon:
            callback = {"callback": Target.name}
            for number in range(6):
                # Four slots; the callback queue's share waits for them inside the daemon.
                await daemon.publish(Target.name, Message(b"%d" % number))
                await daemon.publish(
                    daemon.callback_queue, Message(b"c%d" % number, correlation_id="c", headers=callback)
                )
            await until(lambda: len(started) == 4)
            daemon.daemon.stop()
            await until(lambda: not daemon.daemon.ready.is_set())
            release.set()
            assert await daemon.serving == 0
            assert len(started) == 4
            # Another daemon gets the rest, each once.
            async with running(transport, Target, callbacks={"queue": daemon.callback_queue}):
                await until(lambda: len(started) == 12)
            assert len(set(started)) == 12

    run(test())


def test_what_outlasts_the_grace_period_goes_back_to_its_queue(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        started: list[bool] = []

        class Stuck(Service):
            name = unique("stuck")

            async def handle(self) -> None:
                started.append(self.request.redelivered)
                await asyncio.Event().wait()

        class StuckThread(Service):
            name = unique("stuck-thread")

            def handle(self) -> None:
                started.append(self.request.redelivered)
                release.wait()

        release = threading.Event()
        async with running(transport, Stuck, StuckThread, worker={"grace": 0.05}) as daemon:
            await daemon.publish(Stuck.name, Message(b"a"))
            await daemon.publish(StuckThread.name, Message(b"b"))
            await until(lambda: len(started) == 2)
            daemon.daemon.stop()
            assert await daemon.serving == 2
            assert "stopped: 2 not finished in time went back to their queues" in caplog.messages
            again: list[Delivery] = []
            connection = await transport.connect()
            for service in (Stuck, StuckThread):
                await connection.consume(service.name, 1, again.append, lambda _: None)
            await until(lambda: len(again) == 2)
            assert {one.message.body for one in again} == {b"a", b"b"}
            for one in again:
                one.ack()
            release.set()
            await connection.close()

    with caplog.at_level(logging.INFO):
        run(test())


def test_an_alarm_holds_publishing_back_and_loses_nothing() -> None:
    """On the embedded broker alone: RabbitMQ's alarms are raised from outside of AMQP."""

    async def test() -> None:
        broker = MemoryBroker()
        service = type("Target", (Echo,), {"name": unique("target"), "concurrency": 5})
        async with running(broker, service) as daemon:
            inbox = await daemon.inbox()
            for number in range(20):
                await daemon.publish(service.name, Message(b"%d" % number, reply_to=inbox.queue))
                if number == 2:
                    await until(lambda: inbox.messages.qsize() == 3)
                    broker.block()
                    break
            waiting = [
                asyncio.ensure_future(daemon.publish(service.name, Message(b"%d" % n, reply_to=inbox.queue)))
                for n in range(3, 20)
            ]
            await asyncio.sleep(0)
            assert not any(one.done() for one in waiting)
            broker.unblock()
            await asyncio.gather(*waiting)
            bodies = sorted([int((await inbox.next()).body) for _ in range(20)])
            assert bodies == list(range(20))

    run(test())


def test_where_rabbitmq_hears_no_acknowledgement_timeout_the_daemon_says_whom_it_concerns(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        slow, quick = named(unique("slow"), Echo), type("Quick", (Echo,), {"name": unique("quick"), "timeout": 60.0})
        with caplog.at_level(logging.WARNING):
            async with running(transport, slow, quick) as daemon:
                told = [one for one in caplog.messages if "consumer_timeout = 2592000000" in one]
                assert len(told) == (
                    len(daemon.connection.server.version) > 0 and daemon.connection.server.version < (3, 12)
                )
                assert all(slow.name in one and quick.name not in one for one in told)

    run(test())


@pytest.mark.parametrize("transport", ["aio-pika", "lane"], indirect=True)
def test_a_consumer_that_rabbitmq_times_out_consumes_again_and_nothing_is_lost(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not acknowledged in time is delivered once more, and the late acknowledgement is ignored."""
    monkeypatch.setattr(arrivals, "ACKNOWLEDGEMENT_TIMEOUT", 2.0)
    deliveries: list[str] = []

    class Late(Service):
        name = unique("late")
        concurrency = 2

        async def handle(self) -> str:
            deliveries.append(self.request.text)
            if self.request.text == "late" and deliveries.count("late") == 1:
                await until(lambda: deliveries.count("late") >= 2)
            return self.request.text

    async def test() -> None:
        async with running(transport, Late) as daemon:
            inbox = await daemon.inbox()
            if daemon.connection.server.version < (4, 3):
                USED["consumers that time out"] = "NOT TRIED: RabbitMQ heeds a consumer's own timeout since 4.3"
                pytest.skip("this broker does not heed a consumer's timeout")
            for text in ("late", "in time"):
                await daemon.publish(Late.name, Message(text.encode(), correlation_id=text, reply_to=inbox.queue))
            assert (await inbox.next()).body == b"in time"
            await until(lambda: deliveries.count("late") >= 2)
            # On the channel that RabbitMQ is about to close it might be delivered twice.
            await until(lambda: any(one.startswith("consuming queue") for one in caplog.messages))
            await daemon.publish(Late.name, Message(b"after", reply_to=inbox.queue))
            replies = set()
            while replies != {"late", "after"}:
                replies.add((await inbox.next()).body.decode())
            await until(lambda: not daemon.daemon.busy())
            assert not daemon.dead
            assert deliveries.count("in time") == deliveries.count("after") == 1

    with caplog.at_level(logging.INFO):
        run(test())
    assert any("; declaring and consuming it again" in one for one in caplog.messages)
    assert not any("CHANNEL_ERROR" in one for one in caplog.messages), "it cost the whole connection"


@pytest.mark.parametrize("transport", ["aio-pika", "lane"], indirect=True)
def test_a_daemon_that_is_only_starting_stops_too(transport: Transport) -> None:
    """At whatever moment: what it waits for may swallow the cancellation."""
    settings = Settings.model_validate({"callbacks": {"queue": unique("callbacks")}})
    found = registry.register([("tests", named(unique("echo"), Echo))], settings)

    async def test() -> None:
        for moment in range(50):
            daemon = Daemon(settings, found, transport)
            serving = asyncio.ensure_future(daemon.run())
            await asyncio.wait([serving], timeout=moment / 1000)
            daemon.stop()
            ended, _ = await asyncio.wait([serving], timeout=TIMEOUT)
            assert ended, f"told to stop {moment} ms after its start, it goes on"
        await delete_queues(transport, [settings.callbacks.queue, *(one.name for one in found)])

    run(test())
