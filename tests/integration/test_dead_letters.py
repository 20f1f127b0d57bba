"""`ackback dead`, as the engineer on duty types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pika
import pytest

from broker import Client
from tests.integration.conftest import Process, dead_letters, wait_until

Ackback = Callable[..., subprocess.CompletedProcess[str]]

SERVICES = """
    from broker import Reject, Service

    class Picky(Service):
        name = 'picky'

        async def handle(self, number: int) -> int:
            raise Reject(f'not {number}')

    class Flaky(Service):
        name = 'flaky'
        retry = None

        async def handle(self) -> str:
            raise OSError('no route\\x1b[2J')

    class Told(Service):
        name = 'told'

        async def handle(self):
            self.logger.info('heard %s', self.request.payload)

        async def handle_error(self, error):
            self.logger.info('failed %s', self.cid)
"""


@pytest.fixture
def dead(project: Callable[..., Path], start: Callable[..., Process], rabbitmq_url: str) -> Process:
    """A daemon whose services have failed: three times `picky`, twice `flaky`."""
    project({"services.py": SERVICES})
    daemon = start("run")
    daemon.wait_for("ready: ")
    dead_letters(rabbitmq_url)
    with Client(rabbitmq_url) as client:
        for number in range(3):
            client.invoke_async("picky", number, callback="told", cid=f"picky-{number}")
        for number in range(2):
            client.invoke_async("flaky", "x", callback="told", cid=f"flaky-{number}")
    daemon.wait_for("failed ", 5)
    return daemon


def in_the_queue(url: str) -> int:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        count: int = connection.channel().queue_declare("dead-letters", passive=True).method.message_count
        return count


def test_they_are_listed_filtered_and_shown(dead: Process, ackback: Ackback, rabbitmq_url: str) -> None:
    listed = ackback("dead", "list")
    assert (listed.returncode, listed.stderr) == (0, "5 dead letters\n")
    assert listed.stdout.splitlines()[0].split() == ["CID", "REASON", "SERVICE", "TRIED", "AGE", "ERROR"]
    assert "\x1b" not in listed.stdout
    assert "OSError: no route\\x1b[2J" in listed.stdout

    def cids(*filters: str) -> list[str]:
        done = ackback("dead", "list", "--json", *filters)
        return [json.loads(line)["cid"] for line in done.stdout.splitlines()]

    assert cids("--reason", "rejected") == ["picky-0", "picky-1", "picky-2"]
    assert cids("--service", "fl*", "--newer-than", "1h") == ["flaky-0", "flaky-1"]
    assert cids("--older-than", "1h") == []
    assert cids("picky-1", "flaky-1", "other") == ["picky-1", "flaky-1"]
    shown = ackback("dead", "show", "flaky-0").stdout
    assert "died of     error in flaky, tried 1" in shown
    assert "OSError: no route" in shown.partition("traceback")[2]
    assert "\x1b" not in shown
    assert ackback("dead", "show", "nobody").returncode == 1
    assert in_the_queue(rabbitmq_url) == 5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--reason", "eror"], "there is no reason 'eror'; there are error, rejected"),
        (["list", "--older-than", "2"], "write a number and s, m, h, d or w"),
        (["replay"], "say which"),
        (["drop"], "say which"),
        (["import", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["export", "config.toml"], "config.toml exists already"),
    ],
)
def test_mistakes_are_explained_and_change_nothing(
    dead: Process, ackback: Ackback, rabbitmq_url: str, arguments: list[str], told: str
) -> None:
    done = ackback("dead", *arguments)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert in_the_queue(rabbitmq_url) == 5


def test_replayed_they_are_handled_again_and_those_that_cannot_be_stay(
    dead: Process, project: Callable[..., Path], start: Callable[..., Process], ackback: Ackback, rabbitmq_url: str
) -> None:
    dead.signal(signal.SIGTERM)
    assert dead.exit_code() == 0
    project({"services.py": SERVICES.replace("raise OSError('no route\\x1b[2J')", "return self.cid")})
    daemon = start("run")
    daemon.wait_for("ready: ")
    assert ackback("dead", "replay", "--service", "flaky").stderr == "2 dead letters replayed\n"
    assert [line.split("heard ")[1].split()[0] for line in daemon.wait_for("heard ", 2)] == ["flaky-0", "flaky-1"]
    assert in_the_queue(rabbitmq_url) == 3
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        lost = pika.BasicProperties(correlation_id="lost", headers={"dead-service": "gone", "dead-reason": "error"})
        connection.channel().basic_publish("", "dead-letters", b"", lost)
    done = ackback("dead", "replay", "--reason", "error")
    assert done.returncode == 1
    assert "1 not replayed: " in done.stderr
    assert "'gone'" in done.stderr
    assert in_the_queue(rabbitmq_url) == 4


def test_dropping_asks_first(dead: Process, ackback: Ackback, rabbitmq_url: str) -> None:
    assert ackback("dead", "drop", "--service", "picky", input="n\n").returncode == 1
    assert in_the_queue(rabbitmq_url) == 5
    assert "Delete 3 dead letters" in ackback("dead", "drop", "--service", "picky", input="y\n").stdout
    assert in_the_queue(rabbitmq_url) == 2
    assert ackback("dead", "drop", "--all", "--yes").stderr == "2 dead letters dropped\n"


def taken(channel: pika.adapters.blocking_connection.BlockingChannel, cid: str) -> tuple[pika.BasicProperties, bytes]:
    """The dead letter of that CID; those before it, which another test's daemon may still have filed, go."""
    while True:
        _, properties, body = channel.basic_get("dead-letters", auto_ack=True)
        assert properties is not None, "it is not there"
        if properties.correlation_id == cid:
            return properties, body


