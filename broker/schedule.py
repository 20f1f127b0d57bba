"""When a service is invoked by itself: `every(minutes=5)`, or `cron("0 3 * * mon-fri", tz="Europe/Amsterdam")`.

Due times are whole seconds, and follow from the schedule alone: whoever works them out finds the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
LONGEST = 366 * 86_400
AT_ONCE = 500
"""Due times that are made up for in one go."""

_EVERY = re.compile(r"every (?:(\d+) )?(second|minute|hour|day)s?", re.IGNORECASE)
_ZONE = re.compile(r"(?!(?:sun|mon|tue|wed|thu|fri|sat)\b)[a-z][a-z0-9_+-]*(?:/[a-z0-9_+-]+)*", re.IGNORECASE)
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Every:
    """Due whenever the time since 1970 (UTC) is a multiple of so many seconds: every five minutes is at :00, :05, :10."""

    seconds: int

    def __str__(self) -> str:
        unit, length = next((unit, length) for unit, length in reversed(UNITS.items()) if self.seconds % length == 0)
        return f"every {self.seconds // length} {unit}{'' if self.seconds == length else 's'}"

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The due times later than a moment, the first one first, without end, in UTC."""
        step = timedelta(seconds=self.seconds)
        due = self.last(moment)
        while True:
            due += step
            yield due

    def last(self, moment: datetime) -> datetime:
        """The last due time that is no later than a moment."""
        moment = moment.astimezone(UTC)  # two times of one zone are subtracted by its clock
        return moment - (moment - _EPOCH) % timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Cron:
    """Due as Debian's cron has it (https://github.com/cuu508/cronsim), by the clock of a time zone.

    A time that a change to daylight saving leaves out is made up for right after the change, and one that comes twice is due once, but
    for expressions that begin with a star in their minutes or hours: they go by the time that passes.
    """

    expression: str
    tz: str = "UTC"

    def __str__(self) -> str:
        return self.expression if self.tz == "UTC" else f"{self.expression} {self.tz}"

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The due times later than a moment, the first one first, in UTC. They end if there are no more within fifty years."""
        return (due.astimezone(UTC) for due in CronSim(self.expression, moment.astimezone(_zone(self.tz))))

    def last(self, moment: datetime) -> datetime:
        """The last due time that is no later than a moment."""
        later = moment + timedelta(seconds=1)
        backwards = CronSim(self.expression, later.astimezone(_zone(self.tz)), reverse=True)
        return next(due for one in backwards if (due := one.astimezone(UTC)) <= moment)


Schedule = Every | Cron


def every(*, seconds: int = 0, minutes: int = 0, hours: int = 0, days: int = 0) -> Schedule:
    """A schedule that is due every so often: `every(minutes=5)` at :00, :05, :10 and so on. The times are multiples since 1970 in UTC.

    Raises:
        ValueError: it is less than a second, more than a year, or no whole number of seconds.
    """
    total = seconds + 60 * minutes + 3600 * hours + 86_400 * days
    if total != int(total) or not 1 <= total <= LONGEST:
        raise ValueError(f"every() takes a whole number of seconds, from 1 to a year, not {total:g}")
    return Every(int(total))


def cron(expression: str, *, tz: str = "UTC") -> Schedule:
    """A schedule by a cron expression of five fields, or six, of which the first are the seconds; `tz` is an IANA time zone.

    Raises:
        ValueError: the expression or the time zone cannot be read, or it is never due.
    """
    if not isinstance(expression, str) or not isinstance(tz, str):
        raise ValueError("cron() takes an expression and a time zone, both strings")
    zone = _zone(tz)
    try:
        first = next(CronSim(expression, datetime.now(zone)), None)
    except CronSimError as error:
        what = str(error)
        why = what[0].lower() + what[1:]
        raise ValueError(
            f"{expression!r} is no cron expression: {why}; it has minute, hour, day of month, month and day of week, as in "
            "'0 3 * * mon-fri'"
        ) from None
    if first is None:
        raise ValueError(f"{expression!r} is never due")
    return Cron(" ".join(expression.split()), tz)


def parse(text: str) -> Schedule:
    """A schedule as configuration has it: `every 5 minutes`, or a cron expression with a time zone after it, or none for UTC.

    Raises:
        ValueError: it is neither.
    """
    text = " ".join(text.split())
    if found := _EVERY.fullmatch(text):
        return every(seconds=int(found[1] or 1) * UNITS[found[2].lower()])
    if text.lower().startswith("every"):
        raise ValueError(f"{text!r} is no schedule; write it like 'every 5 minutes': second, minute, hour or day")
    fields, _, last = text.rpartition(" ")
    if fields and _ZONE.fullmatch(last):
        return cron(fields, tz=last)
    return cron(text)


def due_times(schedule: Schedule, until: datetime, now: datetime, since: datetime, missed: str) -> list[datetime]:
    """What is due now and has not been dealt with, `until` having been: the first of it first, not more than `AT_ONCE`.

    What was due before `since`, when nobody was there to fire it, is missed: `once` has the last of it, `all` has every one, `skip` none.
    What is due after that may be late, but is not missed.
    """
    begin = until if missed == "all" else max(until, since)
    times = list(islice(takewhile(lambda due: due <= now, schedule.after(begin)), AT_ONCE))
    if missed == "once" and until < since and (last := schedule.last(since)) > until:
        return [last, *times]
    return times


def _zone(tz: str) -> ZoneInfo:
    try:
        return ZoneInfo(tz)
    except (LookupError, OSError, ValueError):
        raise ValueError(f"there is no time zone {tz!r}; use a name of IANA's, such as Europe/Amsterdam") from None
