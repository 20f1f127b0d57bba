"""Daemons as processes, as users run them, and the clients that users have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pika
import pytest

from broker.protocol.delays import LEVELS, level_name
from broker.protocol.events import EVENTS
from broker.protocol.names import SCHEDULES
from broker.protocol.quarantine import queue_name
from broker.protocol.queues import DUE
from tests.conftest import USED

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 40.0
PRICE = """
    from broker import Service

    class Price(Service):
        name = "shop.price"
        retry = None

        async def handle(self, item: str) -> float:
            if item == "boat":
                raise LookupError("no <b>boats</b>")
            return 2.5
"""


class Process:
    """A running command, what it has written, and the means to wait for a line of it."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "broker", *arguments],
            cwd=folder,
            env=environment,
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, count: int = 1, timeout: float = TIMEOUT) -> list[str]:
        """The first `count` lines that contain `text`, once they are there."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, timeout), f"no {text!r} in:\n" + "\n".join(
                self.lines
            )
            return found()[:count]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if key.startswith(("PATH", "HOME", "LANG", "COVERAGE", "COV_"))
    }
    return kept | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


@pytest.fixture
def project(tmp_path: Path, rabbitmq_url: str) -> Callable[..., Path]:
    """Write a project: its services' files and its config.toml. Its queues are removed at the end."""

    def write(files: dict[str, str] | None = None, config: str = "") -> Path:
        services = tmp_path / "services"
        if files is None:
            shutil.copytree(ROOT / "services", services, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            for name, text in files.items():
                (services / name).parent.mkdir(parents=True, exist_ok=True)
                (services / name).write_text(textwrap.dedent(text))
        (tmp_path / "config.toml").write_text(f"[broker]\nurl = {json.dumps(rabbitmq_url)}\n{textwrap.dedent(config)}")
        return tmp_path

    return write


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str], rabbitmq_url: str) -> Iterator[Callable[..., Process]]:
    """Start `ackback` with these arguments; every process is ended, and all queues are deleted, at the end of the test."""
    started: list[Process] = []

    def starter(*arguments: str, **more: str) -> Process:
        process = Process(list(arguments), tmp_path, environment | more)
        started.append(process)
        return process

    yield starter
    for process in started:
        process.end()
    delete_all_queues(tmp_path, rabbitmq_url)


@pytest.fixture
def ackback(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `ackback` to its end."""

    def runner(*arguments: str, input: str | bytes | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "broker", *arguments],
            cwd=tmp_path,
            env=environment | more,
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            timeout=TIMEOUT,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return runner


def forget_record(url: str) -> None:
    """What earlier tests did is not told of any more."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_delete(EVENTS)


def delete_all_queues(folder: Path, url: str) -> None:

    from broker.hosting import registry
    from broker.settings import Settings

    try:
        settings = Settings.load(folder / "config.toml")
        names = [one.name for one in registry.load(settings)]
    except Exception:
        names = []
        settings = Settings()
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for name in (*names, settings.callbacks.queue, "dead-letters", "ackback.undertaker", EVENTS, SCHEDULES):
            channel.queue_delete(name)
        # What one test has left there would come in the next, where its queue is gone.
        with suppress(pika.exceptions.ChannelClosedByBroker):  # until one is not there: they are declared in this order
            for name in (queue_name(settings.callbacks.queue), DUE, *map(level_name, range(LEVELS))):
                if channel.queue_declare(name, passive=True).method.message_count:
                    channel.queue_purge(name)


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Node's amqplib."""
    return npm_install(tmp_path_factory.mktemp("node"), "amqplib", "^0.10")


def npm_install(folder: Path, package: str, versions: str) -> Path:
    """A folder with a package of npm's. Where there is no Node.js, the summary says that it was not tried."""
    if not shutil.which("node") or not shutil.which("npm"):
        USED[f"Node's {package}"] = "NOT TRIED: there is no Node.js here"
        pytest.skip("there is no Node.js here")
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", f"{package}@{versions}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=180)
    version = json.loads((folder / "node_modules" / package / "package.json").read_text())["version"]
    USED[f"Node's {package}"] = version
    return folder


def wait_until(condition: Callable[[], object], timeout: float = TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def dead_letters(url: str) -> list[pika.BasicProperties]:
    """The properties of all dead letters, taken off their queue."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        found = []
        while (got := channel.basic_get("dead-letters", auto_ack=True))[0] is not None:
            found.append(got[1])
        return found
