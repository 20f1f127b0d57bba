"""RabbitMQ nodes that may be killed: in containers where a Docker engine answers, else from Debian's package. All listen on 127.0.0.1."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tests.rabbitmq import IMAGE, SERVER, docker_has_image, free_port, install, private_environment, wait_for_port

MOST_OF_A_LINE = 200
"""Characters of a line of a node's log that are shown: the state that it ended with is one line of many thousands."""


class Node(Protocol):
    name: str
    url: str

    def start(self) -> None: ...
    def kill(self) -> None:
        """End it as a power cut does."""

    def stop(self) -> None:
        """Shut it down as an administrator does."""

    def ctl(self, *arguments: str, tool: str = "rabbitmqctl") -> str: ...
    def remove(self) -> None: ...


class DockerNode:
    """`epmd` is the port of the one, in a container of its own, that the nodes of its cluster register with."""

    def __init__(self, client: Any, epmd: int, consumer_timeout: float | None = None) -> None:
        port = free_port()
        self._port = port
        self.name = f"ackback{port}@localhost"
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        environment = {
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-setcookie ackback "
                + (f"-rabbit consumer_timeout {consumer_timeout * 1000:.0f} " if consumer_timeout else "")
                + f'-rabbitmq_management listener [{{port,{free_port()}}},{{ip,"127.0.0.1"}}] '
                f'-rabbitmq_prometheus tcp_config [{{port,{free_port()}}},{{ip,"127.0.0.1"}}]'
            ),
        }
        self._container = client.containers.create(IMAGE, environment=environment, network_mode="host")

    def start(self) -> None:
        self._container.start()
        try:
            wait_for_port(self._port, self._exit_code)
        except RuntimeError as error:
            log = "\n".join(line[:MOST_OF_A_LINE] for line in self._log().splitlines())
            raise RuntimeError(f"{error}; its log ends with:\n{log[-4000:]}") from None

    def _exit_code(self) -> int | None:
        self._container.reload()
        return int(self._container.attrs["State"]["ExitCode"]) if self._container.status == "exited" else None

    def _log(self) -> str:
        # The image writes its log to a file, which is in the container when that has ended, too.
        chunks, _ = self._container.get_archive("/var/log/rabbitmq")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            files = [archive.extractfile(one) for one in archive if one.isfile()]
            return "\n".join(file.read().decode(errors="replace") for file in files if file)

    def kill(self) -> None:
        self._container.kill("SIGKILL")
        self._container.wait()

    def stop(self) -> None:
        # The command ends with the node.
        self._container.exec_run(["rabbitmqctl", "-n", self.name, "--erlang-cookie", "ackback", "stop"], detach=True)
        self._container.wait()

    def ctl(self, *arguments: str, tool: str = "rabbitmqctl") -> str:
        command = [tool, "-q", "-n", self.name, "--erlang-cookie", "ackback", *arguments]
        code, output = self._container.exec_run(command)
        assert code == 0, output.decode()
        return str(output.decode())

    def remove(self) -> None:
        self._container.remove(force=True, v=True)


class PackageNode:
    def __init__(self, consumer_timeout: float | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ackback-node-"))
        self._port = free_port()
        self._environment = private_environment(self._folder, self._port)
        if consumer_timeout:
            with (self._folder / "rabbitmq.conf").open("a") as configuration:
                configuration.write(f"consumer_timeout = {consumer_timeout * 1000:.0f}\n")
        (self._folder / ".erlang.cookie").write_text("ackback")
        (self._folder / ".erlang.cookie").chmod(0o400)
        self.name = self._environment["RABBITMQ_NODENAME"]
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "output").open("a") as log:
            self._process = subprocess.Popen(
                [str(SERVER)], env=os.environ | self._environment, stdout=log, stderr=log, process_group=0
            )
        wait_for_port(self._port, self._process.poll)

    def kill(self) -> None:
        if self._process is not None:
            # The script starts the Erlang VM as a child: the whole group is ours.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(60)
        self._process = None

    def ctl(self, *arguments: str, tool: str = "rabbitmqctl") -> str:
        command = [str(SERVER.with_name(tool)), "-q", "-n", self.name, *arguments]
        return subprocess.run(
            command, env=os.environ | self._environment, check=True, capture_output=True, text=True
        ).stdout

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def docker_nodes() -> Iterator[Callable[..., Node]]:
    """Creates nodes in containers that can find each other; they are the caller's to remove."""
    import docker

    client = docker.from_env()
    # A node would start one where all nodes of this machine register, and take it along when it is killed.
    port = free_port()
    command = ["epmd", "-port", str(port), "-address", "127.0.0.1"]
    epmd = client.containers.run(IMAGE, detach=True, entrypoint=command, network_mode="host")
    try:
        yield partial(DockerNode, client, port)
    finally:
        epmd.remove(force=True, v=True)
        client.close()


@contextmanager
def _started(create: Callable[..., Node]) -> Iterator[Node]:
    """A node that runs. One that ends before it answers gets a successor, once: somebody may have taken a port that it was to have."""
    node = create()
    try:
        try:
            node.start()
        except RuntimeError as error:
            print(f"a second node in place of one that did not start: {error}")
            node.remove()
            node = create()
            node.start()
        yield node
    finally:
        node.remove()


@contextmanager
def cluster(size: int) -> Iterator[list[Node]]:
    """So many nodes that know each other, all running."""
    nodes: list[Node] = []
    with ExitStack() as stack:
        create: Callable[..., Node] = PackageNode
        if os.environ.get("RABBITMQ_FROM") != "package" and docker_has_image():
            create = stack.enter_context(docker_nodes())
        elif not SERVER.exists():
            install()
        for _ in range(size):
            nodes.append(stack.enter_context(_started(create)))
        for node in nodes:
            node.ctl("await_startup")
        for node in nodes[1:]:
            node.ctl("stop_app")
            node.ctl("join_cluster", nodes[0].name)
            node.ctl("start_app")
        yield nodes
