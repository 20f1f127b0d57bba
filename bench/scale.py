"""What docs/scale.md reckons with, measured, and the document with its sums: `.venv-bench/bin/python bench/scale.py`.

Alternately on one node and on a cluster of three, all on this machine: what an invocation with callback costs of RabbitMQ's nodes, the
worker and the client; and how many messages a second go through one queue alone and through several at once, by raw sockets (persistent
and confirmed publishes, a window of 1,000; deliveries acknowledged as they come).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import (
    ROOT,
    bytes_written,
    cpu_seconds,
    delete_queues,
    machine,
    node_process,
    process,
    rabbitmq_for_figures,
    told,
    version,
)
from bench.contenders.raw_sockets import reply, request
from bench.invocations import CONTENDERS, QUEUES, Run, measure
from broker.transport import frames
from tests.faults.nodes import cluster

QUEUES_AT_ONCE = (1, 2, 4, 8)
RATES = (10_000, 100_000, 1_000_000)
BUSY = 0.5
"""The share of a core, and of what a queue can do, that is planned with."""
CORES_A_NODE = 16
MOST_NODES = 7
"""Nodes that one cluster is planned with at most: https://www.rabbitmq.com/docs/clustering#node-count names 3, 5 and 7."""
CID = "0" * 32


class Queues(NamedTuple):
    """Messages a second through all queues together; cores that RabbitMQ's nodes used meanwhile."""

    rate: float
    cores: float


class Measured(NamedTuple):
    invocations: list[tuple[Run, float]]
    """With bytes that RabbitMQ had written to disk for each."""
    queues: dict[int, list[Queues]]

    def cpu(self, column: int) -> float:
        """The median of one of `Run`'s columns."""
        return statistics.median(run[column] for run, _ in self.invocations)

    def written(self) -> float:
        return statistics.median(written for _, written in self.invocations)

    def rate(self, at_once: int) -> float:
        return statistics.median(one.rate for one in self.queues[at_once])

    def cores(self, at_once: int) -> float:
        return statistics.median(one.cores for one in self.queues[at_once])


@contextmanager
def brokers() -> Iterator[dict[str, str]]:
    """URLs of one node, and of the nodes of a cluster."""
    with ExitStack() as stack:
        url, _ = stack.enter_context(rabbitmq_for_figures())
        nodes = stack.enter_context(cluster(3))
        yield {"one node": url, "three nodes": ",".join(node.url for node in nodes)}


def measure_invocations(urls: str, count: int) -> tuple[Run, float]:
    nodes = [node for url in urls.split(",") if (node := node_process(url))]
    before = bytes_written(*nodes)
    run = measure(urls, CONTENDERS["ackback"], count)
    return run, (bytes_written(*nodes) - before) / count


