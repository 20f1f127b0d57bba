"""What administrators do to a node, and what the person at the keyboard then sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from broker.protocol.queues import as_before, own_queue
from tests.faults.nodes import Node, cluster

SERVICE = "from broker import Service\n\nclass Price(Service):\n    name = 'orders.price'\n\n    def handle(self):\n        pass\n"


@pytest.fixture
def node() -> Iterator[Node]:
    with cluster(1) as nodes:
        yield nodes[0]


def test_migrate_while_there_is_no_room_on_the_disk_and_a_node_in_maintenance(node: Node, tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "price.py").write_text(SERVICE)
    (tmp_path / "config.toml").write_text(f"[broker]\nurl = {node.url!r}\n")

    def ackback(*arguments: str) -> subprocess.CompletedProcess[str]:
        # As `ackback` is, but with less patience.
        program = "from broker.process import migration; migration.PATIENCE = 2.0; from broker.cli import main; main()"
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    queue = as_before(own_queue("orders.price"))
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        channel.confirm_delivery()
        for number in range(10):
            channel.basic_publish("", queue.name, b"%d" % number)

    node.ctl("set_disk_free_limit", "1000000GB")
    done = ackback("migrate")
    assert done.returncode == 1
    assert (
        "RabbitMQ has confirmed nothing for 2 s (RabbitMQ has raised an alarm, as it is low on memory or disk space, and takes no "
        "messages): run this again once it does" in " ".join(done.stderr.split())
    )
    node.ctl("set_disk_free_limit", "50MB")
    done = ackback("migrate")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 queue brought over"), done.stderr
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        channel = connection.channel()
        bodies = [channel.basic_get(queue.name, auto_ack=True)[2] for _ in range(11)]
        assert bodies == [*(b"%d" % number for number in range(10)), None]

    node.ctl("drain", tool="rabbitmq-upgrade")
    done = ackback("check")
    assert done.returncode == 1
    assert "FAILED  connection: RabbitMQ at 127.0.0.1:" in done.stdout
    assert "the connection was refused" in done.stdout
    node.ctl("revive", tool="rabbitmq-upgrade")
    assert ackback("check").returncode == 0
