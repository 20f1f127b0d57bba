"""The Compose files: built, brought up, used, and taken down, where there is Docker with Compose; what they have to say is checked everywhere."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker import AckbackError, Client
from broker.settings import Settings
from tests.conftest import USED
from tests.integration.conftest import ROOT, Process, wait_until
from tests.rabbitmq import IMAGE, Rabbit, free_port

PYTHON_IMAGE = "python:3.13-slim"
UP = 180.0
"""Seconds for images to be built and nodes to get healthy."""
PACE = 0.05
"""Seconds between messages: a handful, while a node stops."""


def composed(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose" / name).read_text())["services"])


@pytest.mark.parametrize("name", ["compose.yaml", "cluster.yaml"])
def test_what_the_file_says(name: str) -> None:
    nodes = [one for one in composed(name).values() if one.get("image") == IMAGE]
    assert len(nodes) == (3 if name == "cluster.yaml" else 1)
    for node in nodes:
        assert "check_port_connectivity" in node["healthcheck"]["test"]
        assert all(port.startswith("127.0.0.1:") for port in node["ports"])
        assert node["volumes"][0].endswith(":/var/lib/rabbitmq")
    for volume in (one for node in nodes for one in node["volumes"] if one.startswith("./")):
        assert (ROOT / "compose" / volume.split(":")[0]).exists()


def test_what_prometheus_and_grafana_are_told() -> None:
    """The images cannot be had everywhere: what they are given is checked."""
    for service in composed("observe.yaml").values():
        for volume in service["volumes"]:
            if volume.startswith("./"):
                assert (ROOT / "compose" / volume.split(":")[0]).exists()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    observe = ROOT / "compose" / "observe"
    port = composed("compose.yaml")["daemon"]["environment"]["ACKBACK_METRICS__PORT"]
    assert (
        str(yaml.safe_load((observe / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]["port"])
        == port
    )
    dashboard = json.loads((observe / "grafana" / "dashboards" / "ackback.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert set(re.findall(r"ackback_\w+?(?=_bucket|\W|$)", " ".join(expressions))) == {
        "ackback_handled_total",
        "ackback_handling_seconds",
        "ackback_waiting_seconds",
        "ackback_dead_letters_total",
        "ackback_running",
        "ackback_connected",
        "ackback_published_total",
    }


def test_the_health_check_works(our_rabbit: Rabbit) -> None:
    kind, program, *arguments = composed("compose.yaml")["rabbitmq"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "rabbitmq-diagnostics")
    our_rabbit.diagnostics(*arguments)


def test_a_daemon_runs_as_compose_runs_it(
    start: Callable[..., Process], project: Callable[..., Path], tmp_path: Path, rabbitmq_url: str
) -> None:
    """The image's command and environment, without the image: JSON logs, the URL from the environment, nothing written."""
    daemon = composed("compose.yaml")["daemon"]
    project()
    (tmp_path / "config.toml").unlink()
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    process = start(
        *daemon["command"],
        ACKBACK_BROKER__URL=rabbitmq_url,
        ACKBACK_LOG__FORMAT=daemon["environment"]["ACKBACK_LOG__FORMAT"],
    )
    assert process.wait_for("ready: ")[0].startswith("{")
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} == before
    (tmp_path / "config.toml").write_text(f"[broker]\nurl = '{rabbitmq_url}'")