def measure_queues(urls: str, at_once: int, count: int) -> Queues:
    """So many messages in all, through several queues, each with a publisher and a consumer of its own."""
    first, *others = urls.split(",")
    nodes = [node for url in (first, *others) if (node := node_process(url))]
    names = [f"bench.scale.{number}" for number in range(at_once)]
    delete_queues(first, *names)
    with ExitStack() as stack:
        servers = [first, *others]
        pairs = []
        for number, name in enumerate(names):
            url = servers[number % len(servers)]
            command = ("-m", "bench.contenders.one_queue", "worker", url, str(count // at_once), name)
            worker = stack.enter_context(process(*command))
            told(worker)
            pairs.append((worker, url, name))
        before = cpu_seconds(*nodes)
        clients = [
            stack.enter_context(process("-m", "bench.contenders.one_queue", "client", url, str(count // at_once), name))
            for _, url, name in pairs
        ]
        started = min(told(client)["started"] for client in clients)
        last = max(told(worker)["last"] for worker, _, _ in pairs)
        used = cpu_seconds(*nodes) - before
    delete_queues(first, *names)
    return Queues(count / (last - started), used / (last - started))


def parameters(measured: dict[str, Measured]) -> str:
    one, three = measured["one node"], measured["three nodes"]
    rows = [
        ("RabbitMQ, CPU an invocation with callback, all nodes", "µs", one.cpu(1), three.cpu(1)),
        ("worker, CPU an invocation with callback", "µs", one.cpu(2), three.cpu(2)),
        ("client, CPU an invocation (`invoke_many`)", "µs", one.cpu(3), three.cpu(3)),
        ("written to disk by RabbitMQ an invocation, all nodes", "bytes", one.written(), three.written()),
        ("invocations a second, all on this machine", "", one.cpu(0), three.cpu(0)),
        *(
            (
                "messages a second through one queue"
                if at_once == 1
                else f"messages a second through {at_once} queues together",
                "",
                one.rate(at_once),
                three.rate(at_once),
            )
            for at_once in QUEUES_AT_ONCE
        ),
        *(
            (
                f"RabbitMQ's share of this machine's cores meanwhile, {at_once} queue{'s' if at_once > 1 else ''}",
                "cores",
                one.cores(at_once),
                three.cores(at_once),
            )
            for at_once in QUEUES_AT_ONCE
        ),
    ]
    lines = ["| | | one node | three nodes |", "|---|---|---:|---:|"]
    for what, unit, *figures in rows:
        digits = 2 if unit == "cores" else 0
        lines.append(f"| {what} | {unit} | {' | '.join(f'{figure:,.{digits}f}' for figure in figures)} |")
    return "\n".join(lines)


def sums(three: Measured) -> str:
    """What rates need, in a cluster whose queues have three replicas, by the measured parameters."""
    lines = ["| invocations with callback a second | " + " | ".join(f"{rate:,}" for rate in RATES) + " |"]
    lines.append("|---|" + "---:|" * len(RATES))
    broker, worker, client = (three.cpu(column) / 1e6 for column in (1, 2, 3))
    a_queue = three.rate(1) * BUSY
    on_wire = wire_bytes()

    def row(what: str, *cells: str) -> None:
        lines.append(f"| {what} | {' | '.join(cells)} |")

    def each(formula: str, figure: float, divisor: float) -> list[str]:
        return [f"{rate:,} × {formula} = {rate * figure / divisor:,.1f}" for rate in RATES]

    cores = [rate * broker / BUSY for rate in RATES]
    row("cores for RabbitMQ", *each(f"{broker * 1e6:.0f} µs / {BUSY}", broker, BUSY))
    row(f"nodes of {CORES_A_NODE} cores", *(f"{nodes_for(one)}" for one in cores))
    row(f"clusters, of {MOST_NODES} nodes at most", *(f"{math.ceil(nodes_for(one) / MOST_NODES)}" for one in cores))
    row("worker processes (a core each)", *each(f"{worker * 1e6:.0f} µs / {BUSY}", worker, BUSY))
    row("cores for clients", *each(f"{client * 1e6:.0f} µs / {BUSY}", client, BUSY))
    queues = [math.ceil(rate / a_queue) for rate in RATES]
    row(
        "callback queues, at least",
        *(f"{rate:,} / ({three.rate(1):,.0f} × {BUSY}) = {n}" for rate, n in zip(RATES, queues, strict=True)),
    )
    row("services' queues, at least", *map(str, queues))
    row("on the network, Mbit/s", *each(f"{on_wire:,} bytes × 8 / 10⁶", on_wire * 8, 1e6))
    row("onto the disks, MB/s", *each(f"{three.written():,.0f} bytes / 10⁶", three.written(), 1e6))
    return "\n".join(lines)


def nodes_for(cores: float) -> int:
    """Three at least, and an odd number within a cluster."""
    nodes = max(3, math.ceil(cores / CORES_A_NODE))
    return nodes if nodes > MOST_NODES else nodes + 1 - nodes % 2


def wire_bytes() -> int:
    """Of one invocation with callback: request and reply, each published, delivered, and sent to two followers."""
    size = sum(
        len(frames.publish(1, "orders.price", one, frames.DEFAULT_FRAME_MAX)) for one in (request(CID), reply(CID))
    )
    return 4 * size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="invocations a run; three times as many messages")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with brokers() as urls:
        measured = {name: Measured([], {at_once: [] for at_once in QUEUES_AT_ONCE}) for name in urls}
        for number in range(1, arguments.rounds + 1):
            for name, url in urls.items():
                into = measured[name]
                into.invocations.append(measure_invocations(url, arguments.count))
                print(f"round {number}  {name:<12} {into.invocations[-1]}", flush=True)
                for at_once in QUEUES_AT_ONCE:
                    into.queues[at_once].append(measure_queues(url, at_once, 3 * arguments.count))
                    print(f"round {number}  {name:<12} {at_once} queues: {into.queues[at_once][-1]}", flush=True)
        for url in urls.values():
            delete_queues(url.split(",")[0], *QUEUES)
        broker = version(urls["one node"])
    rounds = f"{arguments.rounds} alternating rounds of {arguments.count:,} invocations and of {3 * arguments.count:,} messages"
    text = (
        (ROOT / "bench" / "scale.md")
        .read_text()
        .format(
            parameters=parameters(measured),
            sums=sums(measured["three nodes"]),
            how=f"{rounds}; {broker}; {machine()}",
            busy=f"{BUSY:.0%}",
            wire=f"{wire_bytes():,}",
            ratio=f"{measured['three nodes'].cpu(1) / measured['one node'].cpu(1):.1f}",
            a_queue=f"{measured['three nodes'].rate(1):,.0f}",
        )
    )
    (ROOT / "docs" / "scale.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
