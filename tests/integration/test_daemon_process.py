"""`ackback run` as a process: signals, workers, reload, a broker that comes and goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest

from broker import Client
from broker.protocol.quarantine import QUARANTINE, queue_name
from tests.integration.conftest import ROOT, Process, dead_letters, wait_until
from tests.rabbitmq import free_port

Project = Callable[..., Path]
Start = Callable[..., Process]

SLOW = """
    import os, time
    from broker import Service

    class Slow(Service):
        name = 'slow'
        concurrency = 3

        def handle(self, seconds: float) -> int:
            self.logger.info('begin')
            time.sleep(seconds)
            self.logger.info('end')
            return os.getpid()

    class Die(Service):
        name = 'die'

        def handle(self):
            os._exit(7)
"""

POISON = """
    import asyncio, os
    from broker import Service

    class Careful(Service):
        name = 'careful'
        concurrency = 20

        async def handle(self, deadly: bool) -> str:
            await asyncio.sleep(0.05)
            if deadly:
                os._exit(11)
            return 'done'

    class Told(Service):
        name = 'told'

        async def handle(self):
            self.logger.info('%s|%s|', self.cid, self.request.payload)

        async def handle_error(self, error):
            self.logger.info('%s|%s|', self.cid, error.title)
"""


def test_the_seeds_examples_run_unchanged_under_zatos_import_path(
    project: Project, start: Start, rabbitmq_url: str
) -> None:
    seeds = ("my_api", "by_convention", "fire_and_forget")
    files = {f"{name}.py": (ROOT / "services" / f"{name}.py").read_text() for name in seeds}
    files = {
        name: text.replace("from broker import Service", "from zato.server.service import Service")
        for name, text in files.items()
    }
    for name in ("pings.py", "helpers.py"):
        files[name] = (ROOT / "services" / name).read_text()
    project(files)
    daemon = start("run")
    ready = daemon.wait_for("ready: ")[0]
    assert "my-api.my-service" in ready
    with Client(rabbitmq_url) as client:
        for name in seeds:
            client.invoke_async(f"{name.replace('_', '-')}.my-service")
    daemon.wait_for("my-api.my-service: I received a CID '")
    daemon.wait_for('my.callback: I received \'{"pong":"zato"}\'')
    daemon.wait_for('by-convention.my-service-async-callback: I received \'{"pong":"zato"}\'')
    daemon.wait_for("zato.helpers.input-logger: Received 'Hello from async!'")
    cid = daemon.wait_for("my-api.my-service: I received a CID '")[0].split("'")[1]
    assert daemon.wait_for("my.callback: I received")[0].endswith(f"(CID {cid})")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_drains_and_exits_0(project: Project, start: Start, rabbitmq_url: str, workers: str) -> None:
    project({"slow.py": SLOW})
    daemon = start("run", "--workers", workers)
    daemon.wait_for("ready: ", int(workers))
    with Client(rabbitmq_url) as client:
        client.invoke_many("slow", [0.5] * 3)
        daemon.wait_for("begin", 3)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_code() == 0
        ends = [line for line in daemon.lines if "slow: end" in line]
        assert len(ends) == 3
        assert len([line for line in daemon.lines if "stopped: everything finished" in line]) == int(workers)


def test_what_outlasts_the_grace_goes_back_and_the_exit_code_is_0(
    project: Project, start: Start, rabbitmq_url: str
) -> None:
    project({"slow.py": SLOW}, "[worker]\ngrace = 0.2")
    daemon = start("run")
    daemon.wait_for("ready: ")
    with Client(rabbitmq_url) as client:
        client.invoke_async("slow", 20)
        daemon.wait_for("begin")
        daemon.signal(signal.SIGINT)
        daemon.wait_for("stopped: 1 not finished in time went back to their queues")
        assert daemon.exit_code() == 0
        second = start("run")
        second.wait_for("begin")


def test_a_second_signal_stops_at_once(project: Project, start: Start, rabbitmq_url: str) -> None:
    project({"slow.py": SLOW})
    daemon = start("run")
    daemon.wait_for("ready: ")
    with Client(rabbitmq_url) as client:
        client.invoke_async("slow", 20)
    daemon.wait_for("begin")
    daemon.signal(signal.SIGTERM)
    daemon.wait_for("draining")
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 1


def test_workers_share_the_work_and_one_that_dies_is_replaced(
    project: Project, start: Start, rabbitmq_url: str
) -> None:
    project({"slow.py": SLOW})
    daemon = start("run", "--workers", "2")
    pids = {int(line.rpartition("pid ")[2]) for line in daemon.wait_for("ready: ", 2)}
    assert len(pids) == 2
    with Client(rabbitmq_url) as client:
        calls = [threading.Thread(target=lambda: seen.append(client.invoke("slow", 0.3))) for _ in range(6)]
        seen: list[int] = []
        for one in calls:
            one.start()
        for one in calls:
            one.join()
        assert set(seen) == pids
    victim = pids.pop()
    os.kill(victim, signal.SIGKILL)
    daemon.wait_for(f"worker {victim} died (signal SIGKILL); starting another in")
    daemon.wait_for("ready: ", 3)
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0


def test_workers_that_die_before_they_are_up_end_the_parent(project: Project, start: Start) -> None:
    project({"dies.py": "import os, sys\nif '--worker' in sys.argv: os._exit(7)"})
    daemon = start("run", "--workers", "2")
    assert daemon.wait_for("the 5th in a row: giving up", timeout=60)
    assert daemon.exit_code() == 1


@pytest.mark.parametrize("transport", ["lane", "aio-pika"])
def test_a_message_that_kills_its_process_becomes_a_dead_letter_and_takes_no_other_with_it(
    project: Project, start: Start, rabbitmq_url: str, transport: str
) -> None:
    project({"poison.py": POISON}, config=f"transport = '{transport}'")
    daemon = start("run", "--workers", "2")
    daemon.wait_for("ready: ", 2)
    with Client(rabbitmq_url) as client:
        cids = client.invoke_many("careful", (number in (7, 8, 60) for number in range(100)), callback="told")

    def heard() -> set[tuple[str, ...]]:
        return {tuple(line.partition(" told: ")[2].split("|")[:2]) for line in list(daemon.lines) if " told: " in line}

    wait_until(lambda: len(heard()) >= 100, timeout=120)
    killers = {cids[number] for number in (7, 8, 60)}
    assert heard() == {(cid, "Delivery limit" if cid in killers else "done") for cid in cids}
    buried = {one.correlation_id: one.headers for one in dead_letters(rabbitmq_url)}
    assert set(buried) == killers
    for headers in buried.values():
        assert (headers["dead-reason"], headers["dead-service"]) == ("delivery-limit", "careful")
        assert headers["dead-attempts"] == 3
        assert "quarantine" not in headers
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0


def test_workers_of_a_parent_that_was_killed_drain_by_themselves(project: Project, start: Start) -> None:
    project({"slow.py": SLOW})
    daemon = start("run", "--workers", "2")
    pids = {int(line.rpartition("pid ")[2]) for line in daemon.wait_for("ready: ", 2)}
    daemon.signal(signal.SIGKILL)
    daemon.wait_for("stopped: everything finished", 2)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_worker_that_cannot_start_ends_the_parent_with_its_reason(project: Project, start: Start) -> None:
    project({"bad.py": "x = 1 / 0"})
    daemon = start("run", "--workers", "2")
    assert daemon.exit_code() == 1
    assert "ZeroDivisionError" in daemon.wait_for("ackback: a services module cannot be imported")[0]
    daemon.wait_for("a worker cannot start (see above); stopping")


def test_reload_restarts_when_a_file_changes(project: Project, start: Start, rabbitmq_url: str) -> None:
    version = "from broker import Service\nclass V(Service):\n  name = 'version'\n  def handle(self): return {}"
    folder = project({"v.py": version.format(1)})
    daemon = start("run", "--reload")
    daemon.wait_for("ready: ")
    with Client(rabbitmq_url) as client:
        assert client.invoke("version") == 1
        (folder / "services" / "v.py").write_text(version.format(2))
        daemon.wait_for("files have changed: restarting")
        daemon.wait_for("ready: ", 2)
        assert client.invoke("version") == 2
        # A mistake is told and mended without starting anything by hand.
        (folder / "services" / "v.py").write_text("def broken(:")
        daemon.wait_for("SyntaxError")
        daemon.wait_for("waiting for a file to change")
        (folder / "services" / "v.py").write_text(version.format(3))
        daemon.wait_for("ready: ", 3)
        assert client.invoke("version") == 3
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0


def test_json_logs_are_one_object_a_line(project: Project, start: Start, rabbitmq_url: str) -> None:
    project({"slow.py": SLOW}, '[log]\nformat = "json"')
    daemon = start("run")
    daemon.wait_for("ready: ")
    with Client(rabbitmq_url) as client:
        client.invoke("slow", 0)
        with pytest.raises(Exception, match="Invalid input"):
            client.invoke("slow", "x\ny")
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0
    records = [json.loads(line) for line in daemon.lines]
    assert {"begin", "end"} <= {
        one["message"] for one in records if one.get("service") == "slow" and len(one["cid"]) == 32
    }


def test_a_broker_that_is_not_there_is_waited_for(start: Start, project: Project, rabbitmq_url: str) -> None:
    folder = project({"slow.py": SLOW})
    port = free_port()
    (folder / "config.toml").write_text(f"[broker]\nurl = 'amqp://guest:hunter2@127.0.0.1:{port}/'")
    daemon = start("run")
    told = daemon.wait_for("the connection was refused")[0]
    assert f"RabbitMQ at 127.0.0.1:{port} is not there" in told
    assert "trying again until it works" in told
    # A proxy in its place: it comes up, goes down, and comes up again.
    broker = urlsplit(rabbitmq_url)
    with Forwarder(port, (broker.hostname, broker.port)) as forwarder:
        told = daemon.wait_for("refuses user 'guest'")[0]
        assert "the name or the password is wrong" in told
        forwarder.stop()
        daemon.wait_for("the connection was refused", 2)
    assert "hunter2" not in "\n".join(daemon.lines)
    assert (
        len([line for line in daemon.lines if "was refused" in line]) <= 3
    )  # each state is said once, not at every try
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_code() == 0


def test_a_broker_that_restarts_loses_nothing(start: Start, project: Project, rabbitmq_url: str) -> None:
    folder = project({"slow.py": SLOW})
    port = free_port()
    broker = urlsplit(rabbitmq_url)
    url = rabbitmq_url.replace(f":{broker.port}/", f":{port}/")
    (folder / "config.toml").write_text(f"[broker]\nurl = '{url}'")
    with Forwarder(port, (broker.hostname, broker.port)) as forwarder, Client(rabbitmq_url) as client:
        daemon = start("run")
        daemon.wait_for("ready: ")
        client.invoke_many("slow", [0.05] * 60)
        daemon.wait_for("slow: end", 5)
        forwarder.stop()
        daemon.wait_for("was lost")
        forwarder.start()
        daemon.wait_for("ready: ", 2)
        ended = lambda: {line.rpartition("CID ")[2] for line in daemon.lines if "slow: end" in line}  # noqa: E731
        wait_until(lambda: len(ended()) == 60)
    (folder / "config.toml").write_text(f"[broker]\nurl = {json.dumps(rabbitmq_url)}")


def test_lost_connections_do_not_make_a_message_in_quarantine_a_culprit(
    start: Start, project: Project, rabbitmq_url: str
) -> None:
    folder = project({"slow.py": SLOW})
    port = free_port()
    broker = urlsplit(rabbitmq_url)
    (folder / "config.toml").write_text(f"[broker]\nurl = '{rabbitmq_url.replace(f':{broker.port}/', f':{port}/')}'")
    properties = pika.BasicProperties(
        correlation_id="innocent",
        content_type="application/json",
        headers={QUARANTINE: {"service": "slow", "deliveries": 1}},
    )
    with Forwarder(port, (broker.hostname, broker.port)) as forwarder:
        daemon = start("run")
        daemon.wait_for("ready: ")
        with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
            connection.channel().basic_publish("", queue_name("callbacks"), b"1", properties)
        for times in (1, 2):
            daemon.wait_for("slow: begin", times)
            forwarder.stop()
            forwarder.start()
        daemon.wait_for("slow: begin", 3)
        daemon.wait_for("slow: end", 3)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_code() == 0
    assert dead_letters(rabbitmq_url) == []
    (folder / "config.toml").write_text(f"[broker]\nurl = {json.dumps(rabbitmq_url)}")


class Forwarder:
    """Passes TCP connections on, from threads of its own; `stop` cuts them all."""

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self._port, self._target = port, target
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Forwarder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        listener = self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        for one in [*self._sockets, *([self._listener] if self._listener else [])]:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
        self._sockets.clear()
        self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def test_an_installed_package_is_typed_and_light(environment: dict[str, str]) -> None:
    """Only aio-pika's world, pydantic's and typer's are imported; the transports only when they connect."""
    script = textwrap.dedent(
        """
        import sys, broker
        heavy = {"aio_pika", "aiormq", "typer", "rich", "pytest", "testcontainers", "uvloop", "watchfiles"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert (ROOT / "broker" / "py.typed").exists()


BLOCKING = """
    import asyncio, time
    from broker import Service

    class Blocking(Service):
        name = 'blocking'

        async def handle(self, seconds: float) -> str:
            time.sleep(seconds)
            return 'blocked'

    class Patient(Service):
        name = 'patient'

        async def handle(self, seconds: float) -> str:
            await asyncio.sleep(seconds)
            return 'waited'
"""


def test_who_holds_up_the_event_loop_is_named_once(project: Project, start: Start, rabbitmq_url: str) -> None:
    folder = project({"blocking.py": BLOCKING})
    daemon = start("run")
    daemon.wait_for("ready: ")
    with Client(rabbitmq_url) as client:
        assert client.invoke("patient", 1.8) == "waited"
        for _ in range(2):
            assert client.invoke("blocking", 1.8) == "blocked"
        assert client.invoke("patient", 0) == "waited"
    daemon.end()
    (warning,) = [line for line in daemon.lines if "the event loop has been held for" in line]
    place = f"{folder / 'services' / 'blocking.py'}:9, handle: `time.sleep(seconds)`"
    assert f"s by 'blocking', in {place}: nothing else is handled meanwhile" in warning
    assert "Make the handler `def`, or await what takes time" in warning
