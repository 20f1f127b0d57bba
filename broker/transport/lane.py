"""The fast transport: aio-pika keeps all that is rare, the frames that carry messages have a lane of their own.

    socket ─ data_received ─┬─ Deliver, Return, Ack, Nack with their content, on a lane's channel ─→ Lane
                            └─ every other frame ─→ StreamReader ─→ aiormq ─→ aio-pika

    Lane: publish, ack ─→ frames of this loop turn, one buffer ─→ transport.write
    aiormq: everything else ─→ StreamWriter ───────────────────↗

aio-pika connects, authenticates, speaks TLS, opens and closes channels, declares, starts and ends consumers, sends
heartbeats and reports errors. aiormq lets a `transport_factory` make its reader and writer: ours puts `LaneProtocol` under
them, which takes the hot frames of the channels that have a lane out of the stream and hands on the rest, whole frames
both ways. How frames look is in `frames.py`; which acknowledgements may go out together, in `acks.py`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Protocol

import aio_pika
from aio_pika.abc import ConnectionParameter
from aiormq.connection import TransportFactory
from yarl import URL

from broker.errors import ConnectionLostError, NotAcceptedError, UnencodableError, UnroutableError
from broker.message import Message
from broker.transport import frames
from broker.transport.acks import Acks
from broker.transport.amqp import AmqpConnection, AmqpConsumer, AmqpTransport

# aiormq gives a connection up on which it sees no frame for a while, and it sees none of the hot ones.
SHOW_HEARTBEAT_EVERY = 1.0

_FRAME = struct.Struct(">BHI")
_LONG = struct.Struct(">I")
_BODY_SIZE = struct.Struct(">Q")


class Lane(Protocol):
    """Takes the hot frames of one channel."""

    def on_method(self, method: int, payload: bytes) -> bool:
        """A method without content; False if it is not for the lane."""

    def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
        """A method with its content header and its whole body."""


class _Content:
    """A message whose frames are still coming."""

    __slots__ = ("body", "header", "method", "missing", "parts", "payload")

    def __init__(self, method: int, payload: bytes) -> None:
        self.method = method
        self.payload = payload
        self.header = b""
        self.missing = -1
        self.parts: list[bytes] = []


class LaneProtocol(asyncio.StreamReaderProtocol):
    """Splits what arrives into frames for the lanes and bytes for aiormq, and writes what the lanes send."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._event_loop = loop
        self._transport: asyncio.Transport | None = None
        self._lanes: dict[int, Lane] = {}
        self._contents: dict[int, _Content] = {}
        self._rest = b""
        self._out: list[bytes] = []
        self._before_flush: list[Callable[[], None]] = []
        self._flushing = False
        self._socket_full = False
        self._last_shown = loop.time()
        self.failed: Callable[[str], None] | None = None

    def attach(self, channel: int, lane: Lane) -> None:
        """From now on the hot frames of this channel go to the lane."""
        self._lanes[channel] = lane

    def detach(self, channel: int) -> None:
        self._lanes.pop(channel, None)
        self._contents.pop(channel, None)

    # From the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lanes.clear()
        self._out.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        if not self._lanes and data[:4] == b"AMQP":
            # Not frames: the server's way of saying that it speaks another version. aiormq explains it.
            super().data_received(data)
            return
        try:
            self._rest = self._split(data)
        except frames.MalformedFrameError as error:
            self._fail(str(error))

    def _split(self, data: bytes) -> bytes:
        """Handle every whole frame; return the beginning of the one that is not whole yet."""
        at, end = 0, len(data)
        cold: list[bytes] = []
        while end - at >= frames.FRAME_OVERHEAD:
            kind, channel, size = _FRAME.unpack_from(data, at)
            stop = at + size + frames.FRAME_OVERHEAD
            if stop > end:
                break
            if data[stop - 1] != frames.FRAME_END:
                raise frames.MalformedFrameError(f"a frame on channel {channel} does not end where its size says")
            lane = self._lanes.get(channel)
            if lane is None or not self._take(lane, kind, channel, data[at + 7 : stop - 1]):
                cold.append(data[at:stop])
            at = stop
        if cold:
            self._last_shown = self._event_loop.time()
            super().data_received(b"".join(cold))
        elif at and self._event_loop.time() - self._last_shown > SHOW_HEARTBEAT_EVERY:
            self._last_shown = self._event_loop.time()
            super().data_received(frames.HEARTBEAT)
        return data[at:]

    def _take(self, lane: Lane, kind: int, channel: int, payload: bytes) -> bool:
        """Give a frame to its lane; False if it is aiormq's."""
        content = self._contents.get(channel)
        if kind == frames.FRAME_METHOD:
            if content is not None:
                raise frames.MalformedFrameError(f"a method came on channel {channel} in the middle of a message")
            if len(payload) < 4:
                raise frames.MalformedFrameError(f"a method on channel {channel} has no number")
            method = _LONG.unpack_from(payload)[0]
            if method in (frames.BASIC_DELIVER, frames.BASIC_RETURN):
                self._contents[channel] = _Content(method, payload)
                return True
            return lane.on_method(method, payload)
        if content is None:
            if kind == frames.FRAME_HEARTBEAT:
                return False
            raise frames.MalformedFrameError(f"content came on channel {channel} without a method before it")
        if kind == frames.FRAME_HEADER and content.missing < 0:
            if len(payload) < 14:
                raise frames.MalformedFrameError(f"a content header on channel {channel} is cut off")
            content.header = payload
            content.missing = _BODY_SIZE.unpack_from(payload, 4)[0]
        elif kind == frames.FRAME_BODY and content.missing >= 0 and len(payload) <= content.missing:
            content.parts.append(payload)
            content.missing -= len(payload)
        else:
            raise frames.MalformedFrameError(
                f"a frame of type {kind} came on channel {channel} where it does not belong"
            )
        if content.missing == 0:
            del self._contents[channel]
            body = content.parts[0] if len(content.parts) == 1 else b"".join(content.parts)
            lane.on_content(content.method, content.payload, content.header, body)
        return True

    def _fail(self, reason: str) -> None:
        self._rest = b""
        self._lanes.clear()
        if self.failed is not None:
            self.failed(f"malformed AMQP from the broker: {reason}")
        if self._transport is not None:
            self._transport.abort()

    # To the socket

    def send(self, data: bytes) -> None:
        """Send with everything else of this loop turn, in one write."""
        self._out.append(data)
        self._schedule()

    def flush_with(self, collect: Callable[[], None]) -> None:
        """Call `collect` just before this loop turn's write, to `send` what it has gathered."""
        self._before_flush.append(collect)
        self._schedule()

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._event_loop.call_soon(self._flush)

    def _flush(self) -> None:
        collecting, self._before_flush = self._before_flush, []
        for collect in collecting:
            collect()
        self._flushing = False
        if self._out and not self._socket_full and self._transport is not None:
            out, self._out = self._out, []
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def flush(self) -> None:
        """Write what there is to write now."""
        self._flush()

    def pause_writing(self) -> None:
        # The socket is full: RabbitMQ is slow, or holds us back in an alarm. What is sent from now on waits here.
        self._socket_full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self._socket_full = False
        super().resume_writing()
        self._schedule()


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


