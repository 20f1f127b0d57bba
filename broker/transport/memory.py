"""A broker inside the process, for demonstrations and unit tests.

It keeps what RabbitMQ's quorum queues promise as long as the process lives: confirms, mandatory returns, prefetch, redelivery,
delivery limits, expiration and dead-lettering, full queues, exclusive queues, cancelled consumers, topic and fanout exchanges. Time passes
by the event loop's clock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from broker.errors import (
    ConfigurationError,
    ConnectionLostError,
    NotAcceptedError,
    OtherArgumentsError,
    UnroutableError,
)
from broker.protocol.delays import DELAYED
from broker.protocol.entities import Binding, Exchange, Queue
from broker.protocol.message import Message, Publishing
from broker.protocol.runs import DUE, TIMER
from broker.transport.interface import Delivery, Offset, QueueState, Server
from broker.transport.memory_stream import MemoryStream, StreamReader


@dataclass(slots=True, eq=False)
class _Item:
    message: Message
    expires: float | None
    routing_key: str
    deliveries: int = 0


@dataclass(slots=True, eq=False)
class _Queue:
    declared: Queue
    owner: MemoryConnection | None
    ready: deque[_Item] = field(default_factory=deque)
    consumers: deque[MemoryConsumer] = field(default_factory=deque)
    unacked: int = 0
    timer: asyncio.TimerHandle | None = None
    stream: MemoryStream | None = None


@dataclass(slots=True, eq=False)
class _Exchange:
    declared: Exchange
    bindings: dict[tuple[str, type, str], None] = field(default_factory=dict)


class MemoryBroker:
    """The broker, and the transport that connects to it. Pass one to a daemon and to its clients to let them meet.

    With `hurried`, what a queue's TTL has wait passes on at once: retries and `delay=` cost a test no time. The timers of durable services
    do not: one after the other, they come back when `pass_time` is called.
    """

    def __init__(self, *, hurried: bool = False) -> None:
        self._hurried = hurried
        self._queues: dict[str, _Queue] = {}
        self._exchanges: dict[str, _Exchange] = {}
        self._connections: list[MemoryConnection] = []
        self._blocked: deque[Callable[[], None]] | None = None
        self._timers: list[tuple[float, int, Message]] = []
        self._timer_numbers = itertools.count()

    @property
    def address(self) -> str:
        return "memory://"

    async def connect(self, *, in_one: bool = False) -> MemoryConnection:
        connection = MemoryConnection(self)
        self._connections.append(connection)
        return connection

    def depth(self, queue: str) -> int:
        """Messages in a queue, ready and unacknowledged; 0 if there is no such queue."""
        found = self._queues.get(queue)
        return len(found.ready) + found.unacked if found else 0

    def ready(self, queue: str) -> list[Message]:
        """The messages that wait in a queue, in order."""
        found = self._queues.get(queue)
        return [item.message for item in found.ready] if found else []

    def idle(self) -> bool:
        """Whether nothing is being delivered or waits for a consumer that is there to take it."""
        return all(not q.unacked and not (q.ready and q.consumers) for q in self._queues.values()) and not self._blocked

    def pass_time(self) -> bool:
        """Have the next timer of a durable service come back; False if there is none."""
        if not self._timers:
            return False
        *_, message = heapq.heappop(self._timers)
        to = message.headers[DELAYED]["to"]
        for queue in self._route("", to):
            self._enqueue(queue, message, to)
        return True

    def drop_connections(self, reason: str = "the broker went away") -> None:
        """End every connection, as a broker that restarts does."""
        for connection in list(self._connections):
            connection._end(reason)

    def block(self) -> None:
        """Raise a resource alarm: what is published from now on waits for `unblock`."""
        self._blocked = deque() if self._blocked is None else self._blocked

    def unblock(self) -> None:
        waiting, self._blocked = self._blocked, None
        for publish in waiting or ():
            publish()

    def delete(self, name: str) -> None:
        """Delete a queue with what is in it; its consumers are cancelled."""
        queue = self._queues.pop(name, None)
        if queue is None:
            return
        if queue.timer:
            queue.timer.cancel()
        for consumer in queue.consumers:
            consumer.active = False
            consumer.connection._loop.call_soon(consumer.on_cancelled, f"queue {name!r} was deleted")

    def _declare(self, wanted: Queue | Exchange | Binding, connection: MemoryConnection) -> None:
        if isinstance(wanted, Queue):
            self._declare_queue(wanted, connection)
        elif isinstance(wanted, Exchange):
            existing = self._exchanges.setdefault(wanted.name, _Exchange(wanted)).declared
            if (existing.type, dict(existing.arguments)) != (wanted.type, dict(wanted.arguments)):
                raise ConfigurationError(f"{wanted} exists with another type or other arguments; delete it")
        else:
            known = self._queues if isinstance(wanted.to, Queue) else self._exchanges
            if wanted.exchange not in self._exchanges or wanted.to.name not in known:
                raise ConfigurationError(f"{wanted} cannot be declared: one of them does not exist")
            self._exchanges[wanted.exchange].bindings[wanted.pattern, type(wanted.to), wanted.to.name] = None

    def _declare_queue(self, queue: Queue, connection: MemoryConnection) -> None:
        existing = self._queues.get(queue.name)
        if existing is None:
            stream = MemoryStream() if queue.arguments.get("x-queue-type") == "stream" else None
            self._queues[queue.name] = _Queue(queue, connection if queue.exclusive else None, stream=stream)
        elif existing.owner not in (None, connection):
            raise ConfigurationError(f"queue {queue.name!r} belongs to another connection alone (it is exclusive)")
        elif difference := _difference(existing.declared.arguments, queue.arguments):
            raise OtherArgumentsError(
                f"queue {queue.name!r} exists with other arguments: {difference}; delete the queue once it is empty, "
                "and start again"
            )

    def _publish(self, routing_key: str, message: Message, exchange: str, confirm: asyncio.Future[None]) -> None:
        if self._blocked is not None:
            self._blocked.append(lambda: self._publish(routing_key, message, exchange, confirm))
            return
        if confirm.done():
            return
        queues = self._route(exchange, routing_key)
        full = [queue.declared.name for queue in queues if self._is_full(queue)]
        if not queues:
            confirm.set_exception(UnroutableError(routing_key))
        elif full:
            confirm.set_exception(NotAcceptedError(f"queue {full[0]!r} is full: RabbitMQ refused the message"))
        else:
            for queue in queues:
                self._enqueue(queue, _with_headers(message, {}), routing_key)
            confirm.set_result(None)

    def _route(self, exchange: str, routing_key: str) -> list[_Queue]:
        """The queues that an exchange hands a message to, or else its alternate exchange does."""
        if exchange == "":
            return [self._queues[routing_key]] if routing_key in self._queues else []
        found = self._exchanges.get(exchange)
        if found is None:
            return []
        routed: dict[_Queue, None] = {}
        for pattern, kind, name in found.bindings:
            if found.declared.type == "fanout" or _matches(pattern.split("."), routing_key.split(".")):
                routed |= dict.fromkeys(
                    self._route("" if kind is Queue else name, name if kind is Queue else routing_key)
                )
        alternate = found.declared.arguments.get("alternate-exchange")
        return list(routed) or (self._route(alternate, routing_key) if alternate else [])

    @staticmethod
    def _is_full(queue: _Queue) -> bool:
        limit = queue.declared.arguments.get("x-max-length")
        return limit is not None and len(queue.ready) + queue.unacked >= limit

    def _enqueue(self, queue: _Queue, message: Message, routing_key: str) -> None:
        if queue.stream is not None:
            queue.stream.append(message)
            return
        ttl = queue.declared.arguments.get("x-message-ttl")
        if ttl is not None and self._hurried:
            if message.type == TIMER:
                heapq.heappush(self._timers, (message.headers[DUE], next(self._timer_numbers), message))
                return
            ttl = 0
        lifetimes = [t for t in (message.expiration, ttl) if t is not None]
        loop = asyncio.get_running_loop()
        expires = loop.time() + min(lifetimes) / 1000 if lifetimes else None
        queue.ready.append(_Item(message, expires, routing_key))
        self._pump(queue)

    def _pump(self, queue: _Queue) -> None:
        """Hand what is ready to the consumers in turn, as far as their prefetch goes; bury what has expired at the head."""
        loop = asyncio.get_running_loop()
        if queue.timer:
            queue.timer.cancel()
            queue.timer = None
        while queue.ready:
            item = queue.ready[0]
            if item.expires is not None and item.expires <= loop.time():
                queue.ready.popleft()
                self._dead_letter(queue, item, "expired")
                continue
            consumer = self._next_consumer(queue)
            if consumer is None:
                if item.expires is not None:
                    queue.timer = loop.call_at(item.expires, self._pump, queue)
                return
            queue.ready.popleft()
            queue.unacked += 1
            delivery = MemoryDelivery(item, queue, consumer)
            consumer.unacked[delivery] = None
            consumer.in_window.add(delivery)
            loop.call_soon(delivery.deliver)

    @staticmethod
    def _next_consumer(queue: _Queue) -> MemoryConsumer | None:
        if queue.declared.arguments.get("x-single-active-consumer"):
            first = queue.consumers[0] if queue.consumers else None
            return first if first and len(first.in_window) < first.prefetch else None
        for _ in range(len(queue.consumers)):
            consumer = queue.consumers[0]
            queue.consumers.rotate(-1)
            if len(consumer.in_window) < consumer.prefetch:
                return consumer
        return None

    def _settle(self, delivery: MemoryDelivery, *, requeue: bool, counts: bool = True) -> None:
        if delivery.settled:
            return
        delivery.settled = True
        delivery.consumer.unacked.pop(delivery, None)
        delivery.consumer.in_window.discard(delivery)
        queue = delivery.queue
        queue.unacked -= 1
        if requeue:
            item = delivery.item
            item.deliveries += counts
            limit = queue.declared.arguments.get("x-delivery-limit", -1)
            if 0 <= limit < item.deliveries:
                self._dead_letter(queue, item, "delivery_limit")
            else:
                queue.ready.appendleft(item)
        self._pump(queue)

    def _dead_letter(self, queue: _Queue, item: _Item, reason: str) -> None:
        arguments = queue.declared.arguments
        if arguments.get("x-dead-letter-exchange") is None:
            return
        message = _with_headers(item.message, {"x-delivery-count": item.deliveries} if item.deliveries else {})
        death = {
            "count": 1,
            "reason": reason,
            "queue": queue.declared.name,
            "time": datetime.now(UTC),
            "exchange": "",
            "routing-keys": [item.routing_key],
        }
        if message.expiration is not None:
            death["original-expiration"] = str(message.expiration)
        message.expiration = None
        first = {
            "x-first-death-queue": queue.declared.name,
            "x-first-death-reason": reason,
            "x-first-death-exchange": "",
        }
        message.headers = {**first, **message.headers, "x-death": [death, *message.headers.get("x-death", ())]}
        routing_key = arguments.get("x-dead-letter-routing-key", item.routing_key)
        for target in self._route(arguments["x-dead-letter-exchange"], routing_key):
            self._enqueue(target, message, routing_key)


def _matches(pattern: list[str], key: list[str]) -> bool:
    """Whether a topic's pattern matches a routing key: `*` stands for one word, `#` for any number of them."""
    if not pattern or not key:
        return pattern in ([], ["#"]) and not key
    if pattern[0] == "#":
        return _matches(pattern[1:], key) or _matches(pattern, key[1:])
    return pattern[0] in ("*", key[0]) and _matches(pattern[1:], key[1:])


