"""What many tests need: a daemon on a loop, waiting for a condition, names that no other test uses."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from broker.hosting import registry
from broker.process.daemon import Daemon
from broker.protocol.entities import Queue
from broker.protocol.message import Message, Publishing
from broker.protocol.names import DEAD_LETTERS
from broker.protocol.queues import UNDERTAKER
from broker.service import Service
from broker.settings import Settings
from broker.transport.interface import Connection, Delivery, Transport

TIMEOUT = 30.0
_counter = itertools.count(1)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine, within a time that only a broken test needs."""

    async def bounded() -> None:
        async with asyncio.timeout(4 * TIMEOUT):
            await coroutine

    asyncio.run(bounded())


def unique(stem: str = "test") -> str:
    """A name that no other test uses, in this session or another."""
    return f"{stem}.{secrets.token_hex(4)}.{next(_counter)}"


async def until(condition: Callable[[], Any], timeout: float = TIMEOUT) -> Any:
    """Wait until a condition holds, which may be a coroutine's, and return what it returned."""
    async with asyncio.timeout(timeout):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)


def named(name: str, cls: type[Service]) -> type[Service]:
    """A subclass under a name of its own, so that tests share no queues."""
    return type(cls.__name__, (cls,), {"name": name, "__module__": cls.__module__})


class Running:
    """A daemon for one test, a connection beside it that plays a foreign client, and the dead letters that appear."""

    def __init__(
        self, daemon: Daemon, connection: Connection, callback_queue: str, settings: Settings, found: registry.Registry
    ) -> None:
        self.daemon = daemon
        self.connection = connection
        self.callback_queue = callback_queue
        self.settings = settings
        self.registry = found
        self.dead: list[Message] = []
        self.serving: asyncio.Task[int]

    async def publish(self, queue: str, message: Message) -> None:
        await self.connection.publish(Publishing(queue, message))

    async def ask(self, queue: str, message: Message) -> Message:
        """Publish a request as a foreign client does, and return the reply."""
        inbox = await self.inbox()
        message.reply_to = inbox.queue
        await self.publish(queue, message)
        return await inbox.next()

    async def inbox(self) -> Inbox:
        """An exclusive queue of the foreign client."""
        name = unique("inbox")
        await self.connection.declare(Queue(name, exclusive=True))
        inbox = Inbox(name)
        await self.connection.consume(name, 100, inbox.take, lambda _: None)
        return inbox

    async def dead_letter(self, cid: str) -> Message:
        """The dead letter of one invocation, once it is there."""
        found = await until(lambda: [one for one in self.dead if one.correlation_id == cid])
        assert len(found) == 1
        assert isinstance(found[0], Message)
        return found[0]


class Inbox:
    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.messages: asyncio.Queue[Message] = asyncio.Queue()

    def take(self, delivery: Delivery) -> None:
        self.messages.put_nowait(delivery.message)
        delivery.ack()

    async def next(self) -> Message:
        async with asyncio.timeout(TIMEOUT):
            return await self.messages.get()


@asynccontextmanager
async def running(transport: Transport, *classes: type[Service], **sections: dict[str, Any]) -> AsyncIterator[Running]:
    """A daemon that hosts `classes`, ready, with a callback queue of its own; drained at the end."""
    callback_queue = sections.get("callbacks", {}).get("queue", unique("callbacks"))
    # One attempt, unless a test is about more.
    defaults = {"retry": False, **sections.get("defaults", {})}
    settings = Settings.model_validate({**sections, "defaults": defaults, "callbacks": {"queue": callback_queue}})
    found = registry.register([("tests", cls) for cls in classes], settings)
    daemon, serving = await _started(settings, found, transport)
    connection = await transport.connect()
    test = Running(daemon, connection, callback_queue, settings, found)
    test.serving = serving

    def on_dead(delivery: Delivery) -> None:
        test.dead.append(delivery.message)
        delivery.ack()

    await connection.consume(DEAD_LETTERS, 1000, on_dead, lambda _: None)
    try:
        yield test
    finally:
        if not serving.done():
            daemon.stop()
            await serving
        await connection.close()
        await delete_queues(transport, [callback_queue, *(one.name for one in found)])


async def _started(
    settings: Settings, found: registry.Registry, transport: Transport
) -> tuple[Daemon, asyncio.Task[int]]:
    daemon = Daemon(settings, found, transport)
    serving = asyncio.ensure_future(daemon.run())
    ready = asyncio.ensure_future(daemon.ready.wait())
    await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT)
    if serving.done():
        ready.cancel()
        serving.result()
    assert daemon.ready.is_set()
    return daemon, serving


@asynccontextmanager
async def running_daemon(transport: Transport, *classes: type[Service]) -> AsyncIterator[Daemon]:
    """A daemon alone, ready; stopped at the end."""
    settings = Settings.model_validate({"callbacks": {"queue": unique("callbacks")}})
    found = registry.register([("tests", cls) for cls in classes], settings)
    daemon, serving = await _started(settings, found, transport)
    try:
        yield daemon
    finally:
        daemon.stop()
        await serving


async def delete_queues(transport: Transport, names: list[str]) -> None:
    """Leave the broker as it was found."""
    from broker.transport.memory import MemoryBroker

    if isinstance(transport, MemoryBroker):
        return
    import aiormq

    connection = await aiormq.connect(transport._urls[0])  # type: ignore[attr-defined]
    channel = await connection.channel()
    for name in names:
        await channel.queue_delete(name)
    await connection.close()


__all__ = [
    "DEAD_LETTERS",
    "TIMEOUT",
    "UNDERTAKER",
    "Inbox",
    "Running",
    "delete_queues",
    "named",
    "run",
    "running",
    "running_daemon",
    "unique",
    "until",
]
