"""Three daemons, of which the one that fires is killed again and again: every due time is there."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pika
import pytest

from broker.protocol.names import SCHEDULES
from tests.faults.nodes import Node, cluster
from tests.faults.scheduled_services import LEDGER
from tests.faults.stage import DaemonProcess, Stage

KILLS = int(os.environ.get("ACKBACK_KILLS", "5"))
FIRES = "what is scheduled is fired here"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with cluster(1) as (one,):
        yield one


class Watch:
    """Knows which daemon fires: the one that has said so last."""

    def __init__(self, daemons: list[DaemonProcess]) -> None:
        self._daemons = daemons
        self._said = [0] * len(daemons)

    def next_active(self) -> DaemonProcess:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for number, daemon in enumerate(self._daemons):
                said = daemon.log.read_text().count(FIRES)
                if said > self._said[number]:
                    self._said[number] = said
                    return daemon
            time.sleep(0.02)
        raise AssertionError("nobody fires")


@pytest.mark.parametrize("transport", ["lane", "aio-pika"])
def test_no_due_time_is_missing_though_who_fires_is_killed(transport: str, node: Node, tmp_path: Path) -> None:
    dice = random.Random(1)
    stage = Stage([node.url], transport, dice)
    ledger = tmp_path / "ledger"
    ledger.touch()
    stage.environment[LEDGER] = str(ledger)
    cids = list[str]()
    try:
        (stage.path / "config.toml").write_text(
            f"[broker]\nurl = '{node.url}'\ntransport = '{transport}'\n"
            "[services]\npaths = ['tests.faults.scheduled_services']\n"
        )
        for _ in range(3):
            daemon = DaemonProcess(stage, (), again=True)
            stage.daemons.append(daemon)
        for daemon in stage.daemons:
            daemon.wait_ready()
        watch = Watch(stage.daemons)
        for _ in range(KILLS):
            active = watch.next_active()
            time.sleep(dice.uniform(0.1, 3.0))  # a kill at any moment of it
            wait_for_all(stage.daemons)
            active.kill()
        watch.next_active()
        last = datetime.now().astimezone()
        deadline = time.monotonic() + PATIENCE
        while not (cids := ledger.read_text().split()) or due_of(max(cids)) <= last:
            assert time.monotonic() < deadline, stage.logs()
            time.sleep(0.05)
    finally:
        stage.close()
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
            connection.channel().queue_delete(SCHEDULES)
    due = sorted({due_of(cid) for cid in ledger.read_text().split()})
    missing = [one for one in seconds(due[0], due[-1]) if one not in due]
    repeats = sum(count - 1 for count in Counter(cids).values())
    print(f"{transport}: {KILLS} kills, {len(due)} due times, {repeats} of them twice")
    assert missing == []


def wait_for_all(daemons: list[DaemonProcess]) -> None:
    """Somebody is to be there, always: else what is due then is missed."""
    for daemon in daemons:
        deadline = time.monotonic() + PATIENCE
        while daemon.log.read_text().count("ready: ") <= len(daemon.exit_codes):
            assert time.monotonic() < deadline, daemon.log.read_text()
            time.sleep(0.02)


def due_of(cid: str) -> datetime:
    return datetime.fromisoformat(cid.removeprefix("tick/"))


def seconds(first: datetime, last: datetime) -> list[datetime]:
    return [first + timedelta(seconds=one) for one in range(round((last - first).total_seconds()) + 1)]
