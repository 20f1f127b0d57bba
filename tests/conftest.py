"""RabbitMQ for the whole session, and a process's environment as a fresh machine has it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

# Its reaper is one more image to pull; the fixtures below remove what they start. Read when testcontainers is imported.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

from tests.rabbitmq import Rabbit, rabbitmq

# It reports every refused connection at length, also while a broker is only starting.
logging.getLogger("pika").setLevel(logging.CRITICAL)

USED: dict[str, str] = {}


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """The RabbitMQ that this session uses; the summary says which it was."""
    with rabbitmq() as found:
        USED["RabbitMQ"] = f"{_version(found.url)} from {found.origin}"
        yield found


@pytest.fixture(scope="session")
def rabbitmq_url(rabbit: Rabbit) -> str:
    """The URL of the RabbitMQ that this session uses."""
    return rabbit.url


@pytest.fixture(scope="session")
def our_rabbit(rabbit: Rabbit) -> Iterator[Rabbit]:
    """A RabbitMQ that the tests may administrate: the session's own, or another beside somebody else's."""
    if rabbit.tool is not None:
        yield rabbit
        return
    with rabbitmq(ours=True) as another:
        yield another


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ACKBACK_"):
            monkeypatch.delenv(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, which in USED.items():
        terminalreporter.write_line(f"{what}: {which}")


def _version(url: str) -> str:
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return str(connection._impl.server_properties["version"])


pytest_plugins = ["pytester"]
