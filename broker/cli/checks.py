"""What `ackback check` looks at, one step after the other, each with what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from broker.errors import AckbackError, BrokerUnavailableError, ConfigurationError
from broker.handling.convention import existing
from broker.hosting import registry
from broker.hosting.registry import Registry
from broker.process import migration
from broker.protocol.message import Message, Publishing
from broker.protocol.names import SCHEDULES
from broker.protocol.queues import delay_chain, durable_queues, own_queue, reply_queue, with_what_leads_there
from broker.settings import Settings
from broker.transport.factory import create
from broker.transport.interface import Connection, Delivery

PROBE_TIMEOUT = 10.0

Step = tuple[str, str | None]


async def checks(config: Path | None, paths: Sequence[str] | None) -> AsyncIterator[Step]:
    """Yield what was checked, and the problem if there is one. What depends on a step that failed is left out."""
    try:
        settings = Settings.load(config)
    except AckbackError as error:
        yield "configuration", str(error)
        return
    yield f"configuration: {settings.file or 'no file, only defaults and the environment'}", None
    services = None
    try:
        services = registry.load(settings, paths)
        yield f"services: {len(services)} found", None
    except AckbackError as error:
        yield "services", str(error)
    if problem := await _problem_of_clusters(settings):
        yield "cluster", problem
        return
    transport = create(settings.urls, settings.broker.transport)
    try:
        connection = await transport.connect()
    except AckbackError as error:
        yield "connection", f"{error} ([broker] url says where)"
        return
    yield f"connection: {transport.address}", None
    try:
        if why := await migration.waiting(connection):
            yield "queues", why
            return
        queues = durable_queues((one.name for one in services or ()), settings.callbacks.queue)
        if any(one.plan for one in services or ()):
            queues.append(own_queue(SCHEDULES))
        for queue in queues:
            try:
                await connection.declare(*with_what_leads_there(queue))
                yield f"queue {queue.name}", None
            except AckbackError as error:
                yield f"queue {queue.name}", str(error)
        if services is not None:
            elsewhere = await callbacks_elsewhere(connection, services)
            for one in services:
                for name in services.default_callbacks(one, elsewhere):
                    yield f"callback of {one.name}: {name} ({place_of(name, services)})", None
        try:
            await connection.declare(*delay_chain())
            yield "delays (retries, delay=)", None
        except AckbackError as error:
            yield "delays (retries, delay=)", str(error)
        yield await _probe(connection)
    finally:
        await connection.close()


async def callbacks_elsewhere(connection: Connection, services: Registry) -> frozenset[str]:
    """The callbacks by convention that other daemons host."""
    return await existing(connection, (name for one in services if (name := services.convention_elsewhere(one))))


def place_of(callback: str, services: Registry) -> str:
    return "here" if callback in services else "elsewhere"


async def _problem_of_clusters(settings: Settings) -> str | None:
    """Whether URLs that answer are of different clusters: a process would publish to one and consume from the other."""
    first, *others = settings.urls
    for url in others:
        try:
            connection = await create([first, url], settings.broker.transport).connect()
        except BrokerUnavailableError:
            continue
        except ConfigurationError as error:
            return str(error)
        await connection.close()
    return None


async def _probe(connection: Connection) -> Step:
    """Send a message through an exclusive queue: permission to write to the default exchange, and to read."""
    what = "publish and consume"
    queue = reply_queue()
    arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_delivery(delivery: Delivery) -> None:
        delivery.ack()
        if not arrived.done():
            arrived.set_result(None)

    try:
        await connection.declare(queue)
        await connection.consume(queue.name, 1, on_delivery, lambda _: None)
        async with asyncio.timeout(PROBE_TIMEOUT):
            await connection.publish(Publishing(queue.name, Message(b"ackback check")))
            await arrived
    except AckbackError as error:
        return what, f"{error}; the user needs write permission for amq.default and read permission for its queues"
    except TimeoutError:
        return (
            what,
            f"a message did not come back within {PROBE_TIMEOUT:g} s; is an alarm raised? See rabbitmqctl status",
        )
    return what, None
