"""Every store, as a fixture: `store_url` is the URL of each in turn."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.rabbitmq import free_port, install


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis of the tests' own, from Debian's package."""
    program = installed("usr/bin/redis-server", "redis-server") / "redis-server"
    port = free_port()
    folder.mkdir(exist_ok=True)
    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


class PostgresqlServer:
    """A PostgreSQL of the tests' own, from Debian's package, that may be killed. Used with `with`."""

    def __init__(self) -> None:
        self._programs = installed("usr/lib/postgresql/*/bin/initdb", "postgresql")
        self._port = free_port()
        # Not in pytest's folder: the next pytest that starts takes that away from all users but its own.
        self._folder = tempfile.TemporaryDirectory(prefix="postgresql-")
        self._data = Path(self._folder.name) / "data"
        # It refuses to run as root.
        self._as_user: dict[str, Any] = {"user": "postgres", "cwd": "/"} if os.geteuid() == 0 else {}
        if self._as_user:
            shutil.chown(self._folder.name, "postgres")
        initdb = [str(self._programs / "initdb"), "-D", str(self._data), "-U", "ackback", "-A", "trust"]
        subprocess.run(initdb, check=True, capture_output=True, **self._as_user)
        self.url = f"postgresql://ackback@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        program = str(self._programs / "postgres")
        command = [program, "-D", str(self._data), "-p", str(self._port), "-h", "127.0.0.1", "-k", ""]
        log = Path(self._folder.name) / "log"
        with log.open("w") as stderr:
            self._process = subprocess.Popen(command, stderr=stderr, **self._as_user)
        is_ready = [str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(is_ready, capture_output=True).returncode:
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut does: every process. One of a connection would keep the shared memory for a moment, in which no start works."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # from here on it starts no other
        processes = [os.pidfd_open(pid) for pid in (self._process.pid, *_children(self._process.pid))]
        for process in processes:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        for process in processes:
            select.select([process], [], [])
            os.close(process)
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    with PostgresqlServer() as server:
        yield server.url


def installed(pattern: str, package: str) -> Path:
    """The folder of a program, whose Debian package is installed if need be."""
    if not (found := sorted(Path("/").glob(pattern))):
        install(package, f"these tests need /{pattern}: install Debian's package {package}")
        found = sorted(Path("/").glob(pattern))
    return found[-1].parent


@pytest.fixture(params=["memory", "sqlite", "redis", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in ("redis", "postgresql"):
        return str(request.getfixturevalue(f"{request.param}_url"))
    return "memory" if request.param == "memory" else f"sqlite://{tmp_path}/outcomes.db"