def _difference(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} is {existing.get(key, 'not set')} there and {wanted.get(key, 'not set')} here"
        for key in sorted({*existing, *wanted})
        if existing.get(key) != wanted.get(key)
    )


class MemoryDelivery:
    __slots__ = ("consumer", "item", "queue", "redelivered", "settled")

    def __init__(self, item: _Item, queue: _Queue, consumer: MemoryConsumer) -> None:
        self.item = item
        self.queue = queue
        self.consumer = consumer
        self.redelivered = item.deliveries > 0
        self.settled = False

    @property
    def message(self) -> Message:
        message = self.item.message
        if not self.item.deliveries:
            return message
        return _with_headers(message, {"x-delivery-count": self.item.deliveries})

    @property
    def live(self) -> bool:
        return not self.settled

    def deliver(self) -> None:
        if self.settled:
            return
        if self.consumer.active:
            self.consumer.on_delivery(self)
        else:  # nobody has seen it
            self.consumer.connection._broker._settle(self, requeue=True, counts=False)

    def ack(self) -> None:
        self.consumer.connection._broker._settle(self, requeue=False)

    def requeue(self) -> None:
        self.consumer.connection._broker._settle(self, requeue=True)


def _with_headers(message: Message, headers: Mapping[str, Any]) -> Message:
    changed = copy(message)
    changed.headers = {**message.headers, **headers}
    return changed


