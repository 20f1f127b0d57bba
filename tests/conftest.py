"""RabbitMQ for the whole session, and a process's environment as a fresh machine has it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest

# Its reaper is one more image to pull; the fixtures below remove what they start. Read when testcontainers is imported.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

from tests.rabbitmq import Rabbit, install, rabbitmq

# It reports every refused connection at length, also while a broker is only starting.
logging.getLogger("pika").setLevel(logging.CRITICAL)

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("ackback", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("ackback")

USED: dict[str, str] = {}
SHARED = "TESTS_SHARED_RABBITMQ"


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """The RabbitMQ that this session uses; the summary says which it was."""
    if shared := os.environ.get(SHARED):  # by all processes of this session, each with a virtual host of its own
        found = Rabbit(**json.loads(shared))
        yield found.with_vhost(os.environ["PYTEST_XDIST_WORKER"])
        return
    with rabbitmq() as found:
        _note_version(found)
        yield found


@pytest.fixture(scope="session")
def rabbitmq_url(rabbit: Rabbit) -> str:
    """The URL of the RabbitMQ that this session uses."""
    return rabbit.url


@pytest.fixture(scope="session")
def our_rabbit(rabbit: Rabbit) -> Iterator[Rabbit]:
    """A RabbitMQ that the tests may administrate: the session's own, or another beside somebody else's."""
    if rabbit.is_ours:
        yield rabbit
        return
    with rabbitmq(ours=True) as another:
        yield another


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ACKBACK_"):
            monkeypatch.delenv(name)


def pytest_configure(config: pytest.Config) -> None:
    """With several processes (pytest-xdist), one RabbitMQ for all."""
    if getattr(config.option, "numprocesses", None):
        assert "AMQP_URL" not in os.environ, (
            "tests in several processes each need a virtual host; with AMQP_URL leave out -n"
        )
        stack = contextlib.ExitStack()
        found = stack.enter_context(rabbitmq())
        _note_version(found)
        os.environ[SHARED] = json.dumps(dataclasses.asdict(found))
        config.add_cleanup(stack.close)
        config.pluginmanager.register(OfSeveralProcesses())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["used"] = USED


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Attacks that are played on one node run in one process, and begin first, as they are the longest of all."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            return f"{file} {test.rpartition('-')[2]}" if file.startswith("tests/faults/") else nodeid

    return Together(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged may hold halves of surrogate pairs, which no report can be sent with."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


class OfSeveralProcesses:
    """Hooks of pytest-xdist."""

    def pytest_testnodedown(self, node: Any) -> None:
        USED.update(getattr(node, "workeroutput", {}).get("used", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, which in USED.items():
        terminalreporter.write_line(f"{what}: {which}")


def install_or_skip(what: str, packages: str, what_to_do: str) -> None:
    """Install Debian's packages. Where they cannot be had, the summary says that `what` was not tried."""
    try:
        install(packages, what_to_do)
    except RuntimeError as error:
        USED[what] = f"NOT TRIED: {error}"
        pytest.skip(str(error))


def _note_version(found: Rabbit) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(found.url)) as connection:
        USED["RabbitMQ"] = f"{connection._impl.server_properties['version']} from {found.origin}"


pytest_plugins = ["pytester"]
