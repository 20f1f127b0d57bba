"""The benchmark runs, with all that it compares; how fast is not asked here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.invocations import CONTENDERS

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = ROOT / ".venv-bench" / "bin" / "python"


def test_every_contender_gets_every_callback(rabbitmq_url: str) -> None:
    assert PYTHON.exists(), "`make .venv-bench/done` installs what the benchmark compares with"
    command = [PYTHON, "bench/invocations.py", "--count", "200", "--rounds", "1", "--no-report"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"AMQP_URL": rabbitmq_url}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in CONTENDERS:
        assert f"\n| {name} |" in done.stdout
