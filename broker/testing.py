"""A pytest plugin for the users' own tests.

    async def test_price(services):
        quote = await services.call("orders.price", {"item": "screen"})
        assert quote["total"] == "219.00"

`services` runs the services of the project's configuration on the embedded broker; with `pytest --ackback-url URL` the same
tests run against RabbitMQ. On the embedded broker a retry's wait and a `delay=` pass at once. Such tests need no other plugin for
`async def`. `ackback_rabbitmq` starts a RabbitMQ in a container.

    async def test_checkout(services):
        run = await services.start("shop.checkout", {"item": "tea"})
        await services.settle()
        assert run.waiting_for == ["approved"]
        await run.signal("approved", "by Ann")
        assert await run.result() == {"number": 4711}

The timers of durable services pass while `result` is awaited, at once and in order. With `pytest --ackback-replay` every message has its
run read from its journal and run again from the top: a handler that does not ask the same questions every time is found.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from broker.client import AsyncClient
    from broker.durable.journal import Journal
    from broker.errors import Problem
    from broker.hosting.registry import Registry
    from broker.process.daemon import Daemon
    from broker.protocol.message import Message
    from broker.settings import Settings
    from broker.transport.interface import Transport

SETTLE_TIMEOUT = 30.0
READY_TIMEOUT = 30.0
_POLL = 0.005
# RabbitMQ counts a queue's messages a moment after the fact: nothing in flight must be seen so often in a row.
_CALM_LOOKS = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ackback")
    group.addoption(
        "--ackback-url",
        metavar="URL",
        default="memory://",
        help="run the `services` fixture against this RabbitMQ instead of the embedded broker",
    )
    group.addoption(
        "--ackback-replay",
        action="store_true",
        help="have durable services run again from the top after every step, as after a crash",
    )
    parser.addini(
        "ackback_config", "the configuration for the `services` fixture, relative to the root directory", default=""
    )
    parser.addini(
        "ackback_services", "services folders or modules, instead of the configuration's", type="linelist", default=[]
    )


@pytest.fixture
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    """The project's services, running; see `Services`."""
    config = request.config
    yield from running_services(
        url=config.getoption("--ackback-url"),
        config=str(config.rootpath / name) if (name := config.getini("ackback_config")) else None,
        paths=[
            str(config.rootpath / path) if (config.rootpath / path).exists() else path
            for path in config.getini("ackback_services")
        ]
        or None,
        replay=config.getoption("--ackback-replay"),
    )


