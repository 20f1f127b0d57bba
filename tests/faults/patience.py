"""A broker that waits a minute for an acknowledgement, and handlers that take longer: `python -m tests.faults.patience`.

RabbitMQ 4.3 heeds what a consumer asks for; 3.10 goes by its own configuration alone, which the daemon says at its start.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from broker import Client
from tests.faults.ledger import ACCEPTED, cid_of
from tests.faults.load import CALLBACK
from tests.faults.nodes import Node, PackageNode, docker_nodes
from tests.faults.stage import Stage
from tests.rabbitmq import SERVER, docker_has_image

BROKERS_PATIENCE = 60.0
HANDLERS_TIME = 150.0
"""The first time that an invocation is handled. RabbitMQ 3.10 looks once a minute."""
INVOCATIONS = 5


def table() -> str:
    """What became of the invocations on each RabbitMQ that can be had here."""
    lines = [
        "| RabbitMQ | invocations | handled | callbacks | **lost** | said at the daemon's start |",
        "|---|---:|---:|---:|---:|---|",
    ]
    with ThreadPoolExecutor() as pool:
        lines += pool.map(lambda play: play(), [play for there, play in _PLAYS if there()])
    return "\n".join(lines)


def _on_docker() -> str:
    with docker_nodes() as create:
        return _play(create(consumer_timeout=BROKERS_PATIENCE))


def _on_package() -> str:
    return _play(PackageNode(consumer_timeout=BROKERS_PATIENCE))


_PLAYS = ((docker_has_image, _on_docker), (SERVER.exists, _on_package))


def _play(node: Node) -> str:
    stage = None
    try:
        node.start()
        node.ctl("await_startup")
        version = node.ctl("version").strip()
        stage = Stage([node.url], "lane", random.Random(0))
        stage.patience = 2 * HANDLERS_TIME
        daemon = stage.daemon()
        job = {"do": "linger", "seconds": HANDLERS_TIME}
        with Client(node.url) as client:
            for number in range(INVOCATIONS):
                cid = cid_of(number, stage.run)
                client.invoke_async("faults.work", {"number": number, **job}, callback=CALLBACK, cid=cid)
                stage.ledger.note(ACCEPTED, number)
        account = stage.settle()
        said = "consumer_timeout" if "put `consumer_timeout = " in daemon.log.read_text() else "nothing"
        handled = sum(account.effects.values())
        return f"| {version} | {INVOCATIONS} | {handled} | {len(account.ok)} | **{len(account.lost)}** | {said} |"
    finally:
        if stage is not None:
            stage.close()
        node.remove()


if __name__ == "__main__":
    print(table())
