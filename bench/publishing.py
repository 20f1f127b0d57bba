"""Confirmed publishes a second into a quorum queue that nobody consumes: `AsyncClient.invoke_many` beside a raw socket.

python bench/publishing.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import declare_quorum_queue, delete_queues, process, rabbitmq_for_figures, table, told
from bench.contenders.common import PRICE

WAYS = {"AsyncClient.invoke_many": "ackback_daemon", "raw socket (ceiling)": "raw_sockets"}


def measure(url: str, count: int, module: str) -> float:
    """One run into an empty queue; publishes a second, from the first to the last confirm."""
    delete_queues(url, PRICE)
    declare_quorum_queue(url, PRICE)
    with process("-m", f"bench.contenders.{module}", "client", url, str(count)) as client:
        started = told(client)["started"]
        return float(count / (told(client)["ended"] - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows: dict[str, list[float]] = {name: [] for name in WAYS}
    with rabbitmq_for_figures() as (url, broker):
        for _ in range(arguments.rounds):
            for name, module in WAYS.items():
                rows[name].append(measure(url, arguments.count, module))
        delete_queues(url, PRICE)
    print(f"{broker}; {arguments.rounds} alternating rounds of {arguments.count:,}\n")
    print(table(rows, "raw socket (ceiling)", "a second"))


if __name__ == "__main__":
    main()
