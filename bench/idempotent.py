"""Invocations a second of a service that is `idempotent`, each with a callback, by store: what it costs to keep every outcome.

python bench/idempotent.py [--count 10000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.common import rabbitmq_for_figures
from broker import AsyncClient
from tests.stores import PostgresqlServer, redis_server

SERVICES = """
import os
import time
from broker import Service

left = int(os.environ["BENCH_COUNT"])


class Target(Service):
    name = "bench.once"
    idempotent = {idempotent}
    concurrency = 200

    async def handle(self, value: int) -> int:
        return value + 1


class Callback(Service):
    name = "bench.once.callback"

    async def handle(self) -> None:
        global left
        left -= 1
        if not left:
            open("done", "w").write(str(time.time()))
"""


def measure(url: str, store: str, folder: Path, count: int) -> float:
    """Invocations a second, from the first request to the last callback."""
    (folder / "services").mkdir(parents=True)
    (folder / "services" / "bench.py").write_text(SERVICES.format(idempotent=bool(store)))
    (folder / "config.toml").write_text(f"[broker]\nurl = '{url}'\n[store]\nurl = '{store or 'memory'}'\n")
    with (folder / "log").open("w") as log:
        environment = os.environ | {"BENCH_COUNT": str(count)}
        command = [sys.executable, "-m", "broker", "run"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        while "ready: " not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)

        async def invoke() -> None:
            async with AsyncClient(url) as client:
                await client.invoke_many("bench.once", range(count), callback="bench.once.callback")

        began = time.time()
        asyncio.run(invoke())
        while not (folder / "done").exists() or not (done := (folder / "done").read_text()):
            time.sleep(0.01)
        return count / (float(done) - began)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        url, _ = stack.enter_context(rabbitmq_for_figures())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ackback-idempotent-")))
        postgresql = stack.enter_context(PostgresqlServer()).url
        redis = stack.enter_context(redis_server(folder / "redis"))
        for round_ in range(options.rounds):
            stores = {
                "not idempotent": "",
                "memory": "memory",
                "SQLite": f"sqlite://{folder}/{round_}.db",
                "PostgreSQL": postgresql,
                "Redis": redis,
            }
            for name, store in stores.items():
                found[name].append(measure(url, store, folder / f"{name}-{round_}", options.count))
                print(f"round {round_ + 1}  {name:<16}{found[name][-1]:>8,.0f} a second", flush=True)
    print("\n| store | invocations with callback a second, median | lowest | highest |\n|---|---:|---:|---:|")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} |")


if __name__ == "__main__":
    main()
