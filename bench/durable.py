"""Steps a second of durable services, beside DBOS Transact: runs of three steps, 50 at once, each on the same stores, on disk.

Ours are requests to a service and back, by way of RabbitMQ; those of DBOS are functions of its own process.

    python bench/durable.py [--runs 2000] [--rounds 3] [--stores sqlite postgresql] [--without-peer]

One daemon hosts both services; the client calls the durable one and waits for its response. Latency is of one run by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.common import rabbitmq_for_figures
from broker import AsyncClient
from tests.stores import PostgresqlServer

AT_ONCE, STEPS = 50, 3
IDLE_RUNS = 50
SERVICES = """
from broker import Service


class Target(Service):
    name = "bench.target"

    async def handle(self, value: int) -> int:
        return value + 1


class ThreeSteps(Service):
    name = "bench.three-steps"
    durable = True

    async def handle(self, value: int) -> int:
        for _ in range(3):
            value = await self.call(Target, value)
        return value
"""


@contextmanager
def daemon(url: str, store: str, folder: Path) -> Iterator[None]:
    (folder / "services").mkdir(parents=True)
    (folder / "services" / "bench.py").write_text(SERVICES)
    (folder / "config.toml").write_text(f"[broker]\nurl = '{url}'\n[store]\nurl = '{store}'\n")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "broker", "run"], cwd=folder, stdout=log, stderr=log)
    try:
        while "ready: " not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


async def figures_of(three_steps: Callable[[int], Awaitable[int]], runs: int) -> tuple[float, float]:
    """Steps a second with 50 runs at once, and the median seconds of one run by itself."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with slots:
            assert await three_steps(number) == number + STEPS

    await asyncio.gather(*map(one, range(AT_ONCE)))
    began = time.perf_counter()
    await asyncio.gather(*map(one, range(runs)))
    rate = STEPS * runs / (time.perf_counter() - began)
    alone = []
    for number in range(IDLE_RUNS):
        began = time.perf_counter()
        await one(number)
        alone.append(time.perf_counter() - began)
    return rate, statistics.median(alone)


async def measure(url: str, runs: int) -> tuple[float, float]:
    async with AsyncClient(url) as client:
        return await figures_of(lambda number: client.call("bench.three-steps", number, timeout=60), runs)


def measure_peer(store: str, runs: int) -> tuple[float, float]:
    """The same of DBOS, in a process of its own."""
    command = [sys.executable, "-m", "bench.contenders.dbos_app", store, str(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rate, alone = done.stdout.split()[-2:]
    return float(rate), float(alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        url, _ = stack.enter_context(rabbitmq_for_figures())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ackback-durable-")))
        stores = {"sqlite": ""}
        if "postgresql" in options.stores:
            stores["postgresql"] = stack.enter_context(PostgresqlServer()).url
        found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for round_ in range(options.rounds):
            for store in options.stores:
                place = folder / f"{store}-{round_}"
                with daemon(url, stores[store] or f"sqlite://{place}/ackback.db", place):
                    found["ackback", store].append(asyncio.run(measure(url, options.runs)))
                tell(round_, "ackback", store, found)
                if not options.without_peer:
                    peers = stores[store] or f"sqlite:///{place}/dbos.db"
                    found["DBOS", store].append(measure_peer(peers, max(AT_ONCE, options.runs // 5)))
                    tell(round_, "DBOS", store, found)
    print(
        "\n| | store | steps a second, median | lowest | highest | one run by itself, ms |\n|---|---|---:|---:|---:|---:|"
    )
    for (who, store), rounds in found.items():
        rates = [rate for rate, _ in rounds]
        alone = 1000 * statistics.median(seconds for _, seconds in rounds)
        print(
            f"| {who} | {store} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} | {alone:.1f} |"
        )


def tell(round_: int, who: str, store: str, found: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    print(f"round {round_ + 1}  {who:<9}{store:<12}{found[who, store][-1][0]:>8,.0f} steps a second", flush=True)


if __name__ == "__main__":
    main()
