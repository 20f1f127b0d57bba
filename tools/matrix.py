"""Run the unit and contract tests on every CPython from 3.11 on that is found on the path or under pyenv, each in a virtual environment
of its own; a line for each at the end. `--newest`: on the newest alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINORS = (11, 12, 13, 14)
VERSION = "import platform, venv, ensurepip; print(platform.python_version())"


def find() -> dict[int, tuple[Path, str]]:
    """For each minor version that is here, a Python and its full version."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in MINORS:
        on_path = [Path(path)] if (path := shutil.which(f"python3.{minor}")) else []
        for python in [*on_path, *sorted(pyenv.glob(f"3.{minor}.*/bin/python"))]:
            asked = subprocess.run([python, "-c", VERSION], capture_output=True, text=True)
            if asked.returncode == 0:  # not so for pyenv's shim of a version that is not chosen
                found[minor] = python, asked.stdout.strip()
                break
    return found


def test(python: Path, version: str) -> tuple[bool, str]:
    """Install and test; whether all passed, and what became of it."""
    folder = ROOT / f".venv-{version}"
    bin_ = folder / "bin"
    environment = os.environ | {"PYTEST_ADDOPTS": "-p no:cacheprovider"}
    processes = "0" if "AMQP_URL" in os.environ else "4"
    began = time.monotonic()
    for command in (
        [ROOT / "tools" / "venv", python, folder],
        [bin_ / "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt", "-e", ".[dev]"],
        [bin_ / "pytest", "-q", "-n", processes, "tests/unit", "tests/contract"],
    ):
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        if process.wait():
            return False, f"{Path(str(command[0])).name} failed: {last}"
    return True, f"{last}, {time.monotonic() - began:.0f} s with the installation"


def main() -> int:
    found = find()
    missing = [f"3.{minor}" for minor in MINORS if minor not in found]
    chosen = list(found.values())
    if sys.argv[1:] == ["--newest"]:
        chosen = chosen[-1:]
    results = []
    for python, version in chosen:
        print(f"\nPython {version}", flush=True)
        results.append((version, *test(python, version)))
    print()
    for version, _, summary in results:
        print(f"Python {version}: {summary}")
    if missing:
        print(f"not found here: {', '.join(missing)}")
    return 0 if results and all(passed for _, passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
