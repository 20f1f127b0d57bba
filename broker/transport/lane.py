"""The fast transport: aio-pika keeps all that is rare, the frames that carry messages have a lane of their own.

    RabbitMQ ─→ socket ─→ LaneProtocol ─┬─→ LaneConsumer: a delivery ─→ (handled) ─→ Acks ──┐
                                        ├─→ LaneConnection: a confirm, a return ─→ Confirms │
                                        └─→ aiormq: every other frame                       │
    RabbitMQ ←─ socket ←─ one write a loop turn ←─┬─ publishes (LaneConnection) and acks ←──┘
                                                  └─ aiormq: every other frame

aio-pika connects, authenticates, speaks TLS, opens and closes channels, declares, starts and ends consumers, sends heartbeats and
reports errors. aiormq lets a `transport_factory` make its reader and writer: ours puts `LaneProtocol` under them, which takes the
hot frames of the channels that have a lane out of the stream and hands on the rest, whole frames both ways.

In the order of a message's way: `frames.py` and `fields.py` say how bytes look, `protocol.py` cuts the stream, `confirms.py` knows
what is published and not confirmed, `acks.py` which acknowledgements may go out together.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import aio_pika
from aio_pika.abc import ConnectionParameter
from aiormq.connection import TransportFactory
from yarl import URL

from broker.errors import ConnectionLostError, UnencodableError
from broker.protocol.message import Message, Publishing
from broker.transport import frames
from broker.transport.amqp import AmqpConnection, AmqpConsumer, AmqpTransport
from broker.transport.confirms import Confirms
from broker.transport.stream import LaneProtocol


class _Factory(TransportFactory):
    """Opens the socket as aiormq does, with our protocol on it."""

    protocol: LaneProtocol

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = await kwargs["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        self.protocol = LaneProtocol(reader, loop)
        transport, _ = await loop.create_connection(lambda: self.protocol, url.host or "", url.port or 0, ssl=context)
        return reader, asyncio.StreamWriter(transport, self.protocol, reader, loop)


class _AioPikaConnection(aio_pika.Connection):
    PARAMETERS = (
        *aio_pika.Connection.PARAMETERS,
        ConnectionParameter("transport_factory", parser=lambda factory: factory, is_kwarg=True),
    )


class LaneTransport(AmqpTransport):
    """Connects as `AmqpTransport` does, with lanes for the messages."""

    async def _open(
        self, url: URL, client_properties: dict[str, Any], timeout: float
    ) -> aio_pika.abc.AbstractConnection:
        factory = _Factory()
        connection = _AioPikaConnection(url, client_properties=client_properties, transport_factory=factory)
        await connection.connect(timeout=timeout)
        connection.lane = factory.protocol  # type: ignore[attr-defined]
        return connection

    @staticmethod
    def _connection(
        publishing: aio_pika.abc.AbstractConnection, consuming: aio_pika.abc.AbstractConnection
    ) -> AmqpConnection:
        return LaneConnection(publishing, consuming)


class LaneConnection(AmqpConnection):
    """`AmqpConnection` with its messages on lanes."""

    async def open(self) -> None:
        publishing, consuming = self._connections
        self._confirms = Confirms()
        self._watch()
        for connection in (publishing, consuming):
            self._protocol(connection).failed = self._lose
        channel = publishing.channel(publisher_confirms=False)
        channel.close_callbacks.add(self._on_closed)
        await channel.initialize()
        self._publishing_channel = channel
        underlay = await channel.get_underlay_channel()
        self._agree_on(underlay)
        self._number = underlay.number
        self._publishing_lane = self._protocol(publishing)
        for connection in (publishing, consuming):
            self._protocol(connection).frame_max = self._frame_max
        self._publishing_lane.attach(self._number, self)
        await underlay.confirm_delivery()

    @staticmethod
    def _protocol(connection: aio_pika.abc.AbstractConnection) -> LaneProtocol:
        return connection.lane  # type: ignore[attr-defined,no-any-return]

    def publish(self, publishing: Publishing) -> asyncio.Future[None]:
        routing_key, message, exchange = publishing
        future: asyncio.Future[None] = self._loop.create_future()
        if self._ending:
            future.set_exception(self._ended(None))
            return future
        try:
            buffer = frames.publish(self._number, routing_key, message, self._frame_max, exchange)
        except (TypeError, ValueError, struct.error) as error:
            future.set_exception(UnencodableError(routing_key, error))
            return future
        self._confirms.expect(future, routing_key, message.message_id)
        self._publishing_lane.send(buffer)
        return future

    def on_method(self, method: int, payload: bytes) -> bool:
        if method not in (frames.BASIC_ACK, frames.BASIC_NACK):
            return False
        tag, bits = frames.tag_and_bits(payload)
        self._confirms.on_confirm(tag, multiple=bool(bits & 1), accepted=method == frames.BASIC_ACK)
        return True

    def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
        routing_key = frames.returned_routing_key(payload)
        self._confirms.on_return(routing_key, frames.decode_properties(header, b"").message_id)

    def _consumer(self, *arguments: Any) -> AmqpConsumer:
        return LaneConsumer(self, *arguments)

    async def close(self) -> None:
        for connection in self._connections:
            self._protocol(connection).flush()
        await super().close()
        self._confirms.fail("the connection was closed")

    def _lose(self, reason: str) -> None:
        super()._lose(reason)
        self._confirms.fail(reason)


class LaneConsumer(AmqpConsumer):
    """A consumer whose deliveries and acknowledgements go by its channel's lane."""

    async def start(self, prefetch: int) -> None:
        connection = self._connection
        self._number = self._underlay.number
        self._lane = connection._protocol(connection._connections[1])  # type: ignore[attr-defined]
        self.open = True
        self._lane.attach(self._number, self)
        await super().start(prefetch)

    def on_method(self, method: int, payload: bytes) -> bool:
        if method == frames.CHANNEL_CLOSE:
            # Before aiormq answers: an acknowledgement after its answer would end the whole connection (504, expected 'channel.open').
            self.open = False
        return False

    def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
        tag, redelivered = frames.deliver_arguments(payload)
        self._last_tag = tag
        self._on_delivery(LaneDelivery(self, tag, redelivered, header, body))

    def _collect_later(self) -> None:
        self._lane.flush_with(self._collect)

    def _is_open(self) -> bool:
        return self.open

    def _acknowledge(self, tag: int, multiple: bool) -> None:
        self._lane.send(frames.ack(self._number, tag, multiple=multiple))

    def _give_back(self, tag: int) -> None:
        self._lane.send(frames.requeue(self._number, tag))

    def _on_channel_closed(self, sender: object, error: BaseException | None) -> None:
        self.open = False
        self._lane.detach(self._number)
        super()._on_channel_closed(sender, error)


class LaneDelivery:
    """A delivery whose properties are decoded when they are first looked at."""

    __slots__ = ("_body", "_consumer", "_header", "_message", "_tag", "redelivered")

    def __init__(self, consumer: LaneConsumer, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self._consumer = consumer
        self._tag = tag
        self._header = header
        self._body = body
        self._message: Message | None = None
        self.redelivered = redelivered

    @property
    def message(self) -> Message:
        if self._message is None:
            try:
                self._message = frames.decode_properties(self._header, self._body)
            except frames.MalformedFrameError as error:
                reason = f"malformed AMQP from the broker: {error}"
                self._consumer._connection._lose(reason)
                raise ConnectionLostError(reason) from None
        return self._message

    @property
    def live(self) -> bool:
        return self._consumer.open and not self._consumer._connection._ending

    def ack(self) -> None:
        if self.live:
            self._consumer.settle(self._tag, requeue=False)

    def requeue(self) -> None:
        if self.live:
            self._consumer.settle(self._tag, requeue=True)
