"""The first attack on what users would pick instead: 3,000 invocations with callback, the worker killed five times, the broker once.

The programs are the benchmark's (bench/contenders), each as its documentation says how to lose nothing, and Celery with its defaults, too.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench.common import wait_for_consumers
from bench.contenders.common import CALLBACKS, PRICE
from tests.faults.nodes import Node, cluster

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = ROOT / ".venv-bench" / "bin" / "python"
COUNT = 3000
KILLS = 5
BROKER_AFTER = 3
SILENCE = 30.0
QUEUES = (PRICE, CALLBACKS)
CONTENDERS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "ackback": ("ackback_daemon", {}, QUEUES),
    "Celery, its defaults": ("celery_app", {"BENCH_CELERY_DEFAULTS": "1"}, ("celery",)),
    "Celery, late acknowledgement, quorum queues, confirms": ("celery_app", {}, QUEUES),
    "Dramatiq": ("dramatiq_app", {}, QUEUES),
    "FastStream": ("faststream_app", {}, QUEUES),
    "Taskiq": ("taskiq_app", {}, QUEUES),
}
"""The program, its environment, and the queues that its worker consumes."""


def compare(seed: int) -> str:
    """A table of what each lost, each on a broker of its own."""
    if not PYTHON.exists():
        return "Not measured: the others are not installed (`make .venv-bench/done`)."
    lines = [
        "| | invocations | worker killed | broker killed | callbacks | **lost** |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (module, environment, queues) in CONTENDERS.items():
        with cluster(1) as nodes:
            heard, killed = _attack(nodes[0], module, environment, queues, random.Random(f"{name} {seed}"))
        lines.append(f"| {name} | {COUNT:,} | {killed} | 1 | {heard:,} | **{COUNT - heard:,}** |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def _attack(
    node: Node, module: str, environment: dict[str, str], queues: tuple[str, ...], rng: random.Random
) -> tuple[int, int]:
    """How many callbacks were heard in the end, and how often the worker was killed."""
    with tempfile.TemporaryDirectory(prefix="ackback-others-") as folder:
        seen = Path(folder) / "seen"
        seen.write_bytes(bytes(COUNT))
        merged = {
            **os.environ,
            **environment,
            "BENCH_SEEN": str(seen),
            "BENCH_SECONDS": "0.002",
            "PYTHONPATH": str(ROOT),
        }

        def start(role: str) -> subprocess.Popen[bytes]:
            command = [str(PYTHON), "-m", f"bench.contenders.{module}", role, node.url, str(COUNT)]
            null = subprocess.DEVNULL
            return subprocess.Popen(command, env=merged, cwd=folder, stdout=null, stderr=null, process_group=0)

        def heard() -> int:
            return COUNT - seen.read_bytes().count(0)

        worker = start("worker")
        killed = 0
        try:
            wait_for_consumers(node.url, *queues)  # some declare their queues only when their worker runs
            assert start("client").wait(120) == 0, f"{module}: its client failed"
            changed, last = time.monotonic(), -1
            kill_at = heard() + rng.randrange(50, 400)
            while heard() < COUNT and time.monotonic() - changed < SILENCE:
                if (now := heard()) != last:
                    changed, last = time.monotonic(), now
                if killed < KILLS and now >= kill_at:
                    _kill(worker)
                    killed += 1
                    kill_at = now + rng.randrange(50, 400)
                    if killed == BROKER_AFTER:
                        node.kill()
                        node.start()
                    worker = start("worker")
                elif worker.poll() is not None:
                    worker = start("worker")  # one that does not survive the broker's restart is started again
                time.sleep(0.005)
            return heard(), killed
        finally:
            _kill(worker)


def _kill(worker: subprocess.Popen[bytes]) -> None:
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
