"""What every transport promises: the Protocol of `broker.transport`, tested from its outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from broker.errors import ConfigurationError, ConnectionLostError, NotAcceptedError, UnroutableError
from broker.protocol.entities import Queue
from broker.protocol.message import Message, Publishing
from broker.protocol.names import DEAD_LETTERS
from broker.protocol.queues import own_queue
from broker.transport.browsing import walk
from broker.transport.interface import Connection, Delivery, Transport
from tests.support import delete_queues, run, unique, until

QUORUM: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 3}


def ignore(_: object) -> None:
    pass


@asynccontextmanager
async def queue(transport: Transport, **arguments: Any) -> AsyncIterator[tuple[Connection, str]]:
    connection = await transport.connect()
    name = unique("contract")
    await connection.declare(Queue(name, QUORUM | arguments))
    try:
        yield connection, name
    finally:
        await connection.close()
        await delete_queues(transport, [name])


def test_a_message_arrives_as_it_was_sent(transport: Transport) -> None:
    sent = Message(
        body=b"\x00\xffbody",
        headers={
            "text": "ä",
            "int": -5,
            "big": 2**40,
            "float": 1.5,
            "bool": True,
            "none": None,
            "bytes": b"\x00\xff",
            "list": [1, "two", [3]],
            "table": {"a": {"b": 1}},
            "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "decimal": Decimal("1.25"),
        },
        content_type="application/x-thing",
        content_encoding="binary",
        correlation_id="cid",
        reply_to="somewhere",
        message_id="mid",
        expiration=60_000,
        priority=7,
        timestamp=1_795_435_200,
        type="kind",
        app_id="app",
    )

    async def test() -> None:
        async with queue(transport) as (connection, name):
            got: list[Delivery] = []
            await connection.consume(name, 10, got.append, ignore)
            await connection.publish(Publishing(name, sent))
            await until(lambda: got)
            assert got[0].message == sent
            assert got[0].redelivered is False
            got[0].ack()

    run(test())


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_072, 300_000])
def test_bodies_of_any_size_arrive_whole(transport: Transport, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]

    async def test() -> None:
        async with queue(transport) as (connection, name):
            got: list[Delivery] = []
            await connection.consume(name, 10, got.append, ignore)
            await connection.publish(Publishing(name, Message(body)))
            await until(lambda: got)
            assert got[0].message.body == body

    run(test())


def test_an_unroutable_message_is_an_error_and_its_neighbours_are_not(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            missing = unique("missing")
            message = Message(b"x", message_id="the same")
            results = await asyncio.gather(
                *(connection.publish(Publishing(target, message)) for target in (name, missing, name, missing)),
                return_exceptions=True,
            )
            assert [type(one) for one in results] == [type(None), UnroutableError, type(None), UnroutableError]
            assert missing in str(results[1])
            assert "no daemon hosts" in str(results[1])

    run(test())


def test_messages_arrive_in_order_within_the_prefetch(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            for number in range(10):
                await connection.publish(Publishing(name, Message(b"%d" % number)))
            got: list[Delivery] = []
            await connection.consume(name, 3, got.append, ignore)
            for number in range(10):
                await until(lambda n=number: len(got) > n)
                assert len(got) <= number + 3
                got[number].ack()
            assert [delivery.message.body for delivery in got] == [b"%d" % number for number in range(10)]

    run(test())


def test_what_is_given_back_comes_again_marked(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            got: list[Delivery] = []
            await connection.consume(name, 1, got.append, ignore)
            await connection.publish(Publishing(name, Message(b"x")))
            (await until(lambda: got))[0].requeue()
            await until(lambda: len(got) == 2)
            assert got[1].redelivered is True
            got[1].ack()

    run(test())


def test_what_a_closed_connection_had_goes_to_another(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            first, second = await transport.connect(), await transport.connect()
            got: list[Delivery] = []
            await first.consume(name, 10, got.append, ignore)
            await connection.publish(Publishing(name, Message(b"kept")))
            await connection.publish(Publishing(name, Message(b"acked")))
            await until(lambda: len(got) == 2)
            assert got[1].live
            got[1].ack()
            await first.close()
            assert not got[0].live
            got[0].ack()  # too late: it must do nothing
            again: list[Delivery] = []
            await second.consume(name, 10, again.append, ignore)
            await until(lambda: again)
            assert [(one.message.body, one.redelivered) for one in again] == [(b"kept", True)]
            again[0].ack()
            await second.close()
            assert not first.lost.done()  # it was closed, not lost

    run(test())


def test_a_cancelled_consumer_gets_nothing_more_and_may_still_acknowledge(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            got: list[Delivery] = []
            cancelled: list[str] = []
            consumer = await connection.consume(name, 10, got.append, cancelled.append)
            await connection.publish(Publishing(name, Message(b"first")))
            await until(lambda: got)
            await consumer.cancel()
            await connection.publish(Publishing(name, Message(b"second")))
            got[0].ack()
            other: list[Delivery] = []
            await connection.consume(name, 10, other.append, ignore)
            await until(lambda: other)
            assert [one.message.body for one in got] == [b"first"]
            assert [one.message.body for one in other] == [b"second"]
            assert cancelled == []

    run(test())


def test_a_deleted_queue_ends_its_consumer_and_nothing_else(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, doomed), queue(transport) as (_, other):
            reasons: list[str] = []
            got: list[Delivery] = []
            await connection.consume(doomed, 10, ignore, reasons.append)
            await connection.consume(other, 10, got.append, ignore)
            await delete(transport, doomed)
            await until(lambda: reasons)
            assert doomed in reasons[0]
            await connection.publish(Publishing(other, Message(b"x")))
            await until(lambda: got)
            await connection.declare(Queue(doomed, QUORUM))
            await connection.consume(doomed, 10, got.append, ignore)
            await connection.publish(Publishing(doomed, Message(b"y")))
            await until(lambda: len(got) == 2)

    run(test())


def test_a_queue_with_other_arguments_is_refused_and_says_how_it_differs(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            await connection.declare(Queue(name, QUORUM))
            with pytest.raises(ConfigurationError) as caught:
                await connection.declare(Queue(name, QUORUM | {"x-delivery-limit": 7}))
            text = str(caught.value)
            assert name in text
            assert "x-delivery-limit is 3 there and 7 here" in text
            assert "delete the queue" in text
            await connection.publish(Publishing(name, Message(b"the connection lives on")))

    run(test())


def test_consuming_a_queue_that_is_not_there_is_refused(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            missing = unique("missing")
            with pytest.raises(ConfigurationError, match=missing):
                await connection.consume(missing, 1, ignore, ignore)
            await connection.publish(Publishing(name, Message(b"the connection lives on")))

    run(test())


def test_a_full_queue_refuses(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport, **{"x-max-length": 2, "x-overflow": "reject-publish"}) as (connection, name):
            with pytest.raises(NotAcceptedError, match=name):
                # RabbitMQ may take one more than the maximum.
                for _ in range(5):
                    await connection.publish(Publishing(name, Message(b"x")))

    run(test())


def test_expired_messages_go_where_the_queue_says(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, graveyard):
            doomed = unique("contract")
            arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": graveyard}
            await connection.declare(Queue(doomed, QUORUM | arguments))
            got: list[Delivery] = []
            await connection.consume(graveyard, 10, got.append, ignore)
            await connection.publish(Publishing(doomed, Message(b"x", expiration=20, message_id="m", reply_to="r")))
            await until(lambda: got)
            message = got[0].message
            assert (message.expiration, message.message_id, message.reply_to) == (None, "m", "r")
            death = message.headers["x-death"][0]
            assert (death["reason"], death["queue"], death["original-expiration"]) == ("expired", doomed, "20")
            await delete(transport, doomed)

    run(test())


def test_a_message_that_is_delivered_too_often_goes_where_the_queue_says(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, graveyard):
            doomed = unique("contract")
            arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": graveyard}
            await connection.declare(Queue(doomed, QUORUM | arguments))
            buried: list[Delivery] = []
            await connection.consume(graveyard, 10, buried.append, ignore)
            await connection.publish(Publishing(doomed, Message(b"x")))
            deliveries = 0
            while not buried:
                crashing = await transport.connect()
                got: list[Delivery] = []
                await crashing.consume(doomed, 1, got.append, ignore)
                await until(lambda got=got: got or buried)
                deliveries += len(got)
                await crashing.close()
            assert deliveries == QUORUM["x-delivery-limit"] + 1
            assert buried[0].message.headers["x-death"][0]["reason"] == "delivery_limit"
            await delete(transport, doomed)

    run(test())


def test_an_exclusive_queue_goes_with_its_connection(transport: Transport) -> None:
    async def test() -> None:
        owner, other = await transport.connect(), await transport.connect()
        name = unique("exclusive")
        await owner.declare(Queue(name, exclusive=True))
        await other.publish(Publishing(name, Message(b"x")))
        with pytest.raises(ConfigurationError, match=name):
            await other.declare(Queue(name, exclusive=True))
        await owner.close()

        async def gone() -> bool:
            try:
                await other.publish(Publishing(name, Message(b"x")))
            except UnroutableError:
                return True
            except NotAcceptedError:
                pass  # it went while the message was on its way
            return False

        while not await gone():
            pass
        await other.close()

    run(test())


def test_a_closed_connection_refuses_clearly(transport: Transport) -> None:
    async def test() -> None:
        connection = await transport.connect()
        await connection.close()
        with pytest.raises(ConnectionLostError):
            await connection.publish(Publishing("anything", Message()))
        with pytest.raises(ConnectionLostError):
            await connection.declare(Queue("anything", exclusive=True))

    run(test())


def test_many_publishes_at_once_are_all_confirmed(transport: Transport) -> None:
    async def test() -> None:
        async with queue(transport) as (connection, name):
            await asyncio.gather(
                *(connection.publish(Publishing(name, Message(b"%d" % n, message_id=str(n)))) for n in range(500))
            )
            got: list[Delivery] = []
            await connection.consume(name, 1000, got.append, ignore)
            await until(lambda: len(got) == 500)
            for delivery in got:
                delivery.ack()
            assert sorted(int(one.message.body) for one in got) == list(range(500))

    run(test())


async def delete(transport: Transport, name: str) -> None:
    from broker.transport.memory import MemoryBroker

    if isinstance(transport, MemoryBroker):
        transport.delete(name)
    else:
        await delete_queues(transport, [name])


def test_dead_letters_that_are_looked_at_again_and_again_stay(transport: Transport) -> None:
    async def test() -> None:
        queue = Queue(unique("dead"), own_queue(DEAD_LETTERS).arguments)
        connection = await transport.connect()
        await connection.declare(queue)
        await asyncio.gather(*(connection.publish(Publishing(queue.name, Message(b"%d" % n))) for n in range(3)))

        async def all_are_back() -> bool:
            return await connection.look_at(queue.name) == (3, 0)

        for _ in range(3):
            seen: list[bytes] = []

            async def look(message: Message, seen: list[bytes] = seen) -> bool:
                seen.append(message.body)
                return False

            looking = await transport.connect()
            await walk(looking, queue.name, look)
            await looking.close()
            assert seen == [b"0", b"1", b"2"]
            await until(all_are_back)
        await connection.delete(queue)
        await connection.close()

    run(test())
