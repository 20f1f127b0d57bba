"""`ackback migrate`: what is on queues of an earlier version comes over, whole and in order, wherever it is interrupted."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from broker.protocol.entities import Queue
from broker.protocol.queues import MIGRATION, as_before, delay_chain_as_before, durable_queues, own_queue
from tests.integration.conftest import Process
from tests.rabbitmq import Rabbit

SERVICE = """
    from broker import Service

    class Price(Service):
        name = 'orders.price'

        def handle(self):
            pass
"""
QUEUES = [as_before(queue) for queue in durable_queues(["orders.price"], "callbacks")]

Project = Callable[..., Path]
Start = Callable[..., Process]
Channel = pika.adapters.blocking_connection.BlockingChannel


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[Channel]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        forget(connection)
        channel = connection.channel()
        for queue in QUEUES:
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        channel.confirm_delivery()
        yield channel
        forget(connection)


def forget(connection: pika.BlockingConnection) -> None:
    channel = connection.channel()
    for name in (*(queue.name for queue in QUEUES), MIGRATION, f"{MIGRATION}.messages"):
        channel.queue_delete(name)
    for one in delay_chain_as_before():
        channel.queue_delete(one.name) if isinstance(one, Queue) else channel.exchange_delete(one.name)
    channel.close()


def message(number: int) -> tuple[bytes, dict[str, Any]]:
    """Each has what only some have: properties, headers of many types, bodies that are empty, alike or not text."""
    properties: dict[str, Any] = {"delivery_mode": 2, "priority": 3}  # RabbitMQ 4.3 delivers higher ones first
    if number % 3:  # the others are all alike
        properties |= {"message_id": f"m{number}", "correlation_id": f"c{number}", "reply_to": "callbacks"}
    if number % 5 == 1:
        properties |= {"expiration": "3600000", "timestamp": 1_700_000_000, "type": "t", "app_id": "a"}
        properties |= {"content_type": "text/plain", "content_encoding": "utf-8"}
    if number % 7 == 1:
        properties["headers"] = {
            "callback": ["a", "b"],
            "attempt": 2,
            "x-death": [{"queue": "q", "count": 1}],
            "e": None,
        }
    return (b"", b"\xff\x00", b"{}", b"%d" % number)[number % 4], properties


def fill(channel: Channel, queue: str, count: int) -> None:
    for number in range(count):
        body, properties = message(number)
        channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


def content(channel: Channel, queue: str) -> list[tuple[bytes, dict[str, Any]]]:
    found = []
    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
        properties = {name: value for name, value in vars(got[1]).items() if value is not None}
        if (headers := properties.get("headers")) is not None:
            properties["headers"] = {
                k: v for k, v in headers.items() if k not in ("x-delivery-count", "x-acquired-count")
            }
            if not properties["headers"]:
                del properties["headers"]
        found.append((got[2], properties))
    return found


def migrate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker", "migrate", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )


def is_rabbitmq_3(channel: Channel) -> bool:
    return bool(channel.connection._impl.server_properties["version"].startswith("3."))


def test_dead_letters_come_over(project: Project, channel: Channel) -> None:
    fill(channel, "dead-letters", 700)
    assert migrate(project({"price.py": SERVICE})).returncode == 0
    assert content(channel, "dead-letters") == [message(number) for number in range(700)]


def test_all_comes_over_though_it_is_killed_ten_times(project: Project, channel: Channel) -> None:
    folder = project({"price.py": SERVICE})
    counts = {"orders.price": 3000, "dead-letters": 1100, "callbacks": 10}
    if is_rabbitmq_3(channel):
        del counts["dead-letters"]  # of these it loses what one who is killed has in hand, whoever that is
    expected = {name: [message(number) for number in range(count)] for name, count in counts.items()}
    for name, messages in expected.items():
        fill(channel, name, len(messages))
    dry = migrate(folder, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "to do   queue orders.price: 3000 messages" in dry.stdout
    assert "6 queues to be brought over; nothing was changed" in dry.stdout
    rng = random.Random(1)
    killed = 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-m", "broker", "migrate"], cwd=folder, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.4, 1.4))
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed
    last = migrate(folder)
    assert last.returncode == 0, last.stderr
    for queue in QUEUES:
        channel.queue_declare(queue.name, durable=True, arguments=dict(own_queue(queue.name).arguments))
        assert content(channel, queue.name) == expected.get(queue.name, [])
    again = migrate(folder)
    assert "0 queues brought over" in again.stdout
    assert "to do" not in again.stdout


def test_a_daemon_names_the_command_and_waits_while_it_is_not_done(
    project: Project, start: Start, channel: Channel
) -> None:
    folder = project({"price.py": SERVICE})
    daemon = start("run")
    told = daemon.wait_for("exists with other arguments: ")[0]
    assert "`ackback migrate` brings it over with its messages" in told
    assert daemon.exit_code() == 2
    channel.queue_declare(MIGRATION, durable=True, arguments=dict(own_queue(MIGRATION).arguments))
    daemon = start("run")
    daemon.wait_for(
        "`ackback migrate` was interrupted: its queues are not whole before it has been run again; waiting until that"
    )
    assert migrate(folder).returncode == 0
    daemon.wait_for("ready: ")


def test_a_queue_with_a_consumer_or_that_is_not_ours_is_left_alone(project: Project, channel: Channel) -> None:
    folder = project({"price.py": SERVICE})
    channel.queue_delete("callbacks")
    channel.queue_declare("callbacks", durable=True)
    channel.basic_consume("orders.price", lambda *_: None)
    refused = migrate(folder)
    assert refused.returncode == 2
    assert "FAILED  queue callbacks: queue 'callbacks' exists with other arguments" in refused.stdout
    assert "no version of ackback has declared it like that" in refused.stdout
    assert "FAILED  queue orders.price: it has a consumer: stop all daemons" in refused.stdout
    assert "nothing was changed" in refused.stderr


def test_two_at_once(project: Project, channel: Channel, rabbitmq_url: str) -> None:
    folder = project({"price.py": SERVICE})
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as other:
        other.channel().queue_declare(f"{MIGRATION}.lock", exclusive=True)
        refused = migrate(folder)
    assert refused.returncode == 1
    assert refused.stderr == "ackback: another `ackback migrate` is under way on this broker\n"


def test_a_user_without_permission_is_told_which(
    project: Project, ackback: Callable[..., subprocess.CompletedProcess[str]], our_rabbit: Rabbit
) -> None:
    project({"price.py": SERVICE})
    our_rabbit.ctl("add_user", "looker", "hunter2")
    our_rabbit.ctl("set_permissions", "-p", our_rabbit.vhost, "looker", "^$", ".*", ".*")
    url = our_rabbit.url.replace("guest:guest@", "looker:hunter2@")
    try:
        refused = ackback("migrate", ACKBACK_BROKER__URL=url)
    finally:
        our_rabbit.ctl("delete_user", "looker")
    assert refused.returncode == 2
    # Before 3.11 RabbitMQ does not say which permission it is.
    assert re.search("it lacks the configure (or read )?permission", refused.stderr)
    assert "rabbitmqctl set_permissions" in refused.stderr


def test_the_former_delay_queues_go_once_they_are_empty(project: Project, channel: Channel) -> None:
    folder = project({"price.py": SERVICE})
    name = next(one.name for one in delay_chain_as_before())
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_publish("", name, b"")
    assert "1 message still waits in the delay queues" in migrate(folder).stderr
    assert content(channel, name)
    assert migrate(folder).stderr == ""
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        channel.queue_declare(name, passive=True)
