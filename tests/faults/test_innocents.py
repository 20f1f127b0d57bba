"""One party misbehaves, and all others are answered in time: nobody holds up anybody else."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pika
import pytest

from broker import Client
from tests.faults.nodes import Node, cluster
from tests.faults.stage import DaemonProcess, Stage
from tests.rabbitmq import free_port

FULL = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
CALLS = 40
# An innocent's slowest call is measured and shown; this is what tells late from never.
NEVER = 15.0

pytestmark = pytest.mark.xdist_group("attacks innocents")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with cluster(1) as (one,):
        yield one


@dataclass
class Party:
    """Who misbehaves, and with what."""

    node: Node
    client: Client
    channel: pika.adapters.blocking_connection.BlockingChannel

    def full_queue(self, name: str) -> str:
        self.channel.queue_declare(name, durable=True, arguments=FULL)
        return name

    def publish(self, queue: str, body: bytes, **properties: object) -> None:
        self.channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


def full_reply_queue(party: Party) -> None:
    queue = party.full_queue("full.inbox")
    for number in range(300):
        party.publish("innocent", b"%d" % number, reply_to=queue)


def slow_callbacks(party: Party) -> None:
    for _ in range(400):
        party.publish("callbacks", b"", headers={"callback": "slow.callback"})


def full_callback_queue(party: Party) -> None:
    queue = party.full_queue("full.callback")
    for _ in range(400):
        party.publish("callbacks", b"", headers={"callback": queue})


def full_due_target(party: Party) -> None:
    party.client.invoke_async("delays", party.full_queue("full.target"))


def threads(party: Party) -> None:
    for _ in range(300):
        party.publish("sleeper", b"")


def hanging_store(party: Party) -> None:
    for number in range(300):
        party.publish("hanging", b"", message_id=f"m{number}")


def killers(party: Party) -> None:
    party.client.invoke_many("killer", range(100))


def full_dead_letters(party: Party) -> None:
    party.node.ctl("set_policy", "dead", "^dead-letters$", '{"max-length": 1}', "--apply-to", "queues")
    for _ in range(300):
        party.publish("invalid", b"no number")


def expired(party: Party) -> None:
    party.channel.queue_declare(
        "nobody.home",
        durable=True,
        arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "ackback.undertaker"},
    )
    for _ in range(1000):
        party.publish("nobody.home", b"", expiration="1")


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        port = free_port()
        server.bind(("127.0.0.1", port))
        server.listen(100)
        yield port


@pytest.mark.parametrize("transport", ["lane", "aio-pika"])
@pytest.mark.parametrize(
    "misbehave",
    [
        full_reply_queue,
        slow_callbacks,
        full_callback_queue,
        full_due_target,
        threads,
        hanging_store,
        killers,
        full_dead_letters,
        expired,
    ],
)
def test_innocents_are_answered(
    misbehave: Callable[[Party], None], transport: str, node: Node, silent_server: int, tmp_path: Path
) -> None:
    stage = Stage([node.url], transport, random.Random(1))
    try:
        (stage.path / "config.toml").write_text(
            f"[broker]\nurl = '{node.url}'\ntransport = '{transport}'\n[services]\npaths = ['tests.faults.innocent_services']\n"
            f"[worker]\ngrace = 1.0\n[idempotency]\nstore = 'redis://127.0.0.1:{silent_server}/0'\n"
        )
        daemon = DaemonProcess(stage, ("--workers", "2"), again=True)
        stage.daemons.append(daemon)
        daemon.wait_ready(2)
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection, Client(node.url) as client:
            misbehave(Party(node, client, connection.channel()))
            slowest = 0.0
            for number in range(CALLS):
                began = time.monotonic()
                assert client.invoke("innocent", number, timeout=NEVER) == number
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.05)
        print(f"{misbehave.__name__} ({transport}): an innocent's slowest call {slowest:.2f} s")
    finally:
        stage.close()
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
            for queue in (
                "full.inbox",
                "full.callback",
                "full.target",
                "innocent",
                "callbacks",
                "slow.callback",
                "sleeper",
                "hanging",
                "killer",
                "invalid",
                "dead-letters",
                "nobody.home",
                "ackback.due",
                "ackback.quarantine.callbacks",
            ):
                connection.channel().queue_delete(queue)
