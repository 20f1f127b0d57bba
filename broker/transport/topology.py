"""Declaring, looking at and deleting entities, each on channels of its own: RabbitMQ closes a channel with what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import aio_pika
import aiormq
from aiormq import exceptions as amqp

from broker.errors import ConfigurationError, OtherArgumentsError
from broker.protocol.entities import Binding, Exchange, Queue
from broker.protocol.queues import reply_queue
from broker.transport import explain
from broker.transport.interface import QueueState

AT_ONCE = 50
CREATED_AT_ONCE = 5
"""RabbitMQ chooses the node of a new queue's leader by how many each has: those that are being made are not counted yet. On three
nodes, 30 new queues came to 20 / 0 / 10 when they were declared all at once, and to 10 / 11 / 9 five at a time."""

HEARD_OF_AFTER = 5.0
"""Seconds within which all nodes of a cluster have heard of a new queue."""

_Channel = tuple[aio_pika.abc.AbstractChannel, aiormq.abc.AbstractChannel]


class Topology:
    """The entities of one connection's virtual host. Other errors than those named are those of a connection or channel that ends."""

    def __init__(self, open_channel: Callable[[], Awaitable[_Channel]]) -> None:
        self._open_channel = open_channel
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._created_at_once = asyncio.Semaphore(CREATED_AT_ONCE)
        self._free: list[_Channel] = []

    async def declare(self, *wanted: Queue | Exchange | Binding) -> None:
        """Make sure, one after the other, that they exist as described.

        Raises:
            OtherArgumentsError: one exists with other arguments.
            ConfigurationError: the user may not declare it, or what a binding needs does not exist.
        """
        async with self._at_once:
            channel = await self._channel()
            for one in wanted:
                with _refusals(f"declare {one}", "configure or read", str(one)):
                    if not isinstance(one, Queue) or one.exclusive or await _exists(channel, one):
                        await _declare(channel, one)
                    else:
                        channel = await self._channel()
                        async with self._created_at_once:
                            await _declare(channel, one)
            await self._give_back(channel)

    async def look_at(self, name: str) -> QueueState | None:
        """What is on a queue; None if there is none of that name."""
        async with self._at_once:
            channel = await self._channel()
            with _refusals(f"look at queue {name!r}", "configure"):
                try:
                    answer = await channel[1].queue_declare(name, passive=True)
                except amqp.ChannelNotFoundEntity:
                    return None
                except amqp.ChannelLockedResource:
                    return QueueState(0, 0)
            await self._give_back(channel)
            return QueueState(answer.message_count or 0, answer.consumer_count or 0)

    async def delete(self, one: Queue | Exchange) -> int:
        """Delete it, if it is there, and return how many messages were on it."""
        async with self._at_once:
            channel = await self._channel()
            with _refusals(f"delete {one}", "configure"):
                if isinstance(one, Exchange):
                    await channel[1].exchange_delete(one.name)
                    count = 0
                else:
                    count = (await channel[1].queue_delete(one.name)).message_count or 0
            await self._give_back(channel)
            return count

    async def _channel(self) -> _Channel:
        return self._free.pop() if self._free else await self._open_channel()

    async def _give_back(self, channel: _Channel) -> None:
        """Keep a channel on which nothing was refused while others wait for one, and close all as soon as nobody does."""
        self._free.append(channel)
        if not self._at_once.locked():
            unused, self._free = self._free, []
            for one, _ in unused:
                await one.close()


async def is_one_cluster(one: Topology, other: Topology) -> bool:
    """Whether two nodes have the same queues, by a queue that is made through the one and looked for through the other.

    Nodes of one cluster may each tell another name for it. A user who may not make queues is believed.
    """
    probe = reply_queue()
    try:
        await one.declare(probe)
    except ConfigurationError:
        return True
    with suppress(TimeoutError):
        async with asyncio.timeout(HEARD_OF_AFTER):
            while await other.look_at(probe.name) is None:
                await asyncio.sleep(0.1)
            await one.delete(probe)
            return True
    return False


@contextmanager
def _refusals(what: str, permission: str, declared: str = "") -> Iterator[None]:
    try:
        yield
    except (amqp.ChannelPreconditionFailed, amqp.ChannelLockedResource) as error:
        raise OtherArgumentsError(explain.mismatch(declared, str(error.args[0]))) from None
    except amqp.ChannelNotFoundEntity as error:
        raise ConfigurationError(f"cannot {what}: {error.args[0]}") from None
    except amqp.ChannelAccessRefused as error:
        raise ConfigurationError(explain.refusal(what, permission, error)) from None


async def _exists(channel: _Channel, queue: Queue) -> bool:
    """Whether a queue of that name is there; if not, RabbitMQ has closed the channel."""
    try:
        await channel[1].queue_declare(queue.name, passive=True)
    except amqp.ChannelNotFoundEntity:
        return False
    return True


async def _declare(opened: _Channel, wanted: Queue | Exchange | Binding) -> None:
    channel = opened[1]
    if isinstance(wanted, Queue):
        shared = not wanted.exclusive
        arguments = dict(wanted.arguments) or None
        await channel.queue_declare(wanted.name, durable=shared, exclusive=not shared, arguments=arguments)
    elif isinstance(wanted, Exchange):
        await channel.exchange_declare(
            wanted.name, exchange_type=wanted.type, durable=True, arguments=dict(wanted.arguments) or None
        )
    elif isinstance(wanted.to, Queue):
        await channel.queue_bind(wanted.to.name, wanted.exchange, wanted.pattern)
    else:
        await channel.exchange_bind(destination=wanted.to.name, source=wanted.exchange, routing_key=wanted.pattern)
