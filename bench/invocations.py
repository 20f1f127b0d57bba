"""Invocations with callback a second, beside what one would pick instead: `make bench`.

A client publishes COUNT persistent, confirmed requests to a typed service; one worker process validates each body, runs the handler,
publishes the reply (or the callback's message) and acknowledges only then; the callback, in the same process, validates, runs and is
acknowledged. Durable quorum queues throughout. The figure is COUNT / (first publish .. last callback); a run in which one callback is
missing is an error. Rounds alternate between the contenders. How each is set up is in its file in `bench/contenders/`; ackback's
services and settings are the defaults.

The columns of CPU are microseconds of user and system time an invocation, by the operating system's accounts, of the RabbitMQ node, the
worker and the client.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import (
    PATIENCE,
    ROOT,
    cpu_seconds,
    delete_queues,
    machine,
    node_process,
    process,
    rabbitmq_for_figures,
    told,
    wait_for_consumers,
)
from bench.contenders.common import CALLBACK, CALLBACKS, PRICE

BASE = "aio-pika by hand"
CEILING = "raw sockets (ceiling)"
CONTENDERS: dict[str, Sequence[str]] = {
    "ackback": ("ackback_daemon", "async", "lane"),
    "ackback, `def` handler": ("ackback_daemon", "def", "lane"),
    "ackback, events off": ("ackback_daemon", "async", "lane", "events-off"),
    "ackback on aio-pika": ("ackback_daemon", "async", "aio-pika"),
    BASE: ("aio_pika_by_hand",),
    "Taskiq": ("taskiq_app",),
    "FastStream": ("faststream_app",),
    "Dramatiq": ("dramatiq_app",),
    "Celery": ("celery_app",),
    CEILING: ("raw_sockets",),
}
# Not of the comparison: a service that invokes another, whose reply goes to the callback (three hops instead of two); two processes.
TWO_WORKERS = "ackback, two workers"
OTHERS: dict[str, Sequence[str]] = {
    "ackback, chained": ("ackback_daemon", "chained", "lane"),
    TWO_WORKERS: ("ackback_daemon", "async", "lane"),
}
OURS = {name for name in {**CONTENDERS, **OTHERS} if name.startswith("ackback") and name != TWO_WORKERS}
BEFORE = ", before"
# The quick ones need more messages for a run of the same length.
QUICK = {"ackback", "ackback, `def` handler", "ackback, events off", CEILING, *OTHERS}
SLOW_SHARE = 4
PACKAGES = (
    "aio-pika",
    "aiormq",
    "taskiq",
    "taskiq-aio-pika",
    "faststream",
    "dramatiq",
    "celery",
    "kombu",
    "pydantic",
    "uvloop",
)
DRAMATIQS = [f"{name}.{part}" for name in (PRICE, CALLBACKS) for part in ("DQ", "XQ")]
QUEUES = (PRICE, "bench.target", CALLBACK, CALLBACKS, "bench.dead", *DRAMATIQS)


class Run(NamedTuple):
    """Invocations a second; CPU microseconds an invocation of RabbitMQ (0 if its process is not seen from here), worker and client."""

    rate: float
    node: float = 0.0
    worker: float = 0.0
    client: float = 0.0


def measure(url: str, contender: Sequence[str], count: int, root: Path = ROOT) -> Run:
    """One run of one contender with fresh processes and queues; `root` is the checkout that it is taken from. `url` is that of a node, or
    of a cluster's nodes, with commas between."""
    module, *options = contender
    first, *others = url.split(",")
    delete_queues(first, *QUEUES)
    nodes = [node for one in (first, *others) if (node := node_process(one))]
    with process("-m", f"bench.contenders.{module}", "worker", url, str(count), *options, root=root) as worker:
        wait_for_consumers(first, PRICE, CALLBACKS)
        with process("-m", f"bench.contenders.{module}", "client", url, str(count), *options, root=root) as client:
            started = told(client)["started"]
            before = [cpu_seconds(*pids) for pids in (nodes, [worker.pid], [client.pid])]
            told(client)
            of_client = cpu_seconds(client.pid)
            last = told(worker)["last"]
            after = [cpu_seconds(*nodes), cpu_seconds(worker.pid), of_client]
            used = [(later - earlier) / count * 1e6 for earlier, later in zip(before, after, strict=True)]
            return Run(count / (last - started), *used)


def measure_two_workers(url: str, contender: Sequence[str], count: int) -> Run:
    """As `measure`, with two worker processes on the same queues, and without the CPU time."""
    module, *options = contender
    delete_queues(url, *QUEUES)
    with tempfile.NamedTemporaryFile() as seen:
        seen.write(bytes(count))
        seen.flush()
        command = ("-m", f"bench.contenders.{module}", "worker", url, str(count), *options)
        with process(*command, BENCH_SEEN=seen.name), process(*command, BENCH_SEEN=seen.name):
            wait_for_consumers(url, PRICE, CALLBACKS, count=2)
            with process("-m", f"bench.contenders.{module}", "client", url, str(count), *options) as client:
                started = float(told(client)["started"])
                deadline = time.monotonic() + PATIENCE
                while 0 in Path(seen.name).read_bytes():
                    if time.monotonic() > deadline:
                        raise RuntimeError("callbacks are missing")
                    time.sleep(0.005)
                return Run(count / (time.time() - started))


