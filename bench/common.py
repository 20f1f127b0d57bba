"""What all measurements share: a RabbitMQ with nothing in between, clean queues, processes that surely end, tables."""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pika

from tests.rabbitmq import IMAGE, SERVER, docker_has_image, free_port, install, private_node, wait_for_port

# Seconds that a run may take before it counts as stuck.
PATIENCE = 300
LISTENING = "0A"  # https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html


@contextmanager
def rabbitmq_for_figures() -> Iterator[tuple[str, str]]:
    """The URL of a RabbitMQ on this machine, and its name and version.

    The first that works of: `AMQP_URL`; a container on the host's network, as a published port goes through a proxy that costs
    as much as a client; a private node of Debian's package.
    """
    if url := os.environ.get("AMQP_URL"):
        yield url, version(url)
    elif docker_has_image():
        with host_container() as url:
            yield url, version(url)
    else:
        if not SERVER.exists():
            install()
        with private_node() as (url, _):
            yield url, version(url)


@contextmanager
def host_container() -> Iterator[str]:
    import docker

    port, management, prometheus, distribution = (free_port() for _ in range(4))
    name = f"bench{port}@localhost"
    listeners = (
        f'-setcookie cookie -rabbitmq_management listener [{{port,{management}}},{{ip,"127.0.0.1"}}] '
        f"-rabbitmq_prometheus tcp_config [{{port,{prometheus}}}]"
    )
    environment = {
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": listeners,
    }
    client = docker.from_env()
    container = client.containers.run(IMAGE, detach=True, network_mode="host", environment=environment)
    try:
        wait_for_port(port)
        yield f"amqp://guest:guest@127.0.0.1:{port}/"
    finally:
        container.remove(force=True, v=True)
        client.close()


def version(url: str) -> str:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        properties = connection._impl.server_properties
        return f"RabbitMQ {properties['version']}"


def delete_queues(url: str, *queues: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for queue in queues:
            channel.queue_delete(queue)


def declare_quorum_queue(url: str, queue: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})


def wait_for_consumers(url: str, *queues: str, count: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        while time.monotonic() < deadline:
            channel = connection.channel()
            try:
                if all(channel.queue_declare(queue, passive=True).method.consumer_count >= count for queue in queues):
                    return
                channel.close()
            except pika.exceptions.ChannelClosedByBroker:
                pass
            time.sleep(0.02)
    raise RuntimeError(f"nobody consumes {', '.join(queues)}")


@contextmanager
def process(*command: str, root: Path = ROOT, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with a checkout, this one by default, on its path; it and its children are gone at the end, or when patience is."""
    environment = os.environ | variables | {"PYTHONPATH": str(root)}
    child = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=root,
        start_new_session=True,
    )
    end = threading.Timer(PATIENCE, os.killpg, (child.pid, signal.SIGKILL))
    end.start()
    try:
        yield child
    finally:
        end.cancel()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout:
            child.stdout.close()


def told(child: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of JSON that a process prints."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise RuntimeError(f"{child.args} ended and left work undone")  # type: ignore[str-bytes-safe]


def cpu_seconds(*pids: int) -> float:
    """User and system time of processes, in seconds."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def bytes_written(*pids: int) -> int:
    """What processes have had written to disks."""
    return sum(int(Path(f"/proc/{pid}/io").read_text().partition("\nwrite_bytes: ")[2].split()[0]) for pid in pids)


def node_process(url: str) -> int | None:
    """The process ID of the RabbitMQ node at `url`; None if it cannot be seen from here: on another machine, or behind a proxy."""
    port = pika.URLParameters(url).port
    inodes = {
        f"socket:[{fields[9]}]"
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if (fields := line.split())[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port
    }
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.joinpath("comm").read_text().strip() == "beam.smp" and inodes & {
                str(link.readlink()) for link in process.joinpath("fd").iterdir()
            }:
                return int(process.name)
    return None


def resident(pid: int, field: str = "VmRSS") -> float:
    """MiB; `VmHWM` for the most there ever was."""
    return int(Path(f"/proc/{pid}/status").read_text().partition(f"{field}:")[2].split()[0]) / 1024


def machine() -> str:
    cpu = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0].lstrip("\t :")
    return f"{os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"


def table(rows: Mapping[str, Sequence[float]], base: str, unit: str, digits: int = 0) -> str:
    """Medians with spread, and the ratio to `base`, as a table in Markdown."""
    middle = {name: statistics.median(figures) for name, figures in rows.items()}
    lines = [f"| | median {unit} | lowest | highest | to {base} |", "|---|---:|---:|---:|---:|"]
    for name, figures in rows.items():
        low, high, ratio = min(figures), max(figures), middle[name] / middle[base]
        lines.append(f"| {name} | {middle[name]:,.{digits}f} | {low:,.{digits}f} | {high:,.{digits}f} | {ratio:.2f} |")
    return "\n".join(lines)
