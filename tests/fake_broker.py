"""A peer that speaks just enough AMQP to be taken for RabbitMQ, and then sends whatever a test wants, cut as it wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pamqp.frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm, Connection, Exchange, Queue
from pamqp.exceptions import UnmarshalingException
from pamqp.header import ContentHeader

from broker.protocol.queues import MIGRATION

ANSWERS: dict[type, Callable[[Any], Any]] = {
    Connection.Open: lambda _: Connection.OpenOk(),
    Connection.Close: lambda _: Connection.CloseOk(),
    Channel.Open: lambda _: Channel.OpenOk(),
    Channel.Close: lambda _: Channel.CloseOk(),
    Confirm.Select: lambda _: Confirm.SelectOk(),
    Basic.Qos: lambda _: Basic.QosOk(),
    Basic.Consume: lambda method: Basic.ConsumeOk(method.consumer_tag),
    Basic.Cancel: lambda method: Basic.CancelOk(method.consumer_tag),
    Queue.Declare: lambda method: Queue.DeclareOk(method.queue, 0, 0),
    Queue.Bind: lambda _: Queue.BindOk(),
    Exchange.Declare: lambda _: Exchange.DeclareOk(),
}


class Peer:
    """One connection that was made to the fake."""

    def __init__(self, writer: asyncio.StreamWriter, piece: int | None, channel_max: int) -> None:
        self._writer = writer
        self._piece = piece
        self._channel_max = channel_max
        self.name = ""
        self.published: list[tuple[int, str, str | None]] = []
        self.acknowledged: list[Basic.Ack | Basic.Nack] = []
        self.consumers: dict[str, tuple[int, str]] = {}
        self.confirming: int | None = None
        self.channels: set[int] = set()
        self.ended = False

    def send(self, channel: int, *sent: Any) -> None:
        self.send_raw(b"".join(pamqp.frame.marshal(frame, channel) for frame in sent))

    def send_raw(self, data: bytes) -> None:
        if self._writer.is_closing():
            return
        step = self._piece or len(data) or 1
        for at in range(0, len(data), step):
            self._writer.write(data[at : at + step])

    def deliver(self, queue: str, tag: int, body: bytes, **properties: Any) -> None:
        channel, consumer = self.consumers[queue]
        self.send_raw(delivery(channel, consumer, tag, body, **properties))

    def end(self) -> None:
        self._writer.close()

    def on_frame(self, channel: int, frame: Any) -> None:
        if isinstance(frame, Connection.StartOk):
            self.name = frame.client_properties["connection_name"]
            self.send(0, Connection.Tune(self._channel_max, 131_072, 0))
        elif isinstance(frame, Basic.Publish):
            self._publishing = (channel, frame.routing_key)
        elif isinstance(frame, ContentHeader):
            self.published.append((*self._publishing, frame.properties.message_id))
        elif isinstance(frame, (Basic.Ack, Basic.Nack)):
            self.acknowledged.append(frame)
        elif isinstance(frame, Queue.Declare) and frame.passive and frame.queue == MIGRATION:
            self.channels.discard(channel)
            self.send(channel, Channel.Close(404, "NOT_FOUND - no queue", 50, 10))
        elif answer := ANSWERS.get(type(frame)):
            self.send(channel, answer(frame))
            if isinstance(frame, Channel.Open):
                self.channels.add(channel)
            elif isinstance(frame, Channel.Close):
                self.channels.discard(channel)
            elif isinstance(frame, Basic.Consume):
                self.consumers[frame.queue] = channel, frame.consumer_tag
            elif isinstance(frame, Confirm.Select):
                self.confirming = channel
            elif isinstance(frame, Connection.Close):
                self.end()


def delivery(channel: int, consumer: str, tag: int, body: bytes, **properties: Any) -> bytes:
    """The bytes of a Basic.Deliver with its content."""
    method = Basic.Deliver(consumer_tag=consumer, delivery_tag=tag, redelivered=False, exchange="", routing_key="q")
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(**properties))
    parts = [method, header, *([ContentBody(body)] if body else [])]
    return b"".join(pamqp.frame.marshal(part, channel) for part in parts)


class FakeBroker:
    """Listens on 127.0.0.1. `piece`: bytes a write, to cut what it sends."""

    def __init__(self, piece: int | None, channel_max: int) -> None:
        self._piece = piece
        self._channel_max = channel_max
        self.peers: list[Peer] = []
        self.url = ""

    @property
    def publisher(self) -> Peer:
        return next(peer for peer in reversed(self.peers) if peer.name == "ackback publish" and peer.confirming)

    @property
    def consumer(self) -> Peer:
        return next(peer for peer in reversed(self.peers) if peer.consumers)

    def is_consumed(self, queue: str) -> bool:
        """Whether the last of those who consume does so still, and from this queue, too."""
        return queue in self.consumer.consumers and not self.consumer.ended

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(writer, self._piece, self._channel_max)
        self.peers.append(peer)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            assert await reader.readexactly(8) == b"AMQP\x00\x00\x09\x01"
            properties = {
                "capabilities": {"publisher_confirms": True, "consumer_cancel_notify": True, "basic.nack": True}
            }
            peer.send(0, Connection.Start(0, 9, properties, "PLAIN", "en_US"))
            rest = b""
            while data := await reader.read(65536):
                rest += data
                while rest:
                    try:
                        size, channel, frame = pamqp.frame.unmarshal(rest)
                    except UnmarshalingException:
                        break
                    rest = rest[size:]
                    peer.on_frame(channel, frame)
        peer.ended = True
        writer.close()


@asynccontextmanager
async def fake_broker(piece: int | None = None, channel_max: int = 2047) -> AsyncIterator[FakeBroker]:
    fake = FakeBroker(piece, channel_max)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    fake.url = f"amqp://guest:guest@{host}:{port}/"
    try:
        yield fake
    finally:
        server.close()
        for peer in fake.peers:
            peer.end()
        await server.wait_closed()
