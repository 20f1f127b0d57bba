"""Every store, as a fixture: `store_url` is the URL of each in turn."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rabbitmq import free_port, install


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of the tests' own, from Debian's package."""
    program = installed("usr/bin/redis-server", "redis-server") / "redis-server"
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of the tests' own, from Debian's package."""
    programs = installed("usr/lib/postgresql/*/bin/initdb", "postgresql")
    folder = tmp_path_factory.mktemp("postgresql")
    # It refuses to run as root.
    as_user: dict[str, Any] = {"user": "postgres", "cwd": "/"} if os.geteuid() == 0 else {}
    if as_user:
        for parent in (folder, *folder.parents):
            if parent.owner() == "root" and parent.name.startswith(("pytest-", "popen-", "postgresql")):
                parent.chmod(0o755)
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "ackback", "-A", "trust", "-N"]
    subprocess.run(initdb, check=True, capture_output=True, **as_user)
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **as_user)
    while subprocess.run(
        [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)], capture_output=True
    ).returncode:
        assert process.poll() is None
    yield f"postgresql://ackback@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait()


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
