"""What a daemon costs before it does anything: import, `--help`, start-up to `ready`, resident memory when idle. Medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RUNS = 7


def timed(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - started


def start_up(url: str) -> tuple[float, float]:
    """Seconds from the command to `ready`, and MiB resident then."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "broker", "run"]
    daemon = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"ACKBACK_BROKER__URL": url}, stderr=subprocess.PIPE, text=True
    )
    assert daemon.stderr is not None
    for line in daemon.stderr:
        if "ready: " in line:
            break
    seconds = time.perf_counter() - started
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    daemon.terminate()
    daemon.wait()
    daemon.stderr.close()
    return seconds, resident


def show(name: str, measure: Callable[[], float], unit: str) -> None:
    figures = [measure() for _ in range(RUNS)]
    print(f"{name:<36}{statistics.median(figures):>8.2f} {unit}  ({min(figures):.2f} to {max(figures):.2f})")


def main() -> None:
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from tests.rabbitmq import rabbitmq

    show("import broker", lambda: timed("-c", "import broker"), "s")
    show("ackback --help", lambda: timed("-m", "broker", "--help"), "s")
    with rabbitmq() as rabbit:
        show("ackback run, to ready", lambda: start_up(rabbit.url)[0], "s")
        show("resident memory of an idle daemon", lambda: start_up(rabbit.url)[1], "MiB")


if __name__ == "__main__":
    main()