@pytest.fixture(scope="session")
def ackback_rabbitmq() -> Iterator[str]:
    """The URL of a RabbitMQ 4 in a container, started for this session with testcontainers and removed after it."""
    with rabbitmq_container() as url:
        yield url


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test that uses `services` on the loop that the services run on."""
    found = pyfuncitem.funcargs.get("services")
    if not isinstance(found, Services) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    found._runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter: why, which service, and the message as it came."""

    reason: str
    service: str
    cid: str
    error: Problem
    message: Message


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Services:
    """Services that run for one test, and the calls to them.

    `client` is an `AsyncClient`; its calls are here directly, too.
    """

    def __init__(
        self, runner: asyncio.Runner, settings: Settings, registry: Registry, transport: Transport, *, replay: bool
    ) -> None:
        self._runner = runner
        self._settings = settings
        self._registry = registry
        self._transport = transport
        from broker.handling.runs import CACHED_RUNS
        from broker.stores.memory import MemoryStore

        self._store = MemoryStore()
        self._cached_runs = 0 if replay else CACHED_RUNS
        self._records = _Records()
        self._dead: list[DeadLetter] = []
        self._daemon: Daemon
        self._serving: asyncio.Task[int]
        self._inspect: _Inspector
        self.client: AsyncClient

    @property
    def logged(self) -> list[logging.LogRecord]:
        """The records that the services logged, in order; each has `cid`, `service` and `attempt`."""
        return [record for record in self._records.records if hasattr(record, "cid")]

    @property
    def dead(self) -> list[DeadLetter]:
        """The dead letters so far, in order."""
        return list(self._dead)

    async def invoke_async(self, name: Any, payload: Any = "", **options: Any) -> str:
        """See `AsyncClient.invoke_async`."""
        return await self.client.invoke_async(name, payload, **options)

    async def call(self, name: Any, payload: Any = "", *, timeout: float = 30.0) -> Any:
        """See `AsyncClient.call`."""
        return await self.client.call(name, payload, timeout=timeout)

    async def start(self, name: Any, payload: Any = "") -> DurableRun:
        """Begin a run of a durable service."""
        from broker.protocol.cids import new_cid

        return await DurableRun._begun(self, self._registry.name_of(name), payload, new_cid())

    async def settle(self, timeout: float = SETTLE_TIMEOUT) -> None:
        """Wait until nothing is in flight: all queues of the services are empty and nothing is being handled.

        Raises:
            TimeoutError: something still is after `timeout` seconds.
        """
        calm = 0
        async with asyncio.timeout(timeout):
            while calm < _CALM_LOOKS:
                idle = not self._daemon.busy() and not await self._inspect.waiting() and not self._daemon.busy()
                calm = calm + 1 if idle else 0
                await asyncio.sleep(_POLL)

    async def _start(self) -> None:
        from broker.client import AsyncClient
        from broker.process.daemon import Daemon

        root = logging.getLogger()
        root.addHandler(self._records)
        self._level = root.level
        root.setLevel(min(root.level, logging.INFO))
        self._daemon = Daemon(
            self._settings,
            self._registry,
            self._transport,
            store=self._store,
            cached_runs=self._cached_runs,
            fires=False,
        )
        self._serving = asyncio.ensure_future(self._daemon.run())
        ready = asyncio.ensure_future(self._daemon.ready.wait())
        await asyncio.wait({self._serving, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=READY_TIMEOUT)
        if not ready.done():
            ready.cancel()
            self._serving.cancel()
            if self._serving.done():
                self._serving.result()
            raise TimeoutError(f"the services were not ready within {READY_TIMEOUT:g} s at {self._transport.address}")
        self.client = AsyncClient(settings=self._settings, transport=self._transport)
        await self.client._connected()
        self._inspect = await _Inspector.open(self._settings, self._registry, self._transport)
        await self._inspect.collect_dead_letters(self._on_dead)

    async def _stop(self) -> None:
        await self.client.close()
        self._daemon.stop()
        await self._serving
        await self._inspect.close()
        logging.getLogger().removeHandler(self._records)
        logging.getLogger().setLevel(self._level)

    def _on_dead(self, message: Message) -> None:
        from broker.protocol import outcomes, problems

        headers = message.headers
        service = str(headers.get(outcomes.DEAD_SERVICE, ""))
        error = problems.from_json(str(headers.get(outcomes.DEAD_ERROR, "")).encode(), service)
        self._dead.append(
            DeadLetter(str(headers.get(outcomes.DEAD_REASON)), service, message.correlation_id or "", error, message)
        )


class DurableRun:
    """A run of a durable service that a test has begun; `cid` is its CID."""

    def __init__(self, services: Services, service: str, cid: str, inbox: asyncio.Queue[Message]) -> None:
        self._services = services
        self._service = service
        self._inbox = inbox
        self.cid = cid

    @classmethod
    async def _begun(cls, services: Services, service: str, payload: Any, cid: str) -> DurableRun:
        from broker.protocol.message import Publishing
        from broker.protocol.queues import reply_queue
        from broker.protocol.requests import Template

        connection = services._inspect._connection
        queue = reply_queue()
        await connection.declare(queue)
        inbox: asyncio.Queue[Message] = asyncio.Queue()

        def on_reply(delivery: Any) -> None:
            inbox.put_nowait(delivery.message)
            delivery.ack()

        await connection.consume(queue.name, 10, on_reply, lambda _: None)
        template = Template(reply_to=queue.name)
        request: Publishing = template.request(service, payload, cid, time.time(), services._settings.worker.max_body)
        await connection.publish(request)
        return cls(services, service, cid, inbox)

    @property
    def waiting_for(self) -> list[str]:
        """What it waits for: the names of signals, of the services that it has called, and of functions; `sleep` if for time alone."""
        from broker.durable.run import TIMER
        from broker.durable.story import Step, story

        journal = self._journal()
        steps = [one for one in story(journal) if isinstance(one, Step) and one.is_waited_for] if journal.chunks else []
        names = [one.what.split()[0].strip('"') for one in steps if one.kind != TIMER]
        return names or (["sleep"] if steps else [])

    async def signal(self, name: str, payload: Any = "") -> None:
        """Send it a signal."""
        await self._services.client.signal(self._service, self.cid, name, payload)

    async def result(self, timeout: float = SETTLE_TIMEOUT) -> Any:
        """Wait until it has ended, and return its response. Meanwhile, on the embedded broker, time passes at once.

        Raises:
            RemoteError: it failed, or was cancelled.
            TimeoutError: it has not ended after `timeout` seconds; the message says what it waits for.
        """
        from broker.errors import RemoteError
        from broker.protocol import bodies, problems
        from broker.transport.memory import MemoryBroker

        broker = self._services._transport
        try:
            async with asyncio.timeout(timeout):
                while self._inbox.empty():
                    await self._services.settle(timeout)
                    if self._inbox.empty() and not (isinstance(broker, MemoryBroker) and broker.pass_time()):
                        await asyncio.sleep(_POLL)
                reply = self._inbox.get_nowait()
        except TimeoutError:
            raise TimeoutError(f"the run has not ended: it waits for {', '.join(self.waiting_for)}") from None
        if reply.headers.get("status") == "error":
            raise RemoteError(problems.from_json(reply.body, self._service))
        return bodies.decode(reply)

    def _journal(self) -> Journal:
        from broker.durable.journal import Journal
        from broker.protocol.runs import run_id

        return Journal.of(self._services._store.journal(run_id(self._service, self.cid)))


class _Inspector:
    """Looks into the queues: how many messages wait, and which dead letters come."""

    def __init__(self, connection: Any, queues: list[str], transport: Transport, channel: Any) -> None:
        self._connection = connection
        self._queues = queues
        self._transport = transport
        self._channel = channel

    @classmethod
    async def open(cls, settings: Settings, registry: Registry, transport: Transport) -> _Inspector:
        from broker.protocol.queues import durable_queues
        from broker.transport.memory import MemoryBroker

        queues = [queue.name for queue in durable_queues((one.name for one in registry), settings.callbacks.queue)]
        channel = None
        if not isinstance(transport, MemoryBroker):
            import aiormq

            counting = await aiormq.connect(settings.urls[0])
            channel = await counting.channel()
        return cls(await transport.connect(), queues, transport, channel)

    async def collect_dead_letters(self, on_dead: Callable[[Message], None]) -> None:
        from broker.protocol.names import DEAD_LETTERS
        from broker.transport.interface import Delivery

        def on_delivery(delivery: Delivery) -> None:
            on_dead(delivery.message)
            delivery.ack()

        await self._connection.consume(DEAD_LETTERS, 1000, on_delivery, lambda _: None)

    async def waiting(self) -> int:
        from broker.transport.memory import MemoryBroker

        if isinstance(self._transport, MemoryBroker):
            return sum(self._transport.depth(queue) for queue in self._queues)
        count = 0
        for queue in self._queues:
            count += (await self._channel.queue_declare(queue, passive=True)).message_count or 0
        return count

    async def close(self) -> None:
        await self._connection.close()
        if self._channel is not None:
            await self._channel.connection.close()


def running_services(
    url: str = "memory://", config: str | None = None, paths: list[str] | None = None, *, replay: bool = False
) -> Iterator[Services]:
    """Run services for as long as the iterator is held: the body of the fixture `services`, for fixtures of your own.

    With `replay`, durable services are run again from the top after every step.
    """
    from broker.hosting import registry
    from broker.settings import Settings
    from broker.transport.factory import create
    from broker.transport.memory import MemoryBroker

    settings = Settings.load(config).with_changes("broker", url=[url])
    found = registry.load(settings, paths)
    with asyncio.Runner() as runner:
        memory = settings.urls[0].startswith("memory:")
        transport = MemoryBroker(hurried=True) if memory else create(settings.urls, settings.broker.transport)
        running = Services(runner, settings, found, transport, replay=replay)
        runner.run(running._start())
        try:
            yield running
        finally:
            runner.run(running._stop())


class rabbitmq_container:  # noqa: N801  # used like a function: `with rabbitmq_container() as url:`
    """A RabbitMQ in a container of its own, and its URL.

    With `host`, its port is published on that address alone, and the URL says so; else as testcontainers does by default.

    Raises:
        pytest.UsageError: testcontainers is not installed.
    """

    def __init__(self, image: str = "rabbitmq:4-management", host: str | None = None) -> None:
        try:
            with warnings.catch_warnings():
                # Its own module warns of its own decorator.
                warnings.simplefilter("ignore", DeprecationWarning)
                from testcontainers.community.rabbitmq import RabbitMqContainer
        except ImportError:
            raise pytest.UsageError("this needs testcontainers: pip install 'ackback[test]'") from None
        self._container = RabbitMqContainer(image)
        if host is not None:
            ports: dict[Any, Any] = self._container.ports
            ports[self._container.port] = (host,)
            self._container.__dict__["get_container_host_ip"] = lambda: host

    def __enter__(self) -> str:
        try:
            self._container.start()
        except BaseException:
            self._container.stop()
            raise
        parameters = self._container.get_connection_params()
        credentials = parameters.credentials
        return f"amqp://{credentials.username}:{credentials.password}@{parameters.host}:{parameters.port}/"

    def __exit__(self, *_: object) -> None:
        self._container.stop()

    @property
    def id(self) -> str:
        """The container's ID, for Docker's own tools."""
        return str(self._container.get_wrapped_container().id)


__all__ = [
    "DeadLetter",
    "DurableRun",
    "Services",
    "ackback_rabbitmq",
    "rabbitmq_container",
    "running_services",
    "services",
]
