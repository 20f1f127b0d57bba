"""What runs of durable services cost while they wait, and when very much of one comes together. Every store is an SQLite file.

python bench/waiting.py sleepers [--count 100000]   runs that sleep: memory, messages, and a thousand that wake in one second
python bench/waiting.py deploy [--count 1000]       runs under way while their daemon is replaced
python bench/waiting.py fan-in                      one run that asks 100, 1,000 and 10,000 services at once; one daemon, two
python bench/waiting.py replays                     how quickly a handler is brought to where its journal is
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pika

from bench.common import rabbitmq_for_figures, resident
from broker import AsyncClient
from broker.durable.journal import GOT, OK
from broker.durable.run import CALL, Run
from broker.protocol.delays import LEVELS, level_name
from broker.protocol.queues import DUE

SERVICES = """
import asyncio
from datetime import datetime, timezone
from broker import Service


class Sleeper(Service):
    name = "bench.sleeper"
    durable = True
    concurrency = 200

    async def handle(self, due: float) -> float:
        await asyncio.sleep(due - self.now().timestamp())
        return due


class Target(Service):
    name = "bench.target"
    concurrency = 200

    async def handle(self, value: int) -> int:
        return value + 1


class Slow(Service):
    name = "bench.slow"
    concurrency = 200

    async def handle(self, value: int) -> int:
        await asyncio.sleep(0.05)
        return value + 1


class TenSteps(Service):
    name = "bench.ten-steps"
    durable = True
    concurrency = 200

    async def handle(self, value: int) -> int:
        for _ in range(10):
            value = await self.call(Slow, value)
        return value


class FanIn(Service):
    name = "bench.fan-in"
    durable = True

    async def handle(self, width: int) -> int:
        return sum(await asyncio.gather(*(self.call(Target, number) for number in range(width))))
"""
IN_ONE_SECOND = 1000
LONG = 7200.0
"""Seconds for which the others sleep."""
WIDTHS = (100, 1_000, 10_000)
REPLAYED = (3, 10, 100, 1_000)


class Daemon:
    """A process in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        with self._log.open("a") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "broker", "run"], cwd=folder, stdout=log, stderr=log)
        before = self._log.read_text().count("ready: ")
        while self._log.read_text().count("ready: ") == before:
            if self.process.poll() is not None:
                raise RuntimeError(self._log.read_text())
            time.sleep(0.02)

    def mebibytes(self) -> float:
        return resident(self.process.pid, "VmRSS")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def project(url: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ackback-waiting-") as name:
        folder = Path(name)
        (folder / "services").mkdir()
        (folder / "services" / "bench.py").write_text(SERVICES)
        (folder / "config.toml").write_text(f"[broker]\nurl = '{url}'\n[worker]\ngrace = 5\n")
        yield folder


def messages(url: str, *queues: str) -> int:
    """How many are ready on these queues."""
    found = 0
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        for queue in queues:
            with suppress(pika.exceptions.ChannelClosedByBroker):  # not there yet
                found += connection.channel().queue_declare(queue, passive=True).method.message_count
    return found


async def sleepers(url: str, folder: Path, count: int) -> None:
    daemon = Daemon(folder)
    levels = [level_name(level) for level in range(LEVELS)]
    print(
        "| runs asleep | memory of the daemon, MiB | messages that wait in the chain | others |\n|---:|---:|---:|---:|"
    )
    try:
        async with AsyncClient(url) as client:
            told = 0
            for upto in (0, count // 10, count // 2, count):
                began = time.time()
                await client.invoke_many("bench.sleeper", [began + LONG] * (upto - told))
                told = upto
                while upto and messages(url, *levels) < upto:
                    await asyncio.sleep(0.2)
                others = messages(url, DUE, "bench.sleeper") if upto else 0
                waiting = messages(url, *levels) if upto else 0
                print(f"| {upto:,} | {daemon.mebibytes():.0f} | {waiting:,} | {others:,} |", flush=True)
            due = float(int(time.time()) + 15)
            late: list[float] = []

            async def one() -> None:
                assert await client.call("bench.sleeper", due, timeout=120) == due
                late.append(time.time() - due)

            await asyncio.gather(*(one() for _ in range(IN_ONE_SECOND)))
            late.sort()
            print(
                f"\n{IN_ONE_SECOND:,} that are due in the same second are answered {late[0]:.2f} to {late[-1]:.2f} s after it "
                f"(median {statistics.median(late):.2f}); memory then {daemon.mebibytes():.0f} MiB"
            )
    finally:
        daemon.stop()


async def deploy(url: str, folder: Path, count: int) -> None:
    print("| | seconds for all | of that, without a daemon |\n|---|---:|---:|")
    for replaced in (False, True):
        daemon = Daemon(folder)
        async with AsyncClient(url) as client:
            began = time.perf_counter()
            calls = [asyncio.ensure_future(client.call("bench.ten-steps", one, timeout=300)) for one in range(count)]
            gap = 0.0
            if replaced:
                while sum(one.done() for one in calls) < count // 10:
                    await asyncio.sleep(0.02)
                stopped = time.perf_counter()
                await asyncio.to_thread(daemon.stop)
                daemon = await asyncio.to_thread(Daemon, folder)
                gap = time.perf_counter() - stopped
            assert await asyncio.gather(*calls) == [one + 10 for one in range(count)]
            took = time.perf_counter() - began
        print(f"| {'replaced' if replaced else 'undisturbed'} | {took:.1f} | {gap:.1f} |", flush=True)
        daemon.stop()


async def fan_in(url: str, folder: Path, _: int) -> None:
    print("| asked at once | daemons | seconds | memory of each after it, MiB |\n|---:|---:|---:|---|")
    for daemons in (1, 2):
        running = [Daemon(folder) for _ in range(daemons)]
        async with AsyncClient(url) as client:
            for width in WIDTHS:
                began = time.perf_counter()
                assert await client.call("bench.fan-in", width, timeout=300) == width * (width + 1) // 2
                took = time.perf_counter() - began
                memory = " / ".join(f"{one.mebibytes():.0f}" for one in running)
                print(f"| {width:,} | {daemons} | {took:.2f} | {memory} |", flush=True)
        for one in running:
            one.stop()


async def replays(*_: object) -> None:
    print("| steps in the journal | replays a second | µs a step |\n|---:|---:|---:|")
    for steps in REPLAYED:

        async def handle(run: Run, steps: int = steps) -> None:
            for _ in range(steps):
                await run.answer(run.ask(CALL, "target 1", "target 1", None).number)

        entries = []
        for number in range(steps):
            entries += [["ask", number, CALL, "target 1", "target 1", ""], [GOT, 2.0, number, OK, 1]]
        count = max(20, 20_000 // steps)
        rates = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(count):
                run = Run(handle, 1.0)
                run.replay(entries)
                run.abandon()
            rates.append(count / (time.perf_counter() - began))
        rate = statistics.median(rates)
        print(f"| {steps:,} | {rate:,.0f} | {1e6 / rate / steps:.0f} |", flush=True)


def main() -> None:
    whats = {"sleepers": (sleepers, 100_000), "deploy": (deploy, 1_000), "fan-in": (fan_in, 0), "replays": (replays, 0)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=whats)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    measure, usual = whats[options.what]
    with ExitStack() as stack:
        url = folder = None
        if options.what != "replays":
            url, _ = stack.enter_context(rabbitmq_for_figures())
            folder = stack.enter_context(project(url))
        asyncio.run(measure(url, folder, options.count or usual))  # type: ignore[operator]


if __name__ == "__main__":
    main()
