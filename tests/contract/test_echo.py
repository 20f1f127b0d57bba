"""Servers that echo nothing but the correlation ID, as targets with a callback: the queue that they reply to says for which."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import AsyncClient, Service
from broker.handling import addressed
from broker.process import daemon as daemon_module
from broker.protocol.entities import Queue
from broker.protocol.message import Message, Publishing
from broker.protocol.queues import addressed_queue, own_queue
from broker.transport.interface import Delivery, Transport
from tests.contract.services import Seen, collecting_callback
from tests.support import Running, run, running, unique, until


@asynccontextmanager
async def server(transport: Transport, name: str, times: int = 1) -> AsyncIterator[None]:
    """Replies with the body in capitals, its correlation ID, and nothing else."""
    connection = await transport.connect()

    def answer(delivery: Delivery) -> None:
        request = delivery.message
        for _ in range(times if request.reply_to else 0):
            reply = Message(request.body.upper(), correlation_id=request.correlation_id)
            connection.publish(Publishing(str(request.reply_to), reply))
        delivery.ack()

    await connection.declare(own_queue(name))
    await connection.consume(name, 10, answer, lambda _: None)
    yield
    await connection.close()


async def deleted_and_declared_again(daemon: Running, callback: type[Service]) -> None:
    name = addressed_queue(daemon.callback_queue, callback.name).name
    await daemon.connection.delete(Queue(name))
    await until(lambda: daemon.connection.look_at(name))


def source_of(target: str, callback: str, **options: bool) -> type[Service]:
    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            self.invoke_async(target, self.request.text, callback=callback, **options)  # type: ignore[arg-type]

    return Source


@pytest.mark.parametrize("hosted", ["here", "elsewhere"])
@pytest.mark.parametrize("said", ["by the invocation", "by the configuration"])
def test_the_callback_gets_what_a_server_replies_that_echoes_nothing(
    transport: Transport, hosted: str, said: str
) -> None:
    seen, legacy = Seen(), unique("legacy")
    callback = collecting_callback(seen)
    source = source_of(legacy, callback.name, **({"echo": False} if said == "by the invocation" else {}))
    options = {} if said == "by the invocation" else {"service": {legacy: {"echo": False}}}

    async def test() -> None:
        hosts = (source, callback) if hosted == "here" else (source,)
        async with server(transport, legacy), running(transport, *hosts, **options) as daemon:
            async with running(transport, *(() if hosted == "here" else (callback,))):
                for number in range(20):
                    await daemon.publish(source.name, Message(b"tea %d" % number))
                events = await seen.wait(20)
                assert sorted(text for _, _, text in events) == sorted(f"TEA {number}" for number in range(20))
                assert {kind for kind, _, _ in events} == {"ok"}
                assert len({cid for _, cid, _ in events}) == 20

    run(test())


def test_a_client_asks_for_it_too(transport: Transport) -> None:
    seen, legacy = Seen(), unique("legacy")
    callback = collecting_callback(seen)

    async def test() -> None:
        async with (
            server(transport, legacy),
            running(transport, callback) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            cid = await client.invoke_async(legacy, "a", callback=callback, echo=False)
            cids = await client.invoke_many(legacy, ["b", "c"], callback=callback, echo=False)
            later = await client.invoke_async(legacy, "d", callback=callback, echo=False, delay=1)
            events = await seen.wait(4)
            assert {(one, text) for _, one, text in events} == set(zip([cid, *cids, later], "ABCD", strict=True))
            with pytest.raises(ValueError, match="name one callback, not 2"):
                await client.invoke_async(legacy, "e", callback=[callback, "another"], echo=False)

    run(test())


def test_a_callback_that_nobody_hosts_is_a_dead_letter_without_the_brokers_notes(transport: Transport) -> None:
    legacy = unique("legacy")
    source = source_of(legacy, unique("nobody"), echo=False)

    async def test() -> None:
        async with server(transport, legacy), running(transport, source) as daemon:
            await daemon.publish(source.name, Message(b"tea", correlation_id="c"))
            dead = (await until(lambda: daemon.dead))[0]
            assert (dead.headers["dead-reason"], dead.body) == ("no-callback", b"TEA")
            assert not [name for name in dead.headers if name.startswith(("x-death", "x-first-", "x-last-"))]

    run(test())


def test_a_server_that_replies_twice_is_heard_twice(transport: Transport) -> None:
    seen, legacy = Seen(), unique("legacy")
    callback = collecting_callback(seen)
    source = source_of(legacy, callback.name, echo=False)

    async def test() -> None:
        async with server(transport, legacy, times=2), running(transport, source, callback) as daemon:
            await daemon.publish(source.name, Message(b"tea"))
            events = await seen.wait(2)
            assert len(set(events)) == 1

    run(test())


def test_a_client_declares_a_queue_for_such_replies_again(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addressed, "AGAIN_AFTER", 0.0)
    seen, legacy = Seen(), unique("legacy")
    callback = collecting_callback(seen)

    async def test() -> None:
        async with (
            server(transport, legacy),
            running(transport, callback) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            for number in range(1, 4):
                await client.invoke_async(legacy, "tea", callback=callback, echo=False)
                await seen.wait(number)
                await daemon.connection.delete(Queue(addressed_queue(daemon.callback_queue, callback.name).name))

    run(test())


def test_who_hosts_the_callback_declares_the_queue_again_when_the_client_is_gone(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "LOOK_FOR_CALLBACKS", 0.1)
    seen, legacy = Seen(), unique("legacy")
    callback = collecting_callback(seen)

    async def test() -> None:
        async with server(transport, legacy), running(transport, callback) as daemon:
            async with AsyncClient(settings=daemon.settings, transport=transport) as client:
                await client.invoke_async(legacy, "tea", callback=callback, echo=False)
            await seen.wait(1)
            await deleted_and_declared_again(daemon, callback)

    run(test())


def test_a_queue_for_such_replies_that_is_deleted_is_declared_again(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "LOOK_FOR_CALLBACKS", 0.1)
    seen, legacy = Seen(), unique("legacy")
    callback = collecting_callback(seen)
    source = source_of(legacy, callback.name, echo=False)

    async def test() -> None:
        async with server(transport, legacy), running(transport, source, callback) as daemon:
            await daemon.publish(source.name, Message(b"tea"))
            await seen.wait(1)
            await deleted_and_declared_again(daemon, callback)
            await daemon.publish(source.name, Message(b"more tea"))
            assert (await seen.wait(2))[1][2] == "MORE TEA"

    run(test())