class MemoryConsumer:
    def __init__(
        self,
        connection: MemoryConnection,
        queue: _Queue,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[str], None],
    ) -> None:
        self.connection = connection
        self.queue = queue
        self.prefetch = prefetch
        self.on_delivery = on_delivery
        self.on_cancelled = on_cancelled
        self.unacked: dict[MemoryDelivery, None] = {}
        self.in_window: set[MemoryDelivery] = set()
        self.active = True
        self.cancelled = False

    async def pause(self) -> None:
        self.connection._check()
        self.stop()

    async def resume(self, prefetch: int) -> None:
        self.connection._check()
        if self.cancelled:
            return
        found = self.connection._broker._queues.get(self.queue.declared.name)
        if found is not self.queue:
            self.on_cancelled(f"queue {self.queue.declared.name!r} was deleted")
            return
        self.prefetch = prefetch
        self.in_window = set()  # what is in hand from before was in another window
        self.active = True
        found.consumers.append(self)
        self.connection._broker._pump(found)

    async def cancel(self) -> None:
        self.cancelled = True
        self.stop()

    def stop(self) -> None:
        self.active = False
        if self in self.queue.consumers:
            self.queue.consumers.remove(self)


class MemoryConnection:
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._consumers: list[MemoryConsumer] = []
        self._readers: list[StreamReader] = []
        self._unconfirmed: set[asyncio.Future[None]] = set()
        self._ended = False
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.server = Server((), "")

    async def declare(self, *wanted: Queue | Exchange | Binding) -> None:
        self._check()
        for one in wanted:
            self._broker._declare(one, self)

    @property
    def blocked(self) -> bool:
        return self._broker._blocked is not None

    async def delete(self, one: Queue | Exchange) -> int:
        self._check()
        if isinstance(one, Exchange):
            self._broker._exchanges.pop(one.name, None)
            return 0
        found = self._broker._queues.get(one.name)
        self._broker.delete(one.name)
        return len(found.ready) if found else 0

    async def look_at(self, queue: str) -> QueueState | None:
        self._check()
        found = self._broker._queues.get(queue)
        if found is None:
            return None
        ready = found.ready if found.stream is None else found.stream.messages
        return QueueState(len(ready), len(found.consumers))

    def publish(self, publishing: Publishing) -> asyncio.Future[None]:
        confirm: asyncio.Future[None] = self._loop.create_future()
        if self._ended:
            confirm.set_exception(ConnectionLostError("the connection has ended"))
            return confirm
        self._unconfirmed.add(confirm)
        confirm.add_done_callback(self._unconfirmed.discard)
        self._loop.call_soon(self._broker._publish, *publishing, confirm)
        return confirm

    async def consume(
        self,
        queue: str,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[str], None],
        timeout: float | None = None,
        offset: Offset | None = None,
    ) -> MemoryConsumer | StreamReader:
        self._check()
        found = self._broker._queues.get(queue)
        if found is None:
            raise ConfigurationError(f"there is no queue {queue!r} to consume")
        if found.stream is not None:
            reader = StreamReader(found.stream, offset, prefetch, on_delivery)
            self._readers.append(reader)
            return reader
        consumer = MemoryConsumer(self, found, prefetch, on_delivery, on_cancelled)
        self._consumers.append(consumer)
        found.consumers.append(consumer)
        self._broker._pump(found)
        return consumer

    async def close(self) -> None:
        if not self._ended:
            self._end(None)

    def _check(self) -> None:
        if self._ended:
            raise ConnectionLostError("the connection has ended")

    def _end(self, reason: str | None) -> None:
        self._ended = True
        self._broker._connections.remove(self)
        for reader in self._readers:
            reader.stop()
        for consumer in self._consumers:
            consumer.stop()
        for consumer in self._consumers:
            for delivery in reversed(list(consumer.unacked)):
                delivery.requeue()
        for confirm in list(self._unconfirmed):
            if not confirm.done():
                confirm.set_exception(ConnectionLostError(reason or "the connection was closed"))
        for name in [n for n, q in self._broker._queues.items() if q.owner is self]:
            self._broker.delete(name)
        if reason is not None and not self.lost.done():
            self.lost.set_result(reason)
