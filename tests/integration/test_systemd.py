"""What systemd hears, on a socket of the test's own."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import TIMEOUT, Process
from tests.rabbitmq import free_port

SERVICE = """
    from broker import Service

    class Quick(Service):
        name = 'quick'

        def handle(self):
            pass
"""


class Listener:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(TIMEOUT)
        self.heard: list[str] = []

    def hear_until(self, line: str) -> list[str]:
        """All lines up to this one, which is left away."""
        before = len(self.heard)
        while line not in self.heard[before:]:
            self.heard += self.socket.recv(4096).decode().splitlines()
        return self.heard[before : self.heard.index(line, before)]


@pytest.fixture(params=["a file", "an abstract name"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Listener, str]]:
    name = str(tmp_path / "notify")[-90:]
    path, address = (name, name) if request.param == "a file" else ("\0" + name, "@" + name)
    listening = Listener(path)
    yield listening, address
    listening.socket.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ready_alive_and_stopping(
    listener: tuple[Listener, str], workers: str, project: Callable[..., Path], start: Callable[..., Process]
) -> None:
    project({"quick.py": SERVICE})
    systemd, address = listener
    daemon = start("run", "--workers", workers, NOTIFY_SOCKET=address, WATCHDOG_USEC="400000")
    before = systemd.hear_until("READY=1")
    assert set(before) <= {"EXTEND_TIMEOUT_USEC=30000000", "STATUS=waiting for RabbitMQ"}
    daemon.wait_for("ready: ", int(workers))
    for _ in range(3):
        assert not [line for line in systemd.hear_until("WATCHDOG=1") if line.startswith(("READY", "STOPPING"))]
    daemon.signal(signal.SIGTERM)
    systemd.hear_until("STOPPING=1")
    assert daemon.exit_code() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_rabbitmq_it_asks_for_more_time(
    tmp_path: Path, workers: str, project: Callable[..., Path], start: Callable[..., Process]
) -> None:
    project({"quick.py": SERVICE})
    systemd = Listener(str(tmp_path / "n"))
    start(
        "run",
        "--workers",
        workers,
        NOTIFY_SOCKET=str(tmp_path / "n"),
        ACKBACK_BROKER__URL=f"amqp://127.0.0.1:{free_port()}/",
    )
    assert systemd.hear_until("STATUS=waiting for RabbitMQ") == ["EXTEND_TIMEOUT_USEC=30000000"]
    systemd.socket.close()
