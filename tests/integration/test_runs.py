"""Runs on the command line: what a person types, and what is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PRICE, Process, wait_until
from tests.rabbitmq import free_port

SHOP = """
    import asyncio
    from typing import Any

    from broker import Service


    class Checkout(Service):
        name = "shop.checkout"
        durable = True

        async def handle(self, item: str) -> Any:
            price = await self.call("shop.price", item)
            async with asyncio.timeout(3600):
                by = await self.wait_for("approved")
            return {"price": price, "by": by}
"""

Run = Callable[..., Any]


@pytest.fixture
def shop(project: Callable[..., Path], start: Callable[..., Process]) -> Process:
    project({"shop.py": SHOP, "price.py": PRICE})
    process = start("run")
    process.wait_for("ready: ")
    return process


def state_of(ackback: Run, cid: str) -> str | None:
    lines = [json.loads(line) for line in ackback("runs", "list", "--json").stdout.splitlines()]
    return next((one["state"] for one in lines if one["cid"] == cid), None)


def test_a_run_is_watched_told_and_ended(shop: Process, ackback: Run) -> None:
    cid = ackback("send", "shop.checkout", "tea").stdout.strip()
    wait_until(lambda: "wait_for" in ackback("runs", "show", cid).stdout)
    listed = ackback("runs", "list", "--service", "shop.checkout", "--state", "running")
    assert re.match(r"BEGAN .*\n[\d-]{10} [\d:]{8}  running  .*  shop\.checkout  ", listed.stdout)
    assert listed.stdout.endswith(f"  {cid}\n")
    told = ackback("runs", "show", cid).stdout
    assert re.search(r"1 call shop\.price tea  \(.*/services/shop\.py:\d+\)\n +→ 2\.5 after ", told)
    assert re.search(r'3 wait_for "approved"  \(.*/services/shop\.py:\d+\)\n +… waits\n', told)
    assert re.search(r"2 sleep 3600 s  \(.*\)\n +… until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", told)
    done = ackback("signal", cid, "approvd", "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wait_until(lambda: 'signal "approvd" came, and is kept: "x"' in ackback("runs", "show", cid).stdout)
    assert ackback("signal", cid, "approved", '{"by": "Ann"}').returncode == 0
    wait_until(lambda: state_of(ackback, cid) == "done")
    told = ackback("runs", "show", cid).stdout
    assert '→ {"by":"Ann"} after ' in told
    assert re.search(r"2 sleep 3600 s  \(.*\)\n +· left after ", told)
    late = ackback("signal", cid, "approved", "x")
    assert late.returncode == 1
    assert re.fullmatch(rf"ackback: the run of CID '{cid}' is over: done at [\d-]{{10}} [\d:]{{8}} UTC\n", late.stderr)


def test_a_run_that_failed_and_one_that_is_cancelled(shop: Process, ackback: Run) -> None:
    failed = ackback("send", "shop.checkout", "boat").stdout.strip()
    cancelled = ackback("send", "shop.checkout", "tea").stdout.strip()
    wait_until(lambda: state_of(ackback, failed) == "failed")
    shop.wait_for(f"failed: RemoteError: shop.price: LookupError: no <b>boats</b> (CID {failed})")
    told = ackback("runs", "show", failed).stdout
    assert "✗ LookupError: no <b>boats</b> after " in told
    assert "attempt 1 failed (error): RemoteError: shop.price: LookupError: no <b>boats</b>" in told
    assert ackback("runs", "cancel", cancelled).returncode == 0
    wait_until(lambda: state_of(ackback, cancelled) == "cancelled")
    assert " is over: cancelled at " in ackback("runs", "cancel", cancelled).stderr


def test_what_is_mistyped_is_said(project: Callable[..., Path], start: Callable[..., Process], ackback: Run) -> None:
    project({"shop.py": SHOP, "price.py": PRICE})
    before = ackback("runs", "list")
    assert before.returncode == 2
    assert re.fullmatch(
        r"ackback: there is no store .*/ackback\.db yet: no daemon with durable services .*\n", before.stderr
    )
    start("run").wait_for("ready: ")
    for command in (["runs", "show", "nope"], ["signal", "nope", "approved"], ["runs", "cancel", "nope"]):
        done = ackback(*command)
        assert done.returncode == 1
        assert done.stderr.startswith(
            "ackback: the store has no run of CID 'nope': it ended long ago ([store] keep), or"
        )
    assert ackback("runs", "list").stdout == "no runs\n"
    state = ackback("runs", "list", "--state", "runing")
    assert state.returncode == 2
    assert "'runing' is not one of 'running', 'failing', 'failed', 'done', 'cancelled'" in state.stderr
    memory = ackback("runs", "list", ACKBACK_STORE__URL="memory")
    assert memory.stderr == "ackback: store.url is memory: what is there only its own process can see\n"
    former = ackback("services", ACKBACK_IDEMPOTENCY__STORE="memory")
    assert former.stderr == "ackback: the environment: ACKBACK_IDEMPOTENCY__STORE is ACKBACK_STORE__URL now\n"


def test_the_former_section_is_named_with_what_takes_its_place(project: Callable[..., Path], ackback: Run) -> None:
    project({"shop.py": SHOP, "price.py": PRICE}, "[idempotency]\nstore = 'memory'\n")
    done = ackback("services")
    assert done.returncode == 2
    assert "idempotency.store is store.url now: say it in [store]" in done.stderr
    assert "idempotency.keep is store.keep now" in done.stderr


def test_a_store_of_a_later_version_is_left_alone(project: Callable[..., Path], ackback: Run) -> None:
    import sqlite3

    folder = project({"shop.py": SHOP, "price.py": PRICE})
    with sqlite3.connect(folder / "ackback.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    done = ackback("run")
    assert done.returncode == 2
    assert "cannot be used: it was made by a later version of ackback (its tables are of version 99)" in done.stderr


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/proc/nowhere/ackback.db", "/proc/nowhere/ackback.db cannot be used: unable to open database file"),
        ("{folder}/config.toml", "config.toml cannot be used: file is not a database"),
        ("{folder}", "cannot be used: unable to open database file"),
    ],
)
def test_a_store_that_cannot_be_written(project: Callable[..., Path], ackback: Run, place: str, why: str) -> None:
    folder = project({"shop.py": SHOP, "price.py": PRICE})
    url = f"sqlite://{place.format(folder=folder)}"
    (folder / "config.toml").write_text((folder / "config.toml").read_text() + f'[store]\nurl = "{url}"\n')
    done = ackback("run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


def test_a_store_that_is_not_there(project: Callable[..., Path], start: Callable[..., Process], ackback: Run) -> None:
    """Daemons start, as it may come: what needs it waits in the broker."""
    project({"shop.py": SHOP, "price.py": PRICE}, f'[store]\nurl = "postgresql://127.0.0.1:{free_port()}/nowhere"\n')
    process = start("run")
    process.wait_for("ready: ")
    ackback("send", "shop.checkout", "tea")
    process.wait_for("messages of durable services wait until it works")
    assert ackback("call", "shop.price", "tea").stdout == "2.5\n"
    listed = ackback("runs", "list")
    assert listed.returncode == 1
    assert "connection" in listed.stderr and listed.stderr.startswith("ackback: ")
    assert "Traceback" not in listed.stderr + "\n".join(process.lines)
