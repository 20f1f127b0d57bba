"""The reference transport: aio-pika, one connection to publish and one to consume.

Apart, because RabbitMQ stops reading from a connection that publishes when it raises an alarm: acknowledgements on the same
connection would be stuck behind it. aio-pika makes the connections and channels; messages go through aiormq's
channel below it, as aio-pika's own message class rounds some properties.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import aio_pika
import aiormq
from aiormq import exceptions as amqp
from yarl import URL

from broker.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    ConnectionLostError,
    NotAcceptedError,
    UnencodableError,
    UnroutableError,
)
from broker.protocol.entities import Binding, Exchange, Queue
from broker.protocol.message import Message, Publishing
from broker.settings import masked
from broker.transport import conversion, explain, frames, topology
from broker.transport.acks import Acks
from broker.transport.interface import Delivery, Offset, QueueState, Server
from broker.transport.topology import Topology

CONNECT_TIMEOUT = 10.0
CLOSE_TIMEOUT = 5.0
# aiormq gives a connection up after three of these and some seconds without a frame; RabbitMQ after two.
HEARTBEAT = 10
MOST_CHANNELS = 65535
# StopAsyncIteration: aiormq's word for a peer that has hung up before it was read from, as the proxy before a starting RabbitMQ does.
_CANNOT_CONNECT = (OSError, amqp.AMQPError, TimeoutError, RuntimeError, StopAsyncIteration)


class AmqpTransport:
    """Connects to the nodes of `urls` in random order, to publish to one and to consume from the next: so no node of a cluster has more
    than half of the connections, however many processes there are. Those of a node that is lost spread over the others. One that is made
    `in_one` after that goes to a third node, if there is one.
    """

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._last: set[str] = set()

    @property
    def address(self) -> str:
        return ", ".join(masked(url) for url in self._urls)

    async def connect(self, *, in_one: bool = False) -> AmqpConnection:
        order = sorted(self._urls, key=lambda url: (url in self._last, random.random()))
        opened: list[aio_pika.abc.AbstractConnection] = []
        try:
            at = await self._open_first(order, "record" if in_one else "publish", opened)
            first = second = order[at]
            if not in_one:
                in_turn = [*order[at + 1 :], *order[: at + 1]]
                second = in_turn[await self._open_first(in_turn, "consume", opened)]
                self._last = {first, second}
        except BaseException:
            for one in opened:
                with suppress(Exception):
                    await one.close()
            raise
        connection = self._connection(opened[0], opened[-1])
        try:
            await connection.open()
            if first != second and not await connection.is_of_one_cluster():
                raise ConfigurationError(
                    f"{' and '.join(map(masked, sorted((first, second))))} are not of one cluster: list nodes of one alone"
                )
        except BaseException as error:
            await connection.close()
            if isinstance(error, _CANNOT_CONNECT):
                raise BrokerUnavailableError(explain.connect(first, error, CONNECT_TIMEOUT)) from None
            raise
        return connection

    async def _open_first(self, urls: list[str], purpose: str, opened: list[aio_pika.abc.AbstractConnection]) -> int:
        """Open a connection to the first that answers, and return which it was."""
        properties = {"connection_name": f"ackback {purpose}", "product": "ackback"}
        problems = []
        for number, text in enumerate(urls):
            url = URL(text) if "heartbeat" in URL(text).query else URL(text).update_query(heartbeat=HEARTBEAT)
            try:
                opened.append(await self._open(url, properties, CONNECT_TIMEOUT))
            except _CANNOT_CONNECT as error:
                problems.append(explain.connect(text, error, CONNECT_TIMEOUT))
            else:
                return number
        raise BrokerUnavailableError("; ".join(sorted(problems)))

    async def _open(
        self, url: URL, client_properties: dict[str, Any], timeout: float
    ) -> aio_pika.abc.AbstractConnection:
        return await aio_pika.connect(url, timeout=timeout, client_properties=client_properties)

    @staticmethod
    def _connection(
        publishing: aio_pika.abc.AbstractConnection, consuming: aio_pika.abc.AbstractConnection
    ) -> AmqpConnection:
        return AmqpConnection(publishing, consuming)


class AmqpConnection:
    """Two connections that live and end together, or one that is both."""

    def __init__(self, publishing: aio_pika.abc.AbstractConnection, consuming: aio_pika.abc.AbstractConnection) -> None:
        self._connections = (publishing, consuming)
        self._loop = asyncio.get_running_loop()
        self._ending = False
        self._by_message_id: dict[str, asyncio.Future[None]] = {}
        self._unwritten: deque[Callable[[], Awaitable[None]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._publisher: aiormq.abc.AbstractChannel
        self._topology = Topology(self._open_channel)
        self._consumers = 0
        self._last_number = 0
        self.lost: asyncio.Future[str] = self._loop.create_future()

    async def open(self) -> None:
        self._watch()
        channel = self._connections[0].channel(publisher_confirms=True, on_return_raises=True)
        channel.close_callbacks.add(self._on_closed)
        await channel.initialize()
        self._publisher = await channel.get_underlay_channel()
        self._agree_on(self._publisher)
        self._max_properties = self._frame_max - frames.HEADER_FRAME_OVERHEAD
        self._publishing_channel = channel

    def _watch(self) -> None:
        """From now on the end of either connection is noticed."""
        for connection, what_it_does in zip(self._connections, ("publishes", "consumes"), strict=True):
            assert connection.transport is not None
            underlay = connection.transport.connection
            assert isinstance(underlay, aiormq.Connection)
            connection.close_callbacks.add(partial(self._on_connection_closed, underlay, what_it_does))

    def _agree_on(self, channel: aiormq.abc.AbstractChannel) -> None:
        """Take over what was agreed on when the connection was made (Connection.Tune)."""
        tune = channel.connection.connection_tune
        self._frame_max = tune.frame_max or frames.DEFAULT_FRAME_MAX
        self._channel_max = tune.channel_max
        self.server = _server(self._connections[0])

    async def is_of_one_cluster(self) -> bool:
        if self.server.cluster and self.server.cluster == _server(self._connections[1]).cluster:
            return True
        return await topology.is_one_cluster(self._topology, Topology(partial(self._open_channel, 0)))

    async def declare(self, *wanted: Queue | Exchange | Binding) -> None:
        with self.as_lost():
            await self._topology.declare(*wanted)

    async def look_at(self, queue: str) -> QueueState | None:
        with self.as_lost():
            return await self._topology.look_at(queue)

    async def delete(self, one: Queue | Exchange) -> int:
        with self.as_lost():
            return await self._topology.delete(one)

    async def _open_channel(
        self, connection: int = 1
    ) -> tuple[aio_pika.abc.AbstractChannel, aiormq.abc.AbstractChannel]:
        # On the connection that consumes: an exclusive queue belongs to the connection that declared it.
        channel = self._connections[connection].channel(self._unused_number(connection), publisher_confirms=False)
        await channel.initialize()
        return channel, await channel.get_underlay_channel()

    def _unused_number(self, connection: int) -> int:
        """A channel's number, none that was in use lately: aiormq may open a channel again before it has written that it knows of its
        end, for which RabbitMQ ends the connection (`second 'channel.open' seen`)."""
        transport = self._connections[connection].transport
        if transport is None:
            raise ConnectionLostError(explain.closed(None))
        in_use = transport.connection.channels
        most = self._channel_max or MOST_CHANNELS
        for _ in range(most):
            self._last_number = self._last_number % most + 1
            if self._last_number not in in_use:
                break
        return self._last_number

    @property
    def blocked(self) -> bool:
        underlay = self._connections[0].transport
        if underlay is None:
            return False
        # aiormq tells only whoever waits for it.
        waiting = underlay.connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        waiting.close()
        return True

    def publish(self, publishing: Publishing) -> asyncio.Future[None]:
        return self._loop.create_task(self._publish(*publishing))

    async def _publish(self, routing_key: str, message: Message, exchange: str) -> None:
        # aiormq finds the publish that a return belongs to by its message ID: no two in flight may share one.
        message_id = message.message_id
        while message_id and (earlier := self._by_message_id.get(message_id)):
            await asyncio.wait([earlier])
        done = self._loop.create_future()
        if message_id:
            self._by_message_id[message_id] = done
        try:
            if message.headers and len(frames.encode_properties(message)[1]) > self._max_properties:
                # pamqp does not look: a header frame that is too large would end the connection.
                raise ValueError(f"its headers need more than {self._max_properties} bytes")
            await self._publisher.basic_publish(
                message.body,
                exchange=exchange,
                routing_key=routing_key,
                properties=conversion.properties(message),
                mandatory=True,
                wait=False,  # type: ignore[call-arg]  # aiormq's channel takes it, its abstract class forgot it
            )
        except amqp.PublishError:
            raise UnroutableError(routing_key) from None
        except amqp.DeliveryError:
            raise NotAcceptedError.refused(routing_key) from None
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise UnencodableError(routing_key, error) from None
        except (amqp.AMQPError, OSError, RuntimeError) as error:
            raise self._ended(error) from None
        except asyncio.CancelledError:
            if self._ending or self._publisher.is_closed:
                raise self._ended(None) from None
            raise
        finally:
            if message_id:
                del self._by_message_id[message_id]
            done.set_result(None)

    async def consume(
        self,
        queue: str,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[str], None],
        timeout: float | None = None,
        offset: Offset | None = None,
    ) -> AmqpConsumer:
        if self._channel_max and self._consumers >= self._channel_max - topology.AT_ONCE:
            raise ConfigurationError(
                f"RabbitMQ allows {self._channel_max} channels on a connection, and each queue that is consumed takes one "
                f"({topology.AT_ONCE} are kept free): host fewer services in one process, or raise channel_max on the broker"
            )
        self._consumers += 1
        started = False
        try:
            channel, underlay = await self._open_channel()
            arguments: dict[str, Any] = {} if timeout is None else {"x-consumer-timeout": round(timeout * 1000)}
            if offset is not None:
                arguments["x-stream-offset"] = offset
            consumer = self._consumer(queue, channel, underlay, on_delivery, on_cancelled, arguments)
            await consumer.start(prefetch)
            started = True
            return consumer
        except amqp.ChannelNotFoundEntity:
            raise ConfigurationError(f"there is no queue {queue!r} to consume") from None
        except amqp.ChannelAccessRefused as error:
            raise ConfigurationError(explain.refusal(f"read queue {queue!r}", "read", error)) from None
        except (amqp.AMQPError, OSError, RuntimeError, asyncio.CancelledError) as error:
            raise self._ended(error) from None
        finally:
            if not started:
                self._consumers -= 1

    def _consumer(self, *arguments: Any) -> AmqpConsumer:
        return AmqpConsumer(self, *arguments)

    async def close(self) -> None:
        self._ending = True
        await asyncio.sleep(0)  # what was acknowledged in this turn of the loop is written in its next
        if under_way := [task for task in (self._writer, self._closing) if task is not None]:
            await asyncio.wait(under_way, timeout=CLOSE_TIMEOUT)
        if self._consumers and not self.lost.done():
            # aiormq's writer is cancelled with what is still in its queue: this is answered after the last acknowledgement is read.
            with suppress(Exception):
                await asyncio.wait_for(self._open_channel(), CLOSE_TIMEOUT)
        for connection in dict.fromkeys(self._connections):
            with suppress(Exception):
                await asyncio.wait_for(connection.close(), CLOSE_TIMEOUT)

    def forget_consumer(self) -> None:
        """A consumer's channel is closed."""
        self._consumers -= 1

    def write(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call in the background, after those from before; one that a lost connection breaks is of no use.

        In order, as an acknowledgement may cover earlier ones, and aiormq lets calls overtake each other while its buffer is full.
        """
        self._unwritten.append(call)
        if self._writer is None:
            self._writer = self._loop.create_task(self._write())

    async def _write(self) -> None:
        while self._unwritten:
            with suppress(ConnectionLostError), self.as_lost():
                await self._unwritten.popleft()()
        self._writer = None

    def _on_connection_closed(
        self, underlay: aiormq.Connection, what_it_does: str, _: object, error: BaseException | None
    ) -> None:
        if underlay.is_connection_was_stuck:
            aiormq_waits = 3 * (underlay.heartbeat_timeout + 1)
            self._lose(explain.silent(what_it_does, aiormq_waits))
        else:
            self._on_closed(_, error)

    def _on_closed(self, _: object, error: BaseException | None) -> None:
        self._lose(explain.closed(error))

    def _lose(self, reason: str) -> None:
        """Give both connections up; the first to say why is believed."""
        if self._ending:
            return
        self._ending = True
        self.lost.set_result(reason)
        self._closing = self._loop.create_task(self._close_both())

    async def _close_both(self) -> None:
        for connection in dict.fromkeys(self._connections):
            with suppress(Exception):
                await connection.close()

    @contextmanager
    def as_lost(self) -> Iterator[None]:
        """What the libraries raise here means that the connection, or the channel, has ended."""
        try:
            yield
        except (amqp.AMQPError, OSError, RuntimeError, asyncio.CancelledError) as error:
            raise self._ended(error) from None

    def _ended(self, error: BaseException | None) -> ConnectionLostError:
        if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
            raise error
        return ConnectionLostError(self.lost.result() if self.lost.done() else explain.closed(error))


class AmqpConsumer:
    """One queue's consumer on a channel of its own, so that what closes one channel stops no other."""

    def __init__(
        self,
        connection: AmqpConnection,
        queue: str,
        channel: aio_pika.abc.AbstractChannel,
        underlay: aiormq.abc.AbstractChannel,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[str], None],
        arguments: dict[str, Any],
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._channel = channel
        self._underlay = underlay
        self._on_delivery = on_delivery
        self._on_cancelled = on_cancelled
        self._arguments = arguments
        self._tag: str | None = None
        self._ended = False
        self._closing = False
        self._acks = Acks()
        self._last_tag = 0
        self._collecting = False

    async def start(self, prefetch: int) -> None:
        self._underlay.on_consumer_cancel_callbacks.add(self._on_cancel)
        await self._consume(prefetch)
        self._channel.close_callbacks.add(self._on_channel_closed)

    async def pause(self) -> None:
        tag, self._tag = self._tag, None
        if tag is not None:
            with self._connection.as_lost():
                await self._underlay.basic_cancel(tag)

    async def resume(self, prefetch: int) -> None:
        if not self._ended:
            with self._connection.as_lost():
                await self._consume(prefetch)

    async def cancel(self) -> None:
        self._ended = True
        with suppress(ConnectionLostError):
            await self.pause()
        self._close_if_settled()

    async def _consume(self, prefetch: int) -> None:
        await self._underlay.basic_qos(prefetch_count=prefetch)
        answer = await self._underlay.basic_consume(self._queue, self._deliver, arguments=self._arguments)
        self._tag = answer.consumer_tag

    async def _deliver(self, delivered: aiormq.abc.DeliveredMessage) -> None:
        # aiormq cancels the task that runs this when the channel closes: nothing may be awaited here.
        self._last_tag = delivered.delivery_tag or 0
        self._on_delivery(AmqpDelivery(self, delivered))

    def settle(self, tag: int, *, requeue: bool) -> None:
        """Acknowledge one delivery, with the others of this loop turn, or give it back."""
        if requeue:
            self._acks.requeue(tag)
            self._give_back(tag)
            self._close_if_settled()
            return
        self._acks.finish(tag)
        if not self._collecting:
            self._collecting = True
            self._collect_later()

    def _collect_later(self) -> None:
        self._connection._loop.call_soon(self._collect)

    def _collect(self) -> None:
        self._collecting = False
        if self._is_open():
            for tag, multiple in self._acks.take():
                self._acknowledge(tag, multiple)
            self._close_if_settled()

    def _is_open(self) -> bool:
        return not self._underlay.is_closed

    def _acknowledge(self, tag: int, multiple: bool) -> None:
        self._connection.write(partial(self._underlay.basic_ack, tag, multiple=multiple, wait=False))

    def _give_back(self, tag: int) -> None:
        self._connection.write(partial(self._underlay.basic_nack, tag, requeue=True, wait=False))

    def _close_if_settled(self) -> None:
        """Close the channel of a consumer that has ended, once that gives no message back that is still in hand."""
        if self._ended and not self._closing and self._acks.settled == self._last_tag:
            self._closing = True
            if not self._connection._ending and not self._channel.is_closed:
                self._connection.write(self._channel.close)

    def _on_cancel(self, _: object) -> None:
        why = "it was deleted, its leader moved, or a message was not acknowledged in time"
        self._end(f"RabbitMQ ended the deliveries from queue {self._queue!r} ({why})")
        self._close_if_settled()

    def _on_channel_closed(self, _: object, error: BaseException | None) -> None:
        self._closing = True
        self._connection.forget_consumer()
        if not self._connection._ending:
            self._end(f"RabbitMQ closed the channel of queue {self._queue!r}: {explain.closed(error)}")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._on_cancelled(reason)


class AmqpDelivery:
    __slots__ = ("_consumer", "_delivered", "message", "redelivered")

    def __init__(self, consumer: AmqpConsumer, delivered: aiormq.abc.DeliveredMessage) -> None:
        self._consumer = consumer
        self._delivered = delivered
        self.message = conversion.message(delivered)
        self.redelivered = bool(delivered.redelivered)

    @property
    def live(self) -> bool:
        return not self._consumer._underlay.is_closed

    def ack(self) -> None:
        self._consumer.settle(self._tag, requeue=False)

    def requeue(self) -> None:
        self._consumer.settle(self._tag, requeue=True)

    @property
    def _tag(self) -> int:
        tag = self._delivered.delivery_tag
        assert tag is not None
        return tag


def _server(connection: aio_pika.abc.AbstractConnection) -> Server:
    assert connection.transport is not None
    told = connection.transport.connection.server_properties
    return Server(_version(told.get("version")), _text(told.get("cluster_name")))


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _version(value: object) -> tuple[int, ...]:
    """`4.3.6` → (4, 3, 6). What is no number (`4.4.0-beta.1`) ends it."""
    parts = itertools.takewhile(str.isdigit, _text(value).split("."))
    return tuple(int(part) for part in parts)