def test_an_exported_file_imported_is_what_there_was(ackback: Ackback, dead: Process, rabbitmq_url: str) -> None:
    dead_letters(rabbitmq_url)
    headers = {
        "text": "ü",
        "bytes": b"\xff\x00",
        "whole": -5,
        "large": 2**62,
        "truth": True,
        "nothing": None,
        "decimal": Decimal("-1.20"),
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).replace(tzinfo=None),
        "table": {"array": [1, "two", {"three": 3}], "$bytes": "no"},
    }
    properties = pika.BasicProperties(
        content_type="application/x",
        content_encoding="utf-8",
        headers=headers,
        delivery_mode=2,
        priority=3,
        correlation_id="all",
        reply_to="callbacks",
        message_id="m",
        timestamp=1_700_000_000,
        type="t",
        app_id="a",
    )
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().basic_publish("", "dead-letters", b"\x00\xffbody", properties)
    [before] = [ackback("dead", "show", "all").stdout]
    assert ackback("dead", "export", "kept.jsonl").stderr == "1 dead letter written to kept.jsonl\n"
    assert in_the_queue(rabbitmq_url) == 1
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        first, body = taken(channel, "all")
        assert ackback("dead", "import", "kept.jsonl").stderr == "1 of 1 dead letter imported\n"
        second, again = taken(channel, "all")
    for notes in ("x-delivery-count", "x-acquired-count"):
        first.headers.pop(notes, None)
    assert (vars(second), again) == (vars(first), body)
    assert "header      whole = -5" in before


def test_a_replay_that_is_killed_loses_none(
    dead: Process, ackback: Ackback, rabbitmq_url: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Killed in the middle: each is still a dead letter or has come to its service (both, at most for the one in hand)."""
    dead_letters(rabbitmq_url)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("replayed", durable=True, arguments={"x-queue-type": "quorum"})
        for number in range(400):
            headers = {"dead-service": "replayed", "dead-reason": "error"}
            channel.basic_publish(
                "", "dead-letters", b"", pika.BasicProperties(correlation_id=str(number), headers=headers)
            )
        for _ in range(3):
            command = [sys.executable, "-m", "broker", "dead", "replay", "--all", "--rate", "200"]
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
            already = channel.queue_declare("replayed", passive=True).method.message_count
            wait_until(lambda a=already: channel.queue_declare("replayed", passive=True).method.message_count > a + 30)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        wait_until(lambda: ackback("dead", "replay", "--all").returncode == 0)
        arrived = []
        while (got := channel.basic_get("replayed", auto_ack=True))[0] is not None:
            arrived.append(got[1].correlation_id)
        channel.queue_delete("replayed")
    assert set(arrived) == {str(number) for number in range(400)}
    assert len(arrived) <= 400 + 3
