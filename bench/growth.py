"""What it costs as work grows: a long backlog, large bodies, many services.

python bench/growth.py backlog --sizes 10000 1000000
python bench/growth.py bodies
python bench/growth.py services --sizes 1 100 1000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import cpu_seconds, delete_queues, process, rabbitmq_for_figures, resident, told, wait_for_consumers
from bench.contenders.common import CALLBACK, CALLBACKS, PRICE

QUEUES = (PRICE, CALLBACK, CALLBACKS)
BODY_SIZES = (100, 10 * 1024, 1024 * 1024, 10 * 1024 * 1024)
IDLE_SECONDS = 10


def backlog(url: str, sizes: list[int]) -> None:
    print("| backlog | invocations/s | most resident, MiB |\n|---:|---:|---:|")
    for size in sizes:
        delete_queues(url, *QUEUES)
        contender = ("-m", "bench.contenders.ackback_daemon")
        with process(*contender, "worker", url, str(size)):
            wait_for_consumers(url, PRICE)  # it has declared the queues
        with process(*contender, "client", url, str(size)) as client:
            told(client)
            told(client)
        with process(*contender, "worker", url, str(size), "async", "lane", "first") as worker:
            first, last = told(worker)["first"], told(worker)["last"]
            print(f"| {size:,} | {size / (last - first):,.0f} | {resident(worker.pid, 'VmHWM'):.0f} |", flush=True)


def bodies(url: str, _: list[int]) -> None:
    print("| body, bytes | ackback, MB/s | aio-pika by hand, MB/s |\n|---:|---:|---:|")
    for size in BODY_SIZES:
        count = max(20, min(3000, 300_000_000 // size))
        figures = []
        for module in ("ackback_daemon", "aio_pika_by_hand"):
            delete_queues(url, *QUEUES)
            contender = ("-m", f"bench.contenders.{module}")
            options = ("sized", "lane", str(size)) if module == "ackback_daemon" else (str(size),)
            with process(*contender, "worker", url, str(count), *options) as worker:
                wait_for_consumers(url, PRICE, CALLBACKS)
                with process(*contender, "client", url, str(count), *options) as client:
                    started = told(client)["started"]
                    figures.append(count * size / (told(worker)["last"] - started) / 1e6)
        print(f"| {size:,} | {figures[0]:,.1f} | {figures[1]:,.1f} |", flush=True)


def services(url: str, sizes: list[int]) -> None:
    print("| services | seconds to ready | resident, MiB | idle, % of a core |\n|---:|---:|---:|---:|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            classes = "\n".join(
                f"class S{n}(Service):\n    name = 'bench.many.{n}'\n    async def handle(self): pass\n"
                for n in range(size)
            )
            (Path(folder) / "many.py").write_text(f"from broker import Service\n{classes}")
            environment = os.environ | {"ACKBACK_BROKER__URL": url}
            began = time.perf_counter()
            daemon = subprocess.Popen(
                [sys.executable, "-m", "broker", "run", folder],
                cwd=folder,
                env=environment | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
                stderr=subprocess.PIPE,
                text=True,
            )
            assert daemon.stderr is not None
            try:
                if not any("ready: " in line for line in daemon.stderr):
                    raise RuntimeError("the daemon ended before it was ready")
                seconds = time.perf_counter() - began
                before = cpu_seconds(daemon.pid)
                time.sleep(IDLE_SECONDS)
                idle = (cpu_seconds(daemon.pid) - before) / IDLE_SECONDS * 100
                print(f"| {size:,} | {seconds:.2f} | {resident(daemon.pid):.0f} | {idle:.1f} |", flush=True)
            finally:
                daemon.terminate()
                daemon.wait()
                daemon.stderr.close()
        delete_queues(url, *(f"bench.many.{n}" for n in range(size)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("backlog", "bodies", "services"))
    parser.add_argument("--sizes", type=int, nargs="+")
    arguments = parser.parse_args()
    sizes = arguments.sizes or {"backlog": [10_000, 1_000_000], "services": [1, 100, 1000]}.get(arguments.what, [])
    with rabbitmq_for_figures() as (url, broker):
        print(f"{broker}\n")
        {"backlog": backlog, "bodies": bodies, "services": services}[arguments.what](url, sizes)
        delete_queues(url, *QUEUES)


if __name__ == "__main__":
    main()
