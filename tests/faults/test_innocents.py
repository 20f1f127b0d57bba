"""One party misbehaves, and all others are answered in time: nobody holds up anybody else."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pika
import pytest

from broker import Client
from tests.faults.nodes import Node, cluster
from tests.faults.stage import DaemonProcess, Stage
from tests.rabbitmq import free_port

FULL = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
MANY = 1250  # more than a daemon's windows at their widest
CALLS = 20
# An innocent's slowest call is measured and shown; this is what tells late from never.
NEVER = 30.0


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
        """A queue that refuses all but a few messages: it is full already, as RabbitMQ takes some more before it says no."""
        with pika.BlockingConnection(pika.URLParameters(self.node.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(name, durable=True, arguments=FULL)
            channel.confirm_delivery()
            with suppress(pika.exceptions.NackError):
                while True:
                    channel.basic_publish("", name, b"full")
        return name

    def publish(self, queue: str, body: bytes, **properties: object) -> None:
        self.channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


def full_reply_queue(party: Party) -> None:
    queue = party.full_queue("full.inbox")
    for number in range(MANY // 3):  # these wait in the innocents' own queue, and are handled before them
        party.publish("innocent", b"%d" % number, reply_to=queue)


def slow_callbacks(party: Party) -> None:
    for _ in range(MANY):
        party.publish("callbacks", b"", headers={"callback": "slow.callback"})


def full_callback_queue(party: Party) -> None:
    queue = party.full_queue("full.callback")
    for _ in range(MANY):
        party.publish("callbacks", b"", headers={"callback": queue})


def full_due_target(party: Party) -> None:
    party.client.invoke_async("delays", party.full_queue("full.target"))


def threads(party: Party) -> None:
    for _ in range(MANY):
        party.publish("sleeper", b"")


def hanging_store(party: Party) -> None:
    for number in range(MANY):
        party.publish("hanging", b"", message_id=f"m{number}")


def killers(party: Party) -> None:
    party.client.invoke_many("killer", range(100))


def full_dead_letters(party: Party) -> None:
    party.node.ctl("set_policy", "dead", "^dead-letters$", '{"max-length": 1}', "--apply-to", "queues")
    for _ in range(MANY):
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


def heard(channel: pika.adapters.blocking_connection.BlockingChannel, number: int) -> float:
    """Seconds from a reply's publication to what its callback has sent."""
    began = time.monotonic()
    reply = pika.BasicProperties(headers={"callback": "innocent.callback"}, correlation_id=f"c{number}")
    channel.basic_publish("", "callbacks", b"%d" % number, reply)
    while (body := channel.basic_get("innocent.inbox", auto_ack=True)[2]) != b"%d" % number:
        assert body is None or int(body) < number  # one more of an earlier one
        assert time.monotonic() - began < NEVER
        time.sleep(0.01)
    return time.monotonic() - began


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
            f"[worker]\ngrace = 1.0\n[store]\nurl = 'redis://127.0.0.1:{silent_server}/0'\n"
        )
        workers = 2 if misbehave is killers else 1
        daemon = DaemonProcess(stage, ("--workers", str(workers)), again=True)
        stage.daemons.append(daemon)
        daemon.wait_ready(workers)
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection, Client(node.url) as client:
            channel = connection.channel()
            channel.queue_declare("innocent.inbox", durable=True)
            misbehave(Party(node, client, channel))
            slowest_call = slowest_callback = 0.0
            for number in range(CALLS):
                began = time.monotonic()
                assert client.invoke("innocent", number, timeout=NEVER) == number
                slowest_call = max(slowest_call, time.monotonic() - began)
                slowest_callback = max(slowest_callback, heard(channel, number))
        print(
            f"{misbehave.__name__} ({transport}): slowest call {slowest_call:.2f} s, callback {slowest_callback:.2f} s"
        )
    finally:
        stage.close()
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
            for queue in (
                "full.inbox",
                "innocent.inbox",
                "innocent.callback",
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
