"""The lane against a peer that says what RabbitMQ says only on a bad day, in pieces of one byte and in one."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import Any

import pamqp.frame
import pytest
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader

from broker import Service
from broker.errors import ConfigurationError, ConnectionLostError, NotAcceptedError, UnroutableError
from broker.protocol.entities import Queue
from broker.protocol.message import Message, Publishing
from broker.transport import topology
from broker.transport.amqp import AmqpTransport
from broker.transport.interface import Delivery
from broker.transport.lane import LaneTransport
from tests.fake_broker import FakeBroker, delivery, fake_broker
from tests.support import named, run, running_daemon, unique, until

PIECES = pytest.mark.parametrize("piece", [1, None], ids=["byte by byte", "whole"])
NO_ROUTE = {"reply_code": 312, "reply_text": "NO_ROUTE", "exchange": ""}


def returned(channel: int, routing_key: str, message_id: str) -> bytes:
    """A Basic.Return with its content."""
    frames = (
        Basic.Return(routing_key=routing_key, **NO_ROUTE),
        ContentHeader(body_size=0, properties=Basic.Properties(message_id=message_id)),
    )
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)


async def published(fake: FakeBroker, connection: Any, *messages: tuple[str, str]) -> list[asyncio.Future[None]]:
    """Publish (routing key, message ID) each; the confirms, once the fake has all the messages."""
    expected = len(fake.publisher.published) + len(messages)
    futures = [connection.publish(Publishing(key, Message(b"", message_id=name))) for key, name in messages]
    await until(lambda: len(fake.publisher.published) == expected)
    return futures


async def outcomes(*futures: asyncio.Future[None]) -> list[type | None]:
    results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
    return [None if result is None else type(result) for result in results]


@PIECES
def test_returns_confirms_and_refusals_reach_the_right_publish(piece: int | None) -> None:
    async def test() -> None:
        async with fake_broker(piece) as fake:
            connection = await LaneTransport([fake.url]).connect()
            names = [("there", "a"), ("gone", "b"), ("there", "c"), ("gone", "b"), ("there", "d"), ("full", "e")]
            futures = await published(fake, connection, *names)
            peer = fake.publisher
            channel = peer.confirming or 0
            # The two that are alike cannot be told apart: both count as returned, neither as accepted.
            peer.send_raw(returned(channel, "gone", "b"))
            peer.send(channel, Basic.Ack(3, multiple=True), Basic.Nack(6), Basic.Ack(5), Basic.Ack(4))
            expected = [None, UnroutableError, None, UnroutableError, None, NotAcceptedError]
            assert await outcomes(*futures) == expected
            more = await published(fake, connection, *names, ("there", "f"), ("there", "g"))
            peer.send(channel, Basic.Nack(0, multiple=True))  # all there are
            assert await outcomes(*more) == [NotAcceptedError] * 8
            await connection.close()

    run(test())


@PIECES
@pytest.mark.parametrize("how", ["channel", "connection", "socket"])
def test_an_end_fails_every_publish_that_waits_with_the_reason(piece: int | None, how: str) -> None:
    async def test() -> None:
        async with fake_broker(piece) as fake:
            connection = await LaneTransport([fake.url]).connect()
            futures = await published(fake, connection, ("q", "a"), ("q", "b"))
            peer = fake.publisher
            if how == "channel":
                peer.send(peer.confirming or 0, Channel.Close(406, "PRECONDITION_FAILED - because", 60, 40))
            elif how == "connection":
                peer.send(0, Connection.Close(320, "CONNECTION_FORCED - because", 0, 0))
            else:
                peer.end()
            assert await outcomes(*futures) == [ConnectionLostError] * 2
            reason = await asyncio.wait_for(connection.lost, 10)
            assert how == "socket" or "because" in reason
            assert await outcomes(connection.publish(Publishing("q", Message()))) == [ConnectionLostError]
            await connection.close()

    run(test())


@PIECES
def test_a_cancelled_consumer_says_so_and_the_connection_lives(piece: int | None) -> None:
    async def test() -> None:
        async with fake_broker(piece) as fake:
            connection = await LaneTransport([fake.url]).connect()
            reasons: list[str] = []
            got: list[Delivery] = []
            await connection.consume("q", 10, got.append, reasons.append)
            fake.consumer.deliver("q", 1, b"one")
            await until(lambda: got)
            channel, tag = fake.consumer.consumers["q"]
            fake.consumer.send(channel, Basic.Cancel(tag))
            await until(lambda: reasons)
            assert "ended the deliveries" in reasons[0]
            got[0].ack()  # what was delivered before may still be acknowledged
            await until(lambda: fake.consumer.acknowledged)
            assert not connection.lost.done()
            await connection.close()

    run(test())


def test_while_the_broker_does_not_read_publishes_wait_and_none_is_dropped() -> None:
    async def test() -> None:
        async with fake_broker() as fake:
            connection = await LaneTransport([fake.url]).connect()
            lane = connection._publishing_lane  # type: ignore[attr-defined]
            lane.pause_writing()
            futures = [connection.publish(Publishing("q", Message(b"", message_id=str(n)))) for n in range(100)]
            fake.publisher.send(0, Connection.Blocked("low on memory"))
            # An answer on the other connection: by then, what had been written would be here.
            await connection.declare(Queue(unique()))
            assert fake.publisher.published == []
            fake.publisher.send(0, Connection.Unblocked())
            lane.resume_writing()
            await until(lambda: len(fake.publisher.published) == 100)
            fake.publisher.send(fake.publisher.confirming or 0, Basic.Ack(100, multiple=True))
            assert await outcomes(*futures) == [None] * 100
            await connection.close()

    run(test())


@pytest.mark.parametrize("what", ["frame end", "unknown confirm", "properties", "type", "channel"])
def test_a_daemon_says_what_was_malformed_and_connects_again(what: str, caplog: pytest.LogCaptureFixture) -> None:
    class Echo(Service):
        name = unique("echo")

        async def handle(self) -> str:
            return self.request.text

    async def test() -> None:
        async with fake_broker() as fake, running_daemon(LaneTransport([fake.url]), Echo) as daemon:
            channel, tag = fake.consumer.consumers[Echo.name]
            made = len(fake.peers)
            if what == "frame end":
                good = delivery(channel, tag, 1, b"x")
                fake.consumer.send_raw(good[:-1] + b"\x00")
            elif what == "unknown confirm":
                fake.publisher.send(fake.publisher.confirming or 0, Basic.Ack(7))
            elif what == "type":
                fake.consumer.send_raw(struct.pack(">BHI", 4, channel, 1000))  # and nothing more
            elif what == "channel":
                fake.consumer.send_raw(struct.pack(">BHI", 1, channel + 1, 1000))
            else:
                good = delivery(channel, tag, 1, b"x", headers={"a": "b"})
                at = good.index(b"\x00\x00\x00\x08\x01aS")
                fake.consumer.send_raw(good[:at] + b"\x7f" + good[at + 1 :])
            await until(lambda: not daemon.ready.is_set() or len(fake.peers) > made)
            await until(lambda: len(fake.peers) == made + 2 and daemon.ready.is_set() and fake.is_consumed(Echo.name))
            assert "malformed AMQP from the broker" in caplog.text
            assert not any(frame for peer in fake.peers for frame in peer.acknowledged)
            # The new connection works.
            fake.consumer.deliver(Echo.name, 1, b"x")
            await until(lambda: [frame.delivery_tag for frame in fake.consumer.acknowledged] == [1])

    run(test())


def test_mutated_frames_never_hang_a_daemon_nor_make_it_acknowledge_what_it_did_not_finish() -> None:
    """Thirty rounds on one daemon: good deliveries with some bytes changed; then it is asked whether it still works."""
    dice = random.Random(7)
    handled: list[bytes] = []

    class Echo(Service):
        name = unique("echo")
        concurrency = 50

        async def handle(self) -> None:
            handled.append(self.request.raw)

    async def test() -> None:
        async with fake_broker() as fake, running_daemon(LaneTransport([fake.url]), Echo) as daemon:
            for _ in range(30):
                await until(lambda: daemon.ready.is_set() and fake.is_consumed(Echo.name))
                peer = fake.consumer
                channel, tag = peer.consumers[Echo.name]
                first = len(peer.acknowledged)
                stream = bytearray(
                    b"".join(delivery(channel, tag, number, b"body", message_id="m") for number in range(1, 5))
                )
                for _ in range(dice.randint(1, 3)):
                    stream[dice.randrange(len(stream))] = dice.randrange(256)
                handled.clear()
                peer.send_raw(bytes(stream))
                # Whatever it made of them: it reads on, it ends the connection, or it waits for the rest of a frame until this ends it.
                peer.send(0, Connection.Close(320, "CONNECTION_FORCED - next round", 0, 0))
                peer.end()
                await until(lambda peer=peer: peer.ended)
                assert len(peer.acknowledged) - first <= len(handled) + len(fake.publisher.published)
            await until(lambda: daemon.ready.is_set() and fake.is_consumed(Echo.name))
            handled.clear()
            fake.consumer.deliver(Echo.name, 1, b"good")
            await until(lambda: handled == [b"good"])
            await until(lambda: fake.consumer.acknowledged)

    run(test())


@pytest.mark.parametrize("transport", [LaneTransport, AmqpTransport])
def test_channels_of_consumers_that_have_ended_are_closed_once_all_is_settled(transport: type[AmqpTransport]) -> None:
    async def test() -> None:
        async with fake_broker() as fake:
            connection = await transport([fake.url]).connect()
            for number in range(30):
                got: list[Delivery] = []
                ended: list[str] = []
                consumer = await connection.consume(f"q{number}", 10, got.append, ended.append)
                peer = fake.consumer
                peer.deliver(f"q{number}", 1, b"x")
                await until(lambda got=got: got)
                channel, tag = peer.consumers[f"q{number}"]
                if number % 2:
                    await consumer.cancel()
                else:  # the queue was deleted
                    peer.send(channel, Basic.Cancel(tag))
                    await until(lambda ended=ended: ended)
                assert peer.channels == {channel}
                got[0].ack()
                await until(lambda peer=peer: not peer.channels)
                assert [one.delivery_tag for one in peer.acknowledged] == [1] * (number + 1)
            assert not connection.lost.done()
            await connection.close()

    run(test())


@pytest.mark.parametrize("transport", [LaneTransport, AmqpTransport])
def test_more_queues_than_the_broker_allows_channels_stop_the_start_up(transport: type[AmqpTransport]) -> None:
    class Nothing(Service):
        async def handle(self) -> None:
            pass

    async def test() -> None:
        few = [named(unique("few"), Nothing) for _ in range(6)]
        async with fake_broker(channel_max=topology.AT_ONCE + 10) as fake:
            async with running_daemon(transport([fake.url]), *few):  # with four queues of its own: ten
                pass
            with pytest.raises(ConfigurationError, match="host fewer services in one process"):
                async with running_daemon(transport([fake.url]), *few, named(unique("many"), Nothing)):
                    pass

    run(test())
