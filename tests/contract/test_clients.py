"""`AsyncClient` and `Client`, on every transport."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from broker import AckbackError, AsyncClient, Client, NotAcceptedError, RemoteError, Reply, Service, UnroutableError
from broker.errors import ServiceDefinitionError
from broker.handling.unconfirmed import WINDOW
from broker.transport.interface import Transport
from broker.transport.memory import MemoryBroker
from tests.contract.conftest import Cuttable
from tests.support import named, run, running, unique, until

Through = Callable[[], AbstractAsyncContextManager[Cuttable]]


class Echo(Service):
    async def handle(self) -> Any:
        return self.request.payload


class Counting(Service):
    payloads: list[Any]

    async def handle(self) -> Any:
        self.payloads.append(self.request.payload)
        if self.request.payload == "fail":
            raise ValueError("as asked")
        return Reply(b"\x00\x01") if self.request.payload == "bytes" else None


def test_call_returns_the_response_as_it_was_given(transport: Transport) -> None:
    echo, counting = named(unique("echo"), Echo), named(unique("counting"), Counting)
    counting.payloads = []  # type: ignore[attr-defined]

    async def test() -> None:
        async with (
            running(transport, echo, counting) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            for payload in ({"a": [1, None]}, "text", "", 42, [1.5], True, b"\x00\xff"):
                assert await client.call(echo, payload) == payload
            assert await client.call(counting, "bytes") == b"\x00\x01"
            assert await client.call(counting) == ""
            with pytest.raises(RemoteError, match="ValueError: as asked") as caught:
                await client.call(counting, "fail")
            assert caught.value.problem.service == counting.name
            with pytest.raises(UnroutableError, match="no daemon hosts"):
                await client.call(unique("nobody"))
            many = await asyncio.gather(*(client.call(echo, n) for n in range(200)))
            assert many == list(range(200))

    run(test())


def test_invoke_async_returns_once_it_is_accepted(transport: Transport) -> None:
    counting, callback = named(unique("counting"), Counting), named(unique("callback"), Counting)
    counting.payloads, callback.payloads = [], []  # type: ignore[attr-defined]

    async def test() -> None:
        async with (
            running(transport, counting, callback) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            cid = await client.invoke_async(counting, "hello", callback=callback)
            assert len(cid) == 32
            await until(lambda: callback.payloads == [""])  # type: ignore[attr-defined]
            assert counting.payloads == ["hello"]  # type: ignore[attr-defined]
            assert await client.invoke_async(counting, cid="my own") == "my own"
            with pytest.raises(UnroutableError):
                await client.invoke_async(unique("nobody"))

    run(test())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "no spaces"}, ServiceDefinitionError, "' ' is not allowed"),
        ({"name": ""}, ServiceDefinitionError, "it is empty"),
        ({"name": "amq.x"}, ServiceDefinitionError, "belong to RabbitMQ"),
        ({"name": "x" * 201}, ServiceDefinitionError, "201 bytes; 200 are allowed"),
        ({"name": "dead-letters"}, ServiceDefinitionError, "one of ackback's own queues"),
        ({"name": 5}, ServiceDefinitionError, "its name, its class or an instance"),
        ({"name": Echo}, ServiceDefinitionError, "has no `name` of its own"),
        ({"callback": ["a", ""]}, ServiceDefinitionError, "it is empty"),
        ({"payload": object()}, TypeError, "a object cannot be sent as JSON"),
        ({"payload": b"x" * 1001}, NotAcceptedError, "1001 bytes; at most 1000"),
        ({"headers": {"status": "ok"}}, ValueError, "cannot be given: status"),
        ({"headers": {"x": {1, 2}}}, TypeError, "holds a set, for which AMQP has no type"),
        ({"headers": {"x": 2**70}}, TypeError, "more than 64 bits"),
        ({"expiration": -1}, ValueError, "expiration is in seconds"),
        ({"priority": 256}, ValueError, "priority is 0 to 255"),
        ({"cid": ""}, ValueError, "a CID is a string"),
        ({"callback": [f"c{n}" for n in range(65)]}, ValueError, "65 callbacks; 64 are allowed"),
    ],
)
def test_mistaken_arguments_are_refused_with_a_reason(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    async def test() -> None:
        broker = MemoryBroker()
        async with (
            running(broker, worker={"max_body": 1000}) as daemon,
            AsyncClient(settings=daemon.settings, transport=broker) as client,
        ):
            with pytest.raises(error, match=words):
                await client.invoke_async(**{"name": "x", **arguments})

    run(test())


def test_invoke_many_takes_any_iterable_and_never_holds_more_than_its_window(transport: Transport) -> None:
    counting = named(unique("counting"), Counting)
    counting.payloads = []  # type: ignore[attr-defined]
    count = WINDOW + 500
    taken = 0

    def payloads() -> Iterator[int]:
        nonlocal taken
        for number in range(count):
            taken += 1
            yield number

    async def from_elsewhere() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    async def test() -> None:
        nonlocal taken
        async with (
            running(transport, counting) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            cids = await client.invoke_many(counting, payloads())
            assert len(set(cids)) == count
            await until(lambda: len(counting.payloads) == count)  # type: ignore[attr-defined]
            assert set(counting.payloads) == set(range(count))  # type: ignore[attr-defined]
            assert len(await client.invoke_many(counting, from_elsewhere())) == 2
            assert await client.invoke_many(counting, []) == []
            if isinstance(transport, MemoryBroker):
                transport.block()
                taken = 0
                sending = asyncio.ensure_future(client.invoke_many(counting, payloads()))
                await until(lambda: taken == WINDOW + 1)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert taken == WINDOW + 1
                transport.unblock()
                assert len(await sending) == count

    run(test())


def test_invoke_many_reports_each_message_that_was_not_accepted(transport: Transport) -> None:
    async def test() -> None:
        async with running(transport) as daemon, AsyncClient(settings=daemon.settings, transport=transport) as client:
            nobody = unique("nobody")
            with pytest.raises(
                NotAcceptedError, match=f"3 of 3 requests were not accepted, 0 were: nothing is listening at '{nobody}'"
            ) as caught:
                await client.invoke_many(nobody, [1, 2, 3])
            assert [one.index for one in caught.value.rejected] == [0, 1, 2]
            assert all(isinstance(one.error, UnroutableError) and one.cid for one in caught.value.rejected)
            assert caught.value.accepted == []

    run(test())


def test_invoke_many_that_is_cancelled_leaves_nothing_to_complain_about(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with AsyncClient(transport=transport) as client:
            many = asyncio.ensure_future(client.invoke_many(unique("nobody"), range(100)))
            await asyncio.sleep(0)
            many.cancel()
            with pytest.raises(asyncio.CancelledError):
                await many
            # By the time of another answer, those of the hundred have come, too.
            with pytest.raises(UnroutableError):
                await client.invoke_async(unique("nobody"))
        gc.collect()
        assert "never retrieved" not in caplog.text

    run(test())


def test_a_client_whose_connection_was_lost_makes_another(transport: Transport, cuttable: Through) -> None:
    echo = named(unique("echo"), Echo)

    async def test() -> None:
        async with running(transport, echo) as daemon, cuttable() as through:
            async with AsyncClient(settings=daemon.settings, transport=through.transport) as client:
                assert await client.call(echo, 1) == 1
                lost = client._connection
                assert lost is not None
                through.cut()
                await lost.lost
                if isinstance(transport, MemoryBroker):
                    await until(lambda: not daemon.daemon.ready.is_set())
                await until(daemon.daemon.ready.is_set)
                assert await client.call(echo, 2) == 2

    run(test())


def test_a_call_whose_connection_is_lost_says_so_at_once(transport: Transport, cuttable: Through) -> None:
    never = asyncio.Event()
    started: list[bool] = []

    class Stuck(Service):
        name = unique("stuck")

        async def handle(self) -> None:
            started.append(True)
            await never.wait()

    async def test() -> None:
        async with running(transport, Stuck) as daemon, cuttable() as through:
            async with AsyncClient(settings=daemon.settings, transport=through.transport) as client:
                calling = asyncio.ensure_future(client.call(Stuck))
                await until(lambda: started)
                through.cut()
                with pytest.raises(AckbackError, match="may or may not have been handled"):
                    await calling
                never.set()

    run(test())


class InThread:
    """A daemon on a loop of its own, as blocking code knows it: somewhere else."""

    def __init__(self, transport: Transport, *classes: type[Service]) -> None:
        self._transport, self._classes = transport, classes
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: run(self._run()))

    async def _run(self) -> None:
        async with running(self._transport, *self._classes) as daemon:
            self.settings = daemon.settings
            self._ready.set()
            await until(self._stop.is_set)

    def __enter__(self) -> InThread:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_the_blocking_client_serves_many_threads(rabbitmq_url: str) -> None:
    """Over RabbitMQ: the embedded broker lives on one event loop."""
    from broker.transport.amqp import AmqpTransport

    echo = named(unique("echo"), Echo)
    transport = AmqpTransport([rabbitmq_url])
    with InThread(transport, echo) as there, Client(settings=there.settings, transport=transport) as client:
        results: dict[int, Any] = {}

        def ask(number: int) -> None:
            results[number] = [client.invoke(echo, [number, n]) for n in range(20)]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {number: [[number, n] for n in range(20)] for number in range(8)}
        assert len(client.invoke_many(echo, range(100))) == 100
        assert client.invoke_async(echo, "x", cid="mine") == "mine"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12, for exactly what is tested
def test_the_blocking_client_fails_clearly_after_a_fork(rabbitmq_url: str) -> None:
    with Client(rabbitmq_url) as client:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                client.invoke_async("anything")
                os.write(write, b"it did not fail")
            except AckbackError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            assert "before the process forked" in told.read()
        os.waitpid(pid, 0)
