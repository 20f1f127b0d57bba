"""Schedules on the command line: what a person types, and what is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Process, wait_until

REPORTS = """
    from broker import Service, cron, every

    class Nightly(Service):
        name = "reports.nightly"
        schedule = cron("0 3 * * mon-fri", tz="Europe/Amsterdam")
        payload = {"full": True}

        async def handle(self, what: dict[str, bool]) -> str:
            self.logger.info("the report is written: %s", what)
            return "written"

    class Poll(Service):
        name = "orders.poll"
        schedule = every(minutes=5)
        missed = "skip"

        async def handle(self) -> None:
            pass
"""

Run = Callable[..., Any]


@pytest.fixture
def reports(project: Callable[..., Path], start: Callable[..., Process]) -> Process:
    project({"reports.py": REPORTS}, '[service."orders.poll"]\nschedule = "every 10 minutes"\n')
    process = start("run")
    process.wait_for("what is scheduled is fired here (2)")
    return process


def test_schedules_are_listed_paused_and_fired(reports: Process, ackback: Run) -> None:
    lines = ackback("schedules", "list").stdout.splitlines()
    assert lines[0].split() == ["SERVICE", "SCHEDULE", "MISSED", "LAST", "(UTC)", "NEXT", "(UTC)"]
    assert re.fullmatch(r"orders.poll +every 10 minutes +skip +- +\d{4}-\d\d-\d\d \d\d:\d0:00", lines[1])
    assert re.fullmatch(
        r"reports.nightly +0 3 \* \* mon-fri Europe/Amsterdam +once +- +\d{4}-\d\d-\d\d 0[12]:00:00", lines[2]
    )

    cid = ackback("schedules", "fire", "reports.nightly").stdout.strip()
    assert re.fullmatch(r"reports\.nightly/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", cid)
    reports.wait_for("the report is written: {'full': True}")
    wait_until(lambda: "reports.nightly" in ackback("trace", cid).stdout)

    assert ackback("schedules", "pause", "orders.poll").stdout == "orders.poll is paused\n"
    listed = [json.loads(line) for line in ackback("schedules", "list", "--json").stdout.splitlines()]
    assert [(one["service"], one["paused"], len(one["next"])) for one in listed] == [
        ("orders.poll", True, 0),
        ("reports.nightly", False, 3),
    ]
    assert "paused" in ackback("schedules", "list").stdout
    resumed = ackback("schedules", "resume", "orders.poll").stdout
    assert re.fullmatch(r"orders\.poll is fired again, next at \d{4}-\d\d-\d\d \d\d:\d0:00 UTC\n", resumed)
    assert ackback("schedules", "drop", "orders.poll").stdout == "orders.poll has no schedule any more\n"
    assert "orders.poll" not in ackback("schedules", "list").stdout


def test_a_service_that_is_not_there(reports: Process, ackback: Run) -> None:
    result = ackback("schedules", "pause", "reports.nightyl")
    assert result.returncode == 1
    assert result.stderr == (
        "ackback: ackback.schedules failed: No such schedule: 'reports.nightyl' has no schedule; did you mean 'reports.nightly'?\n"
    )


def test_nobody_is_there(project: Callable[..., Path], start: Callable[..., Process], ackback: Run) -> None:
    project({"reports.py": REPORTS})
    result = ackback("schedules", "list")
    assert (result.returncode, result.stderr) == (
        1,
        "ackback: no daemon whose services have a schedule has been here yet\n",
    )
    process = start("run")
    process.wait_for("what is scheduled is fired here (2)")
    process.end()
    result = ackback("schedules", "list")
    assert (result.returncode, result.stderr) == (
        1,
        "ackback: no daemon is running that knows of schedules: start one (ackback run)\n",
    )


@pytest.mark.parametrize(
    ("attributes", "config", "sentence"),
    [
        (
            'schedule = "0 25 * * *"',
            "",
            "services/reports.py:3): schedule: '0 25 * * *' is no cron expression: bad hour; it has minute, hour, day of month, "
            "month and day of week, as in '0 3 * * mon-fri'",
        ),
        (
            'schedule = cron("0 3 * * *", tz="Europe/Amsterdm")',
            "",
            "there is no time zone 'Europe/Amsterdm'; use a name of IANA's, such as Europe/Amsterdam",
        ),
        ("schedule = every(seconds=0.5)", "", "every() takes a whole number of seconds, from 1 to a year, not 0.5"),
        ("schedule = 5", "", "`schedule` must be every(…), cron(…), or a string like 'every 5 minutes', not 5"),
        (
            'schedule = every(minutes=1); missed = "never"',
            "",
            "missed",
        ),
        (
            "schedule = every(minutes=1)",
            "",
            "`handle` does not take what its schedule sends, payload = ''",
        ),
        (
            "schedule = every(minutes=1); payload = object()",
            "",
            "`payload` cannot be sent as JSON",
        ),
        (
            "payload = 5",
            '[service."report"]\nschedule = "every fortnight"\n',
            "config.toml: service.report.schedule: 'every fortnight' is no schedule; write it like 'every 5 minutes': second, minute, hour "
            "or day",
        ),
        (
            "payload = 5",
            '[defaults]\nschedule = "every minute"\n',
            'schedule is said of one service: [service."NAME"] schedule = …',
        ),
    ],
)
def test_a_bad_schedule_stops_the_start_up_and_says_where(
    project: Callable[..., Path], ackback: Run, attributes: str, config: str, sentence: str
) -> None:
    project(
        {
            "reports.py": f"""
    from broker import Service, cron, every
    class Report(Service):
        name = "report"
        {attributes}
        async def handle(self, number: int) -> None: ...
"""
        },
        config,
    )
    result = ackback("run")
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "reports.py" in result.stderr or "config.toml" in result.stderr
    assert "Traceback" not in result.stderr
