"""Every contract test runs on every transport. Another one joins with a line in TRANSPORTS."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.transport import Transport
from broker.transport.amqp import AmqpTransport
from broker.transport.memory import MemoryBroker

TRANSPORTS: dict[str, Callable[[Callable[[], str]], Transport]] = {
    "memory": lambda url: MemoryBroker(),
    "aio-pika": lambda url: AmqpTransport([url()]),
}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    return TRANSPORTS[request.param](lambda: request.getfixturevalue("rabbitmq_url"))
