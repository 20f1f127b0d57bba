"""When something is due, and what becomes of what was missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import cron, every
from broker.process.timetable import Timetable
from broker.protocol.schedules import Announcement, Command, Plan, State, cid_of
from broker.schedule import AT_ONCE, Schedule, due_times, parse

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

moments = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
schedules = st.one_of(
    st.integers(1, 100_000).map(lambda seconds: every(seconds=seconds)),
    st.sampled_from(
        [
            "* * * * *",
            "*/7 * * * *",
            "0 3 * * mon-fri",
            "30 2 * * * Europe/Amsterdam",
            "*/30 2,3 * * * America/New_York",
            "0 0 L * *",
            "*/20 * * * * *",
        ]
    ).map(parse),
)


def local(schedule: Schedule, day: datetime, count: int) -> list[str]:
    """What is due from a day's beginning on, by the clocks there."""
    return [
        due.astimezone(AMSTERDAM).strftime("%d %H:%M %Z")
        for due in islice(schedule.after(day - timedelta(seconds=1)), count)
    ]


@pytest.mark.parametrize(
    ("day", "daily", "night", "hourly"),
    [
        pytest.param(
            datetime(2026, 3, 28, tzinfo=AMSTERDAM),
            ["28 02:30 CET", "29 03:00 CEST", "30 02:30 CEST"],
            datetime(2026, 3, 29, 1, tzinfo=AMSTERDAM),
            ["29 01:00 CET", "29 03:00 CEST", "29 04:00 CEST"],
            id="forward-leaves-nothing-out",
        ),
        pytest.param(
            datetime(2026, 10, 24, tzinfo=AMSTERDAM),
            ["24 02:30 CEST", "25 02:30 CEST", "26 02:30 CET"],
            datetime(2026, 10, 25, 2, tzinfo=AMSTERDAM),
            ["25 02:00 CEST", "25 02:00 CET", "25 03:00 CET"],
            id="back-has-nothing-due-twice",
        ),
    ],
)
def test_the_clock_goes(day: datetime, daily: list[str], night: datetime, hourly: list[str]) -> None:
    assert local(cron("30 2 * * *", tz="Europe/Amsterdam"), day, 3) == daily
    assert local(cron("0 * * * *", tz="Europe/Amsterdam"), night, 3) == hourly
    assert local(every(hours=1), night, 3) == hourly


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("every 5 minutes", "every 5 minutes"),
        ("Every  minute", "every 1 minute"),
        ("every 120 seconds", "every 2 minutes"),
        ("every 36 hours", "every 36 hours"),
        ("0 3 * * mon-fri", "0 3 * * mon-fri"),
        ("0 3 * * mon-fri UTC", "0 3 * * mon-fri"),
        ("0  3 * * MON Europe/Amsterdam", "0 3 * * MON Europe/Amsterdam"),
        ("*/10 * * * * * America/Argentina/Buenos_Aires", "*/10 * * * * * America/Argentina/Buenos_Aires"),
    ],
)
def test_schedules_as_text(text: str, shown: str) -> None:
    assert str(parse(text)) == shown
    assert parse(shown) == parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("every fortnight", "write it like 'every 5 minutes'"),
        ("every 0 minutes", "from 1 to a year"),
        ("every 400 days", "from 1 to a year"),
        ("daily", "wrong number of fields; it has minute, hour"),
        ("61 * * * *", "bad minute"),
        ("0 3 * * mon-fry", "bad day-of-week"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 3 * * * Europe/Amsterdm", "there is no time zone 'Europe/Amsterdm'"),
        ("0 3 * * * ../../etc/passwd", "is no cron expression"),
        ("", "wrong number of fields"),
    ],
)
def test_what_is_no_schedule(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


@given(schedules, moments)
def test_due_times_are_the_same_forwards_and_backwards(schedule: Schedule, moment: datetime) -> None:
    due = list(islice(schedule.after(moment), 5))
    assert due == sorted(set(due))
    assert due[0] > moment
    assert all(one.microsecond == 0 for one in due)
    for before, after in pairwise(due):
        assert schedule.last(before) == before
        assert schedule.last(after - timedelta(microseconds=1)) == before
    assert schedule.last(moment) <= moment


@given(schedules, moments, *[st.timedeltas(timedelta(0), timedelta(hours=3))] * 2)
def test_what_was_missed(schedule: Schedule, until: datetime, outage: timedelta, running: timedelta) -> None:
    since = until + outage
    now = since + running
    missed, late = list[datetime](), list[datetime]()
    for due in schedule.after(until):
        if due > now:
            break
        (missed if due <= since else late).append(due)
    assert due_times(schedule, until, now, since, "all") == (missed + late)[:AT_ONCE]
    assert due_times(schedule, until, now, since, "once") == missed[-1:] + late[:AT_ONCE]
    assert due_times(schedule, until, now, since, "skip") == late[:AT_ONCE]


def test_cids_are_the_services_and_their_due_times() -> None:
    due = datetime(2026, 3, 29, 3, tzinfo=AMSTERDAM)
    assert cid_of("reports.nightly", due) == "reports.nightly/2026-03-29T01:00:00Z"


def announced(since: float, schedule: str | None, name: str = "report") -> Announcement:
    return Announcement(since=since, plans={name: None if schedule is None else Plan(schedule=schedule)})


def test_the_younger_daemon_is_right() -> None:
    timetable = Timetable(NOON)
    timetable.announce(announced(2.0, "every 5 minutes"), NOON)
    timetable.announce(announced(1.0, "every 1 hour"), NOON)
    assert timetable.entries["report"].plan.schedule == "every 5 minutes"
    timetable.announce(announced(1.0, None), NOON)
    assert "report" in timetable.entries
    timetable.announce(announced(3.0, None), NOON)
    assert timetable.entries == {}
    assert timetable.next_due() is None


def test_another_schedule_makes_up_for_nothing() -> None:
    timetable = Timetable(NOON)
    timetable.announce(announced(1.0, "every 1 hour"), NOON)
    later = NOON + timedelta(hours=5, minutes=1)
    timetable.announce(announced(2.0, "every 1 minute"), later)
    assert list(timetable.due(later)) == []
    assert timetable.next_due() == later + timedelta(minutes=1)


def test_what_is_paused_is_not_due_and_is_not_made_up_for() -> None:
    timetable = Timetable(NOON)
    timetable.announce(announced(1.0, "every 1 minute"), NOON)
    timetable.obey(Command(command="pause", service="report"), NOON)
    later = NOON + timedelta(hours=1)
    assert list(timetable.due(later)) == []
    assert timetable.lines(later)[0].next == []
    timetable.obey(Command(command="resume", service="report"), later)
    assert list(timetable.due(later)) == []
    assert timetable.next_due() == later + timedelta(minutes=1)
    with pytest.raises(LookupError, match="'nobody' has no schedule"):
        timetable.obey(Command(command="pause", service="nobody"), later)


def test_what_was_kept_is_gone_on_from() -> None:
    before = Timetable(NOON)
    before.announce(announced(1.0, "every 1 minute"), NOON)
    before.announce(announced(1.0, "every 1 minute", "paused"), NOON)
    before.obey(Command(command="pause", service="paused"), NOON)
    minute = NOON + timedelta(minutes=1)
    assert [(name, due) for name, _, due in before.due(minute)] == [("report", [minute])]
    assert list(before.due(minute)) == []  # it is under way
    before.fired("report", minute)
    before.number += 1

    after = Timetable(NOON)
    after.announce(announced(2.0, "every 2 minutes"), minute)
    after.adopt(State.model_validate_json(before.state().model_dump_json()))
    assert after.number == 1
    assert after.entries["report"].plan.schedule == "every 2 minutes"
    assert after.entries["report"].fired == minute
    assert after.entries["paused"].paused


def test_what_could_not_be_fired_is_tried_again() -> None:
    timetable = Timetable(NOON)
    timetable.announce(announced(1.0, "every 1 minute"), NOON)
    minute, again = NOON + timedelta(minutes=1), NOON + timedelta(minutes=1, seconds=5)
    assert [due for _, _, due in timetable.due(minute)] == [[minute]]
    timetable.failed("report", "nobody hosts it", again)
    assert timetable.lines(minute)[0].problem == "nobody hosts it"
    assert timetable.next_due() == again
    assert [due for _, _, due in timetable.due(again)] == [[minute]]
    timetable.fired("report", minute)
    assert timetable.lines(again)[0].problem is None
