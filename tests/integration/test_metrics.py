"""Metrics as Prometheus scrapes them, and health as orchestrators ask for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from broker import Client
from tests.conftest import USED, install_or_skip
from tests.integration.conftest import ROOT, TIMEOUT, Process, wait_until
from tests.rabbitmq import free_port

Ackback = Callable[..., subprocess.CompletedProcess[str]]
SERVICES = """
    import time
    from broker import Reject, Retry, Service
    from prometheus_client import Counter

    SOLD = Counter('shop_sold', 'Of our own.')

    class Price(Service):
        name = 'price'

        def handle(self):
            if self.request.text == 'boat':
                raise Reject('no boats')
            SOLD.inc()
            return 3

    class Stuck(Service):
        name = 'stuck'

        async def handle(self, seconds: float):
            time.sleep(seconds)
"""
SERIES = {
    "ackback_handled_total": {"service", "outcome"},
    "ackback_handling_seconds_count": {"service"},
    "ackback_waiting_seconds_count": {"service"},
    "ackback_running": {"service"},
    "ackback_published_total": {"result"},
    "ackback_connected": set(),
    "ackback_dead_letters_total": {"service", "reason"},
}


@pytest.fixture
def port(project: Callable[..., Path]) -> int:
    found = free_port()
    project({"price.py": SERVICES}, f"[metrics]\nport = {found}\n")
    return found


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def value(port: int, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", fetch(port, "/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_sum_of_two_workers(port: int, start: Callable[..., Process], rabbitmq_url: str) -> None:
    daemon = start("run", "--workers", "2")
    daemon.wait_for("ready: ", 2)
    with Client(rabbitmq_url) as client:
        client.invoke_many("price", ["tea"] * 50 + ["boat"] * 7)
    wait_until(lambda: value(port, 'ackback_handled_total{outcome="rejected",service="price"}') == 7)
    wait_until(lambda: value(port, 'ackback_handled_total{outcome="ok",service="price"}') == 50)
    assert value(port, 'ackback_dead_letters_total{reason="rejected",service="price"}') == 7
    assert value(port, 'ackback_handling_seconds_count{service="price"}') == 57
    assert value(port, "shop_sold_total") == 50
    wait_until(lambda: value(port, "ackback_connected") == 2)
    text = fetch(port, "/metrics")[1]
    for series, labels in SERIES.items():
        (first, *_) = [line for line in text.splitlines() if re.match(rf"{series}[ {{]", line)]
        assert set(re.findall(r"(\w+)=", first)) == labels
    assert fetch(port, "/")[0] == 404


def test_a_worker_that_dies_is_missed_until_there_is_another(port: int, start: Callable[..., Process]) -> None:
    daemon = start("run", "--workers", "2")
    daemon.wait_for("ready: ", 2)
    wait_until(lambda: fetch(port, "/readyz") == (200, "ok\n"))
    pid = int(daemon.wait_for("ready: ")[0].rpartition("pid ")[2])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fetch(port, "/readyz") == (503, "1 of 2 workers consume their queues\n"))
    assert fetch(port, "/healthz") == (200, "ok\n")
    daemon.wait_for("ready: ", 3)
    wait_until(lambda: fetch(port, "/readyz") == (200, "ok\n"))


def test_health_on_the_command_line(port: int, start: Callable[..., Process], ackback: Ackback, tmp_path: Path) -> None:
    done = ackback("health")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the daemon does not answer at 127.0.0.1:{port}: " in done.stderr
    daemon = start("run")
    daemon.wait_for("ready: ")
    wait_until(lambda: (ackback("health").returncode, ackback("health").stdout) == (0, "ok\n"))
    taken = ackback("run")
    assert taken.returncode == 2
    assert taken.stderr == f"ackback: [metrics] port: 127.0.0.1:{port} cannot be listened on: Address already in use\n"
    wrong = ackback("run", ACKBACK_METRICS__PORT="99999")
    assert wrong.returncode == 2
    assert "metrics.port" in wrong.stderr
    config = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(config.replace(f"port = {port}", ""))
    done = ackback("health")
    assert (done.returncode, done.stderr) == (
        2,
        "ackback: [metrics] port is not set: without it a daemon does not say how it is\n",
    )


def test_a_daemon_without_its_broker_lives_and_is_not_ready(
    port: int, start: Callable[..., Process], ackback: Ackback
) -> None:
    url = f"amqp://127.0.0.1:{free_port()}/"
    daemon = start("run", ACKBACK_BROKER__URL=url)
    daemon.wait_for("trying again until it works")
    wait_until(lambda: fetch(port, "/healthz") == (200, "ok\n"))
    assert fetch(port, "/readyz") == (503, "0 of 1 workers consume their queues\n")
    done = ackback("health")
    assert (done.returncode, done.stderr) == (1, "ackback: 0 of 1 workers consume their queues\n")
    assert ackback("health", "--live").returncode == 0


def test_a_daemon_whose_loop_is_stuck_is_not_healthy(
    port: int, tmp_path: Path, environment: dict[str, str], rabbitmq_url: str
) -> None:
    program = "from broker.process import metrics_server; metrics_server.STUCK_AFTER = 2.0; from broker.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", program, "run"], cwd=tmp_path, env=environment) as daemon:
        try:
            wait_until(lambda: _answers(port, "/readyz") == 200)
            with Client(rabbitmq_url) as client:
                client.invoke_async("stuck", 6)
                wait_until(lambda: _answers(port, "/healthz") == 503)
                assert "its event loop has not turned for" in fetch(port, "/healthz")[1]
                wait_until(lambda: _answers(port, "/healthz") == 200)
        finally:
            daemon.kill()


def _answers(port: int, path: str) -> int:
    try:
        return fetch(port, path)[0]
    except OSError:
        return 0


@pytest.fixture(scope="session")
def prometheus_is_there() -> None:
    """`prometheus` and `promtool`. Where they cannot be had, the summary says that they were not tried."""
    if not shutil.which("prometheus"):
        install_or_skip("Prometheus", "prometheus", "install Prometheus (Debian: prometheus)")
    version = subprocess.run(["prometheus", "--version"], capture_output=True, text=True)
    USED["Prometheus"] = (version.stdout + version.stderr).split()[2]


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """A Prometheus that scrapes; its URL."""
    scrape = {"job_name": "ackback", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    configuration = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.usefixtures("prometheus_is_there")
def test_the_alerts_and_the_configuration_are_good() -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", str(ROOT / "compose" / "observe" / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "5 rules found" in checked.stdout
    (documented,) = re.findall(r"```yaml\n(groups:.*?)```", (ROOT / "docs" / "running.md").read_text(), re.DOTALL)
    assert documented == (ROOT / "compose" / "observe" / "alerts.yml").read_text()


@pytest.mark.usefixtures("prometheus_is_there")
def test_a_real_prometheus(port: int, start: Callable[..., Process], rabbitmq_url: str, tmp_path: Path) -> None:
    daemon = start("run", "--workers", "2")
    daemon.wait_for("ready: ", 2)
    (tmp_path / "prometheus").mkdir()
    with Client(rabbitmq_url) as client, prometheus(tmp_path / "prometheus", port) as url:
        client.invoke_many("price", ["tea"] * 20 + ["boat"] * 3)

        def result(query: str) -> list[dict[str, Any]]:
            with suppress(OSError), urllib.request.urlopen(f"{url}/api/v1/query?query={query}", timeout=5) as answer:
                return list(json.loads(answer.read())["data"]["result"])
            return []

        wait_until(lambda: [one["value"][1] for one in result("up")] == ["1"], 2 * TIMEOUT)
        wait_until(lambda: [one["value"][1] for one in result("sum(ackback_handled_total)")] == ["23"], 2 * TIMEOUT)
        for series, labels in SERIES.items():
            assert labels <= set(result(series)[0]["metric"]), series
        text = fetch(port, "/metrics")[1]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