def table(rows: Mapping[str, Sequence[Run]]) -> str:
    """Medians with spread, ratios to aio-pika by hand and to the ceiling, and CPU time, as a table in Markdown."""
    lines = [
        "| | median a second | lowest | highest | to aio-pika | to ceiling | RabbitMQ, µs | worker, µs | client, µs |",
        "|---|" + "---:|" * 8,
    ]
    for name, runs in rows.items():
        rates = [run.rate for run in runs]
        ratios = [_ratio(rows, name, base) for base in (BASE, CEILING)]
        cpu = [statistics.median(figures) for figures in list(zip(*runs, strict=True))[1:]]
        cells = [f"{figure:,.0f}" for figure in (statistics.median(rates), min(rates), max(rates))]
        lines.append(f"| {name} | {' | '.join(cells + ratios + [f'{one:,.0f}' if one else '-' for one in cpu])} |")
    return "\n".join(lines)


def _ratio(rows: Mapping[str, Sequence[Run]], name: str, base: str) -> str:
    """The median of the rounds' own ratios, as the machine is now quick and now slow."""
    if base not in rows:
        return "-"
    pairs = zip(rows[name], rows[base], strict=False)
    return f"{statistics.median(one.rate / other.rate for one, other in pairs):.2f}"


def plot(rows: Mapping[str, Sequence[float]]) -> str:
    """Bars of the medians, with whiskers from the lowest to the highest, as SVG."""
    left, width, step = 190, 520, 34
    scale = width / max(max(figures) for figures in rows.values())
    height = step * len(rows) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" font-family="sans-serif" font-size="14">',
        f'<rect width="{left + width + 90}" height="{height}" fill="white"/>',
        '<text x="12" y="22" font-weight="bold">Invocations with callback a second (median; line: lowest to highest)</text>',
    ]
    for index, (name, figures) in enumerate(rows.items()):
        y, middle = 36 + index * step, statistics.median(figures)
        colour = "#1b7f5c" if name.startswith("ackback") else "#9a9a9a" if "ceiling" in name else "#5b7aa6"
        low, high = left + min(figures) * scale, left + max(figures) * scale
        parts += [
            f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{name.replace("`", "")}</text>',
            f'<rect x="{left}" y="{y}" width="{middle * scale:.1f}" height="24" fill="{colour}"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 12}" y2="{y + 12}" stroke="black"/>',
            f'<text x="{high + 6:.1f}" y="{y + 17}">{middle:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def report(rows: Mapping[str, Sequence[Run]], count: int, rounds: int, broker: str) -> None:
    """Write docs/benchmarks.md and its plot."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    what = (__doc__ or "").partition("\n\n")[2].strip()
    page = (
        "# Benchmarks\n\nWritten by `make bench`, which anybody can run again.\n\n"
        f"{what}\n\n{table(rows)}\n\n"
        "![Invocations with callback a second](benchmarks.svg)\n\n"
        f"{rounds} alternating rounds of {count:,} invocations, of {count // SLOW_SHARE:,} where they take longer; "
        f"{broker} on the same machine: {machine()}.\n{versions}.\n\n"
        "The ceiling is what RabbitMQ itself can do of this work: raw sockets and pre-built frames in three processes, "
        "nothing validated.\nMore figures, and where the time goes: [performance.md](performance.md).\n"
    )
    (ROOT / "docs" / "benchmarks.md").write_text(page)
    (ROOT / "docs" / "benchmarks.svg").write_text(
        plot({name: [run.rate for run in runs] for name, runs in rows.items()})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=20_000, help="invocations a run; a quarter of it for the slow ones"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", nargs="+", choices=[*CONTENDERS, *OTHERS], metavar="NAME", help="only these; writes no report"
    )
    parser.add_argument(
        "--before", type=Path, metavar="DIR", help="another checkout, whose ackback is measured in the same rounds"
    )
    parser.add_argument("--no-report", action="store_true", help="do not write docs/benchmarks.md")
    arguments = parser.parse_args()
    contenders = {name: {**CONTENDERS, **OTHERS}[name] for name in arguments.only or CONTENDERS}
    if arguments.before:
        contenders |= {f"{name}{BEFORE}": one for name, one in contenders.items() if name in OURS}
    rows: dict[str, list[Run]] = {name: [] for name in contenders}
    with rabbitmq_for_figures() as (url, broker):
        print(f"{broker}, {arguments.count:,} invocations a run, {arguments.rounds} alternating rounds", flush=True)
        for number in range(1, arguments.rounds + 1):
            for name, contender in contenders.items():
                plain = name.removesuffix(BEFORE)
                count = arguments.count if plain in QUICK else arguments.count // SLOW_SHARE
                if name == TWO_WORKERS:
                    rows[name].append(measure_two_workers(url, contender, count))
                else:
                    rows[name].append(measure(url, contender, count, ROOT if name == plain else arguments.before))
                rate, *cpu = rows[name][-1]
                used = " + ".join(f"{one:.0f}" for one in cpu)
                print(f"round {number}  {name:<24}{rate:>8,.0f} a second, {used} µs of CPU each", flush=True)
        delete_queues(url, *QUEUES)
    print(f"\n{table(rows)}")
    if not arguments.only and not arguments.no_report and not arguments.before:
        report(rows, arguments.count, arguments.rounds, broker)
        print("\nwritten to docs/benchmarks.md and docs/benchmarks.svg")


if __name__ == "__main__":
    main()