class _Unconfirmed:
    """One publish that waits for its confirm."""

    __slots__ = ("future", "message_id", "returned", "routing_key")

    def __init__(self, future: asyncio.Future[None], routing_key: str, message_id: str | None) -> None:
        self.future = future
        self.routing_key = routing_key
        self.message_id = message_id
        self.returned = False


class LaneConnection(AmqpConnection):
    """`AmqpConnection` with its messages on lanes."""

    async def open(self) -> None:
        publishing, consuming = self._connections
        for connection in (publishing, consuming):
            connection.close_callbacks.add(self._on_closed)
            self._protocol(connection).failed = self._lose
        channel = publishing.channel(publisher_confirms=False)
        channel.close_callbacks.add(self._on_closed)
        await channel.initialize()
        self._publishing_channel = channel
        underlay = await channel.get_underlay_channel()
        self._frame_max = underlay.connection.connection_tune.frame_max or frames.DEFAULT_FRAME_MAX
        self._number = underlay.number
        self._publishing_lane = self._protocol(publishing)
        self._unconfirmed: dict[int, _Unconfirmed] = {}
        self._sequence = 0
        self._publishing_lane.attach(self._number, self)
        await underlay.confirm_delivery()

    @staticmethod
    def _protocol(connection: aio_pika.abc.AbstractConnection) -> LaneProtocol:
        return connection.lane  # type: ignore[attr-defined,no-any-return]

    def publish(self, publishing: tuple[str, Message]) -> asyncio.Future[None]:
        routing_key, message = publishing
        future: asyncio.Future[None] = self._loop.create_future()
        if self._ending:
            future.set_exception(self._ended(None))
            return future
        try:
            buffer = frames.publish(self._number, routing_key, message, self._frame_max)
        except (TypeError, ValueError, struct.error) as error:
            future.set_exception(UnencodableError(routing_key, error))
            return future
        self._sequence += 1
        self._unconfirmed[self._sequence] = _Unconfirmed(future, routing_key, message.message_id)
        self._publishing_lane.send(buffer)
        return future

    def on_method(self, method: int, payload: bytes) -> bool:
        if method not in (frames.BASIC_ACK, frames.BASIC_NACK):
            return False
        tag, bits = frames.tag_and_bits(payload)
        unconfirmed = self._unconfirmed
        if bits & 1:  # multiple; 0 stands for all
            for one in [number for number in unconfirmed if number <= tag or not tag]:
                self._confirm(unconfirmed.pop(one), method)
        elif tag in unconfirmed:
            self._confirm(unconfirmed.pop(tag), method)
        else:
            raise frames.MalformedFrameError(f"a confirm for {tag}, which was not published or is confirmed already")
        return True

    @staticmethod
    def _confirm(one: _Unconfirmed, method: int) -> None:
        if one.future.done():
            return
        if one.returned:
            one.future.set_exception(UnroutableError(one.routing_key))
        elif method == frames.BASIC_ACK:
            one.future.set_result(None)
        else:
            one.future.set_exception(NotAcceptedError.refused(one.routing_key))

    def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
        # A return comes before its confirm and carries no tag. Of several in flight that are alike all count as returned:
        # to send one again is safe, to take a lost one for accepted is not.
        routing_key = frames.returned_routing_key(payload)
        message_id = frames.decode_properties(header, b"").message_id
        for one in self._unconfirmed.values():
            if one.routing_key == routing_key and one.message_id == message_id:
                one.returned = True

    def _consumer(self, *arguments: Any) -> AmqpConsumer:
        return LaneConsumer(self, *arguments)

    async def close(self) -> None:
        for connection in self._connections:
            self._protocol(connection).flush()
        await super().close()
        self._fail_unconfirmed("the connection was closed")

    def _lose(self, reason: str) -> None:
        super()._lose(reason)
        self._fail_unconfirmed(reason)

    def _fail_unconfirmed(self, reason: str) -> None:
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for one in unconfirmed.values():
            if not one.future.done():
                one.future.set_exception(ConnectionLostError(reason))


class LaneConsumer(AmqpConsumer):
    """A consumer whose deliveries and acknowledgements go by its channel's lane."""

    async def start(self) -> None:
        connection = self._connection
        self._number = self._underlay.number
        self._lane = connection._protocol(connection._connections[1])  # type: ignore[attr-defined]
        self._acks = Acks(self._number)
        self._collecting = False
        self.open = True
        self._lane.attach(self._number, self)
        await super().start()

    def on_method(self, method: int, payload: bytes) -> bool:
        return False

    def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
        tag, redelivered = frames.deliver_arguments(payload)
        self._on_delivery(LaneDelivery(self, tag, redelivered, header, body))

    def settle(self, tag: int, *, requeue: bool) -> None:
        """Acknowledge or give back one delivery, with the others of this loop turn."""
        if requeue:
            self._lane.send(self._acks.requeue(tag))
            return
        self._acks.finish(tag)
        if not self._collecting:
            self._collecting = True
            self._lane.flush_with(self._collect)

    def _collect(self) -> None:
        self._collecting = False
        if self.open:
            for frame in self._acks.take():
                self._lane.send(frame)

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