class Stack:
    """A Compose project of its own name, with ports that nobody uses."""

    def __init__(self, file: str) -> None:
        self.ports = {
            name: free_port() for name in ("AMQP_PORT", "AMQP_PORT_1", "AMQP_PORT_2", "AMQP_PORT_3", "WEB_PORT")
        }
        self.name = f"ackback-test-{self.ports['AMQP_PORT']}"
        self._command = ("docker", "compose", "-p", self.name, "-f", str(ROOT / "compose" / file))
        ports = {name: str(port) for name, port in self.ports.items()}
        self._environment = os.environ | ports | {"MANAGEMENT_PORT": str(free_port())}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._command, *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=UP)

    def up(self) -> None:
        done = self("up", "--detach", "--no-build", "--wait")
        assert done.returncode == 0, done.stderr + self("logs").stdout[-5000:]

    def exec(self, service: str, *command: str) -> str:
        done = self("exec", "--no-TTY", service, *command)
        return done.stdout + done.stderr


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Nothing of it is left at the end. Where it cannot be had, the summary says that it was not tried."""
    file = request.param
    images = (IMAGE, PYTHON_IMAGE) if file == "compose.yaml" else (IMAGE,)
    problem = None
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        problem = "there is no `docker compose` here"
    elif missing := [image for image in images if not has_image(image)]:
        problem = f"there is no Docker engine here, or it cannot get {' and '.join(missing)}"
    USED[f"compose/{file}, up"] = f"NOT TRIED: {problem}" if problem else "tried"
    if problem:
        pytest.skip(problem)
    found = Stack(file)
    yield found
    found("down", "--volumes", "--timeout", "1")
    subprocess.run(["docker", "image", "rm", f"{found.name}-daemon"], capture_output=True)


def has_image(name: str) -> bool:
    return any(
        subprocess.run(["docker", *command, name], capture_output=True).returncode == 0
        for command in (("image", "inspect"), ("pull", "--quiet"))
    )


def page(stack: Stack, password: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", stack.ports["WEB_PORT"], timeout=20)
    credentials = base64.b64encode(f"me:{password}".encode()).decode()
    try:
        connection.request("GET", "/", headers={"Authorization": f"Basic {credentials}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("stack", ["compose.yaml"], indirect=True)
def test_the_image_is_built_and_two_daemons_answer(stack: Stack) -> None:
    file = str(ROOT / "compose" / "Dockerfile")
    command = ["docker", "build", "--network", "host", "-f", file, "-t", f"{stack.name}-daemon", str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=UP)
    assert built.returncode == 0, built.stdout + built.stderr
    stack.up()
    with Client(f"amqp://ackback:ackback@127.0.0.1:{stack.ports['AMQP_PORT']}/") as client:
        assert client.invoke("zato.ping", None, timeout=20) == {"pong": "zato"}
    assert stack.exec("daemon", "ackback", "call", "zato.ping") == '{"pong": "zato"}\n'
    assert stack.exec("daemon", "id", "-u") == "10001\n"
    assert stack.exec("daemon", "ackback", "health") == "ok\n"
    assert stack("ps", "--format", "{{.Service}} {{.Health}}").stdout.count("daemon healthy") == 2
    assert "Read-only file system" in stack.exec("daemon", "touch", "written")
    assert page(stack, "wrong")[0] == 401
    wait_until(lambda: "zato.ping" in page(stack, "ackback")[1])
    listing = ("rabbitmqctl", "-q", "list_queues", "name", "consumers")
    wait_until(lambda: "zato.ping\t2\n" in stack.exec("rabbitmq", *listing))
    stack("stop", "daemon")
    exited = stack("ps", "--all", "--format", "{{.Service}} {{.ExitCode}}").stdout
    assert exited.count("daemon 0\n") == 2, exited


@pytest.mark.parametrize("stack", ["cluster.yaml"], indirect=True)
def test_a_node_of_the_cluster_is_stopped_and_every_callback_comes(
    stack: Stack, project: Callable[..., Path], start: Callable[..., Process], rabbitmq_url: str
) -> None:
    folder = project()
    stack.up()
    ports = [stack.ports[f"AMQP_PORT_{number}"] for number in (1, 2, 3)]
    urls = [f"amqp://ackback:ackback@127.0.0.1:{port}/" for port in ports]
    (folder / "config.toml").write_text(f"[broker]\nurl = {urls}\n")
    daemons = [start("run") for _ in range(2)]
    for daemon in daemons:
        daemon.wait_for("ready: ")
    accepted: list[str] = []
    with Client(settings=Settings.load(folder / "config.toml")) as client, ThreadPoolExecutor(1) as administrator:
        stopping = administrator.submit(stack, "stop", "rabbitmq1")
        while not stopping.done() or len(accepted) < 200:
            accepted.append(invoke_until_accepted(client, f"compose-{len(accepted)}"))
        assert stopping.result().returncode == 0
    wait_until(lambda: not set(accepted) - called_back(daemons))
    for daemon in daemons:
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_code() == 0
    (folder / "config.toml").write_text(f"[broker]\nurl = '{rabbitmq_url}'")


def invoke_until_accepted(client: Client, cid: str) -> str:
    deadline = time.monotonic() + UP
    while True:
        try:
            client.invoke_async("zato.ping", callback="my.callback", cid=cid)
        except AckbackError:
            assert time.monotonic() < deadline
        else:
            time.sleep(PACE)
            return cid


def called_back(daemons: list[Process]) -> set[str]:
    lines = [line for daemon in daemons for line in daemon.lines]
    return {found[1] for line in lines if (found := re.search(r"my\.callback: I received .*\(CID (.*)\)", line))}
