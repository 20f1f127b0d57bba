"""Where the tests get RabbitMQ from: the first way that works."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from broker.testing import rabbitmq_container

IMAGE = "rabbitmq:4-management"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_TIMEOUT = 90
# Below Linux's ip_local_port_range.
SERVERS_PORTS = range(12_000, 32_000)
WHAT_TO_DO = (
    "the tests need RabbitMQ. Any one of these will do: set AMQP_URL to the URL of a running one; start a Docker engine; "
    "install Debian's package rabbitmq-server (or run the tests as root on Debian, and it is installed for you)"
)


@dataclass(frozen=True)
class Rabbit:
    """A RabbitMQ: its URL without a virtual host, words that say where it is from, and how its command-line tools are reached: in a
    container, or with the environment of a private node; neither if it is somebody else's."""

    base_url: str
    origin: str
    vhost: str = "/"
    container: str | None = None
    environment: Mapping[str, str] | None = None

    @property
    def url(self) -> str:
        return self.at(self.vhost)

    def at(self, vhost: str) -> str:
        return self.base_url if vhost == "/" else f"{self.base_url}{vhost}"

    @property
    def is_ours(self) -> bool:
        return self.container is not None or self.environment is not None

    def with_vhost(self, vhost: str) -> Rabbit:
        """The same with a virtual host of one's own."""
        self.ctl("add_vhost", vhost)
        self.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        return replace(self, vhost=vhost)

    def ctl(self, *arguments: str) -> str:
        return self._tool("rabbitmqctl", *arguments)

    def diagnostics(self, *arguments: str) -> str:
        return self._tool("rabbitmq-diagnostics", *arguments)

    def _tool(self, program: str, *arguments: str) -> str:
        if self.container is not None:
            import docker

            client = docker.from_env()
            try:
                code, output = client.containers.get(self.container).exec_run([program, *arguments])
            finally:
                client.close()
            assert code == 0, output.decode()
            return str(output.decode())
        assert self.environment is not None
        command = [str(SERVER.with_name(program)), "-n", self.environment["RABBITMQ_NODENAME"], *arguments]
        return subprocess.run(
            command, env=os.environ | dict(self.environment), check=True, capture_output=True, text=True
        ).stdout


@contextmanager
def rabbitmq(*, ours: bool = False) -> Iterator[Rabbit]:
    """The first RabbitMQ that can be had; one that we may administrate if it has to be `ours`.

    `RABBITMQ_FROM=package` in the environment passes over Docker.
    """
    if (url := os.environ.get("AMQP_URL")) and not ours:
        yield Rabbit(url, "AMQP_URL")
    elif os.environ.get("RABBITMQ_FROM") != "package" and docker_has_image():
        with (container := rabbitmq_container(IMAGE, host="127.0.0.1")) as url:
            yield Rabbit(url, f"testcontainers, image {IMAGE}", container=container.id)
    else:
        origin = "Debian's package, installed already" if SERVER.exists() else "Debian's package, just installed"
        if not SERVER.exists():
            install()
        with private_node() as (url, environment):
            yield Rabbit(url, f"a private node from {origin}", environment=environment)


def docker_has_image() -> bool:
    """Whether a Docker engine answers and has the image, or can pull it."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=300)
        try:
            if not client.images.list(name=IMAGE):
                client.images.pull(*IMAGE.split(":"))
        finally:
            client.close()
    except DockerException:
        return False
    return True


def install(packages: str = "rabbitmq-server", what_to_do: str = WHAT_TO_DO) -> None:
    """Install Debian's packages of these names, without starting what they bring.

    Raises:
        RuntimeError: that is not possible; the message says what to do.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise RuntimeError(what_to_do)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with (Path(tempfile.gettempdir()) / "ackback-apt.lock").open("w") as lock:  # several processes test at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(packages, what_to_do, environment)


def _install(packages: str, what_to_do: str, environment: dict[str, str]) -> None:
    # The package starts a node of its own on port 5672 unless policy forbids it.
    policy = Path("/usr/sbin/policy-rc.d")
    if not policy.exists():
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        ours = True
    else:
        ours = False
    try:
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages.split()],
        ):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}\n{what_to_do}")
    finally:
        if ours:
            policy.unlink()


@contextmanager
def private_node() -> Iterator[tuple[str, dict[str, str]]]:
    """A node from the installed package, with everything it writes in a folder of its own: its URL, and the environment of its tools."""
    folder = Path(tempfile.mkdtemp(prefix="ackback-rabbitmq-"))
    port = free_port()
    environment = private_environment(folder, port)
    log = (folder / "output").open("w")
    command = [str(SERVER)]
    process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, process_group=0)
    try:
        wait_for_port(port, process.poll)
        yield f"amqp://guest:guest@127.0.0.1:{port}/", environment
    finally:
        # The script starts the Erlang VM as a child: the whole group is ours.
        os.killpg(process.pid, 9)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def private_environment(folder: Path, port: int) -> dict[str, str]:
    """The environment in which a node from the package keeps everything that it writes in a folder."""
    (folder / "enabled_plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text("loopback_users.guest = true\n")
    return {
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"ackback{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
    }


@cache
def _ports() -> Iterator[int]:
    """This process's share of them, which no other of pytest's gives away, in random order."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = SERVERS_PORTS[number::processes]
    return itertools.cycle(secrets.SystemRandom().sample(share, len(share)))


def free_port() -> int:
    """A port that nobody listens on, and that the system gives to no outgoing connection: a server that is killed gets it again."""
    while True:
        port = next(_ports())
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for_port(port: int, exit_code: Callable[[], int | None] = lambda: None) -> None:
    """Until a node answers the AMQP handshake.

    Raises:
        RuntimeError: it has an `exit_code`, or does not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if (code := exit_code()) is not None:
            raise RuntimeError(f"rabbitmq-server ended with exit code {code}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                if connection.recv(1):
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"rabbitmq-server did not answer within {START_TIMEOUT} s")
