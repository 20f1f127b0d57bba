"""All attacks, long: `python -m tests.faults.soak --minutes 30 --seed 1`. Prints the ledger and writes docs/reliability.md."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from tests.faults import others, patience
from tests.faults.nodes import Node, cluster
from tests.faults.scenarios import CLUSTERED, SCENARIOS, run

REPORT = Path(__file__).resolve().parent.parent.parent / "docs" / "reliability.md"
COLUMNS = ("invocations", "faults", "ok", "error callback", "dead letter", "repeated", "deleted", "lost")
SECONDS = "seconds"
"""From the end of the faults to the last outcome: the longest of all runs."""
SCALE = 3
Sums = dict[tuple[str, str], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    begun = time.monotonic()
    until = begun + arguments.minutes * 60
    sums: Sums = defaultdict(lambda: dict.fromkeys(("runs", *COLUMNS, SECONDS), 0))
    failures: list[str] = []
    waited = patience.table()
    print(waited, flush=True)
    compared = others.compare(arguments.seed)
    until += time.monotonic() - begun
    with cluster(1) as one:
        version = one[0].ctl("version").strip()
        seed = arguments.seed
        while time.monotonic() < until or not sums:
            for name in SCENARIOS:
                for transport in ("lane", "aio-pika"):
                    if name not in CLUSTERED:
                        _play(name, one, transport, seed, sums, failures)
                    elif transport == ("lane", "aio-pika")[seed % 2]:
                        with cluster(3) as nodes:
                            _play(name, nodes, transport, seed, sums, failures)
                    if time.monotonic() > until and len(sums) >= 2 * len(SCENARIOS) - 1:
                        break
            seed += 1
    minutes = (time.monotonic() - begun) / 60
    table = _table(sums)
    print(table)
    REPORT.write_text(_report(table, waited, compared, version, minutes, arguments.seed))
    if failures:
        sys.exit("\n\n".join(failures))


def _play(name: str, nodes: list[Node], transport: str, seed: int, sums: Sums, failures: list[str]) -> None:
    try:
        row = run(name, nodes, transport, seed, SCALE)
    except AssertionError as error:
        failures.append(f"{name} on {transport}, seed {seed}: {error}")
        print(f"FAILED {failures[-1][:2000]}", flush=True)
        return
    print(row, flush=True)
    sums[name, transport]["runs"] += 1
    for column in COLUMNS:
        sums[name, transport][column] += int(str(row[column]))
    sums[name, transport][SECONDS] = max(sums[name, transport][SECONDS], float(str(row[SECONDS])))


def _table(sums: Sums) -> str:
    lines = [
        f"| scenario | transport | runs | {' | '.join(COLUMNS[:-1])} | **lost** | last outcome after, s |",
        "|---|---|" + "---:|" * (len(COLUMNS) + 2),
    ]
    for (name, transport), sum_ in sums.items():
        numbers = [f"{sum_['runs']}", *(f"{sum_[column]:,}" for column in COLUMNS[:-1]), f"**{sum_['lost']}**"]
        lines.append(f"| {name} | {transport} | {' | '.join(numbers)} | {sum_[SECONDS]:.1f} |")
    total = [f"{sum(one[column] for one in sums.values()):,}" for column in ("runs", *COLUMNS)]
    longest = max(one[SECONDS] for one in sums.values())
    lines.append(f"| all | | {' | '.join(total[:-1])} | **{total[-1]}** | {longest:.1f} |")
    return "\n".join(lines)


def _report(table: str, waited: str, compared: str, version: str, minutes: float, seed: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    intro = (Path(__file__).parent / "report.md").read_text()
    return intro.format(
        table=table,
        waited=waited,
        compared=compared,
        version=version,
        minutes=f"{minutes:.0f}",
        seed=seed,
        commit=commit,
        python=platform.python_version(),
    )


if __name__ == "__main__":
    main()
