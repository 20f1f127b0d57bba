"""Confirmed publishes a second into a quorum queue that nobody consumes: `AsyncClient.invoke_many` beside raw sockets.

python bench/publishing.py        # AMQP_URL: uses that RabbitMQ; else one of its own
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import ceiling
from bench.common import delete_queues, rabbitmq_for_figures, show_table

QUEUES = ("bench.price",)


def by_client(url: str, count: int) -> float:
    from bench.invocations import publish

    return asyncio.run(publish(url, count))


def measure(url: str, count: int, publish: object) -> float:
    """One run into an empty queue; publishes a second, from the first to the last confirm."""
    delete_queues(url, *QUEUES)
    ceiling.declare(ceiling.Socket(url), *QUEUES)
    started = publish(url, count)  # type: ignore[operator]
    return count / (time.time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    ways = {"AsyncClient.invoke_many": by_client, "raw socket (ceiling)": ceiling.publish}
    figures: dict[str, list[float]] = {name: [] for name in ways}
    with rabbitmq_for_figures() as rabbit:
        for _ in range(arguments.rounds):
            for name, publish in ways.items():
                figures[name].append(measure(rabbit.url, arguments.count, publish))
        delete_queues(rabbit.url, *QUEUES)
        show_table(f"confirmed publishes/s ({arguments.count} a run, RabbitMQ {rabbit.origin})", figures)


if __name__ == "__main__":
    main()
