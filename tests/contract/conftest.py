"""Every contract test runs on every transport. Another one joins with a line in TRANSPORTS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from broker.transport.amqp import AmqpTransport
from broker.transport.interface import Transport
from broker.transport.lane import LaneTransport
from broker.transport.memory import MemoryBroker
from tests.proxy import Proxy
from tests.stores import postgresql_url, redis_url, store_url

__all__ = ["postgresql_url", "redis_url", "store_url"]

TRANSPORTS: dict[str, Callable[[Callable[[], str]], Transport]] = {
    "memory": lambda url: MemoryBroker(),
    "aio-pika": lambda url: AmqpTransport([url()]),
    "lane": lambda url: LaneTransport([url()]),
}


@pytest.fixture(params=[pytest.param("memory", marks=pytest.mark.embedded), "aio-pika", "lane"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return TRANSPORTS[request.param](lambda: request.getfixturevalue("rabbitmq_url"))


class Cuttable:
    """A transport, and the means to cut its connections and to keep it from making new ones."""

    def __init__(self, transport: Transport, proxy: Proxy | None) -> None:
        self.transport = transport
        self.proxy = proxy

    def cut(self) -> None:
        if isinstance(self.transport, MemoryBroker):
            self.transport.drop_connections()
        elif self.proxy:
            self.proxy.cut()


@pytest.fixture
def cuttable(transport: Transport) -> Callable[[], AbstractAsyncContextManager[Cuttable]]:
    @asynccontextmanager
    async def through_proxy() -> AsyncIterator[Cuttable]:
        if isinstance(transport, MemoryBroker):
            yield Cuttable(transport, None)
            return
        proxy = Proxy(transport._urls[0])  # type: ignore[attr-defined]
        await proxy.start()
        try:
            yield Cuttable(type(transport)([proxy.url]), proxy)
        finally:
            await proxy.stop()

    return through_proxy
