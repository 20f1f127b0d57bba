"""Where a scenario plays: daemons that are started again when they die, clients that invoke, and the account at the end."""

from __future__ import annotations

import json
import math
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pika

from broker.protocol.events import EVENTS
from tests.faults.ledger import DEAD, RUN, VARIABLE, Account, Ledger, number_of

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = ("client", "async", "pika")
NO_PROGRESS = 60.0
RESTART_AFTER = 0.3


class Stage:
    """One scenario's files, processes and numbers. `url` is the broker's, `through` what the daemons use."""

    def __init__(self, urls: list[str], transport: str, rng: random.Random, through: list[str] | None = None) -> None:
        self.urls = urls
        self.rng = rng
        self.run = f"run.{secrets.token_hex(4)}"
        self.faults = 0
        self.patience = NO_PROGRESS
        self.seconds = 0.0
        self.destroyed = 0
        self.garbage = 0
        self.daemons: list[DaemonProcess] = []
        self._loads: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._numbers = 0
        self._rate = 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="ackback-faults-")
        self.path = Path(self._folder.name)
        self._configure(through or urls, transport)
        self.ledger = Ledger(self.path / "ledger")
        # Most of these are killed, and tell nothing of what they have covered.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACKBACK_", "COVERAGE_"))}
        self.environment = inherited | {
            VARIABLE: str(self.path / "ledger"),
            RUN: self.run,
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
        }

    def _configure(self, urls: list[str], transport: str) -> None:
        (self.path / "config.toml").write_text(
            f"[broker]\nurl = {json.dumps(urls)}\ntransport = '{transport}'\n"
            "[services]\npaths = ['tests.faults.services']\n[worker]\ngrace = 10.0\n"
            f"[store]\nurl = 'sqlite://{self.path}/outcomes.db'\n"
        )

    def daemon(self, *arguments: str, again: bool = True) -> DaemonProcess:
        """A daemon, ready; started again whenever it dies, as systemd does it, until the end of the scenario."""
        daemon = DaemonProcess(self, arguments, again=again)
        self.daemons.append(daemon)
        daemon.wait_ready()
        return daemon

    def load(self, count: int, rate: float, jobs: str = "-", kinds: tuple[str, ...] = KINDS) -> None:
        """Have clients of each kind invoke `count` numbers in all, so many a second."""
        self._rate = rate
        share = count // len(kinds)
        for kind in kinds:
            arguments = (kind, ",".join(self.urls[:1]), self._numbers, share, rate / len(kinds), jobs)
            command = [sys.executable, "-m", "tests.faults.load", *map(str, arguments)]
            with (self.path / f"{kind}.log").open("a") as log:
                self._loads.append(subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=log, stderr=log))
            self._numbers += share

    def serve(self, module: str, *arguments: str) -> None:
        """Start a server that knows nothing of ackback; the one that was started before is killed."""
        self._end_server()
        command = [sys.executable, "-m", module, *arguments]
        with (self.path / "server.log").open("a") as log:
            self._server = subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=log, stderr=log)

    def _end_server(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def kill_a_load(self) -> None:
        load = self._loads.pop()
        load.kill()
        load.wait()

    def loading(self) -> bool:
        codes = [load.poll() for load in self._loads]
        assert not any(codes), "a client failed:\n" + "\n".join(
            (self.path / f"{kind}.log").read_text()[-2000:] for kind in KINDS
        )
        return None in codes

    def break_things(self, times: int, fault: Callable[[], None], pause: tuple[float, float] = (0.3, 1.0)) -> None:
        """Do it so often, at random moments while the clients are busy."""
        for _ in range(times):
            time.sleep(self.rng.uniform(*pause))
            fault()
            self.faults += 1

    def settle(self) -> Account:
        """Wait until every accepted number has an outcome, or nothing has changed for `patience` seconds; return the account.

        `seconds` is how long after this call the last outcome came: it is made when the last fault is over.
        """
        begun = changed = time.monotonic()
        outcomes, last = 0, ""
        while True:
            self._read_dead_letters()
            account = self.ledger.account()
            if (now := len(account.ok) + len(account.error) + len(account.dead)) != outcomes:
                outcomes, self.seconds = now, time.monotonic() - begun
            accounted = not account.lost and len(account.garbage) >= self.garbage
            if not self.loading() and accounted and self._queues_are_empty():
                self._read_dead_letters()
                return self.ledger.account()
            if (state := str((len(account.accepted), outcomes, account.garbage))) != last:
                changed, last = time.monotonic(), state
            if time.monotonic() - changed > self.patience:
                return account
            time.sleep(0.2)

    def until(self, condition: Callable[[Account], object]) -> None:
        deadline = time.monotonic() + NO_PROGRESS
        while not condition(self.ledger.account()):
            assert time.monotonic() < deadline, (
                f"it did not come true: {self.row(self.ledger.account())}\n{self.logs()}"
            )
            time.sleep(0.1)

    def _connect(self) -> pika.BlockingConnection:
        for url in self.urls:
            with suppress(pika.exceptions.AMQPError, OSError):
                return pika.BlockingConnection(pika.URLParameters(url))
        raise OSError("no node answers")

    def _read_dead_letters(self) -> None:
        with suppress(pika.exceptions.AMQPError, OSError), self._connect() as connection:
            channel = connection.channel()
            while (got := channel.basic_get("dead-letters"))[0] is not None:
                method, properties, body = got
                self.ledger.note_garbage(body)
                self.ledger.note(DEAD, number_of(properties.correlation_id or "", self.run))
                channel.basic_ack(method.delivery_tag)

    def depth(self, queue: str) -> int:
        with self._connect() as connection:
            count: int = connection.channel().queue_declare(queue, passive=True).method.message_count
            return count

    def _queues_are_empty(self) -> bool:
        queues = (
            "faults.work",
            "faults.work-in-thread",
            "faults.once",
            "faults.told",
            "callbacks",
            "ackback.undertaker",
            "ackback.due",
            "ackback.quarantine.callbacks",
        )
        with suppress(pika.exceptions.AMQPError, OSError):
            return not any(self.depth(queue) for queue in queues)
        return False

    def delete_queue(self, name: str) -> None:
        """Delete a queue, and count what may have gone with it: what RabbitMQ says, which it counts before it deletes, and what can have
        come between."""
        with suppress(pika.exceptions.ChannelClosedByBroker), self._connect() as connection:
            channel = connection.channel()
            begun = time.monotonic()
            counted = channel.queue_delete(name).method.message_count
            self.destroyed += counted + math.ceil((time.monotonic() - begun) * self._rate)

    def delete_record(self) -> None:
        """Delete the flight recorder's stream. Nothing of an invocation goes with it."""
        with self._connect() as connection:
            connection.channel().queue_delete(EVENTS)

    def refuse_to_record(self) -> None:
        """Have a queue in the stream's place that takes no messages."""
        arguments = {"x-queue-type": "quorum", "x-max-length": 0, "x-overflow": "reject-publish"}
        with self._connect() as connection:
            connection.channel().queue_declare(EVENTS, durable=True, arguments=arguments)

    def purge(self) -> None:
        with suppress(pika.exceptions.AMQPError, OSError), self._connect() as connection:
            for queue in (
                "faults.work",
                "faults.work-in-thread",
                "faults.once",
                "faults.legacy",
                "faults.told",
                "callbacks",
                "dead-letters",
            ):
                with suppress(pika.exceptions.ChannelClosedByBroker):
                    connection.channel().queue_purge(queue)

    def row(self, account: Account) -> dict[str, Any]:
        """What the table says of this scenario."""
        return {
            "invocations": len(account.accepted),
            "faults": self.faults,
            "ok": len(account.ok),
            "error callback": len(account.error),
            "dead letter": len(account.dead),
            "repeated": account.repeated,
            "deleted": min(len(account.lost), self.destroyed),
            "lost": max(0, len(account.lost) - self.destroyed),
            "seconds": round(self.seconds, 1),
        }

    def logs(self) -> str:
        return "\n".join(daemon.log.read_text()[-4000:] for daemon in self.daemons)

    def close(self) -> None:
        for load in self._loads:
            load.kill()
            load.wait()
        self._end_server()
        for daemon in self.daemons:
            daemon.close()
        self.ledger.close()
        self._folder.cleanup()


class DaemonProcess:
    def __init__(self, stage: Stage, arguments: tuple[str, ...], *, again: bool) -> None:
        self._stage = stage
        self._arguments = arguments
        self._ending = threading.Event()
        self.exit_codes: list[int] = []
        self.log = stage.path / f"daemon-{len(stage.daemons)}.log"
        self.process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        if again:
            self._keeper.start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "broker", "run", *self._arguments]
        with self.log.open("a") as log:
            return subprocess.Popen(
                command, cwd=self._stage.path, env=self._stage.environment, stdout=log, stderr=log, process_group=0
            )

    def _keep(self) -> None:
        while True:
            self.exit_codes.append(self.process.wait())
            if self._ending.wait(RESTART_AFTER):
                return
            self.process = self._start()

    def wait_ready(self, times: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.log.read_text().count("ready: ") < times:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def resident(self) -> int:
        """Bytes of memory that it has now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        self._ending.set()
        deadline = time.monotonic() + 60
        while self.process.poll() is None or self._keeper.is_alive():
            self.process.send_signal(signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(12)
            if self._keeper.is_alive():
                self._keeper.join(1)
