"""`ackback init`: the project that it makes works at once."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.integration.conftest import Process, wait_until

Ackback = Callable[..., subprocess.CompletedProcess[str]]


def test_a_new_project_works(
    ackback: Ackback, start: Callable[..., Process], tmp_path: Path, environment: dict[str, str], rabbitmq_url: str
) -> None:
    made = ackback("init", "shop")
    assert made.returncode == 0, made.stderr
    shop = tmp_path / "shop"
    written = re.findall(r"wrote (.*)", made.stdout)
    assert {str(path.relative_to(tmp_path)) for path in shop.rglob("*") if path.is_file()} == set(written)
    assert made.stdout.endswith("next: cd shop, and see README.md\n")
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=shop, env=environment, capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "3 passed" in tested.stdout
    assert list(yaml.safe_load((shop / "compose.yaml").read_text())["services"]) == ["rabbitmq"]

    config = ["--config", str(shop / "config.toml")]
    environment["ACKBACK_BROKER__URL"] = rabbitmq_url
    daemon = start("run", *config, ACKBACK_BROKER__URL=rabbitmq_url)
    daemon.wait_for("ready: 3 services")
    readme = (shop / "README.md").read_text()
    commands = {shlex.split(one)[0]: shlex.split(one) for one in re.findall(r"\$ ackback (.*?) +#", readme)}
    assert list(commands) == ["check", "run", "call", "send", "trace"]
    assert ackback(*commands["check"], *config).returncode == 0
    assert ackback(*commands["call"], *config).stdout == '{"item": "tea", "total": "2.50"}\n'
    cid = ackback(*commands["send"], *config).stdout.strip()
    daemon.wait_for("tea costs 2.50")
    wait_until(lambda: "callback shop.priced  ok" in ackback("trace", cid, *config).stdout)


def test_no_file_is_overwritten(ackback: Ackback, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "config.toml").write_text("mine")
    done = ackback("init", "shop")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ackback: nothing was written: there is {Path('shop') / 'config.toml'} already\n"
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["config.toml"]
    (tmp_path / "file").write_text("")
    done = ackback("init", "file")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
