"""What the daemon that fires knows: every schedule, what of it has been dealt with, and what people have said about it. It does no I/O."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import datetime
from itertools import islice

from broker.protocol.schedules import Announcement, Command, Entry, Line, Plan, State
from broker.schedule import Schedule, due_times, parse

TOLD_NEXT = 3


class Timetable:
    """The schedules by their services' names. Times are aware; `number` counts the states that were kept, and `since` is when this daemon
    was there to fire."""

    def __init__(self, since: datetime) -> None:
        self.number = 0
        self._since = since
        self.entries: dict[str, Entry] = {}
        self._schedules: dict[str, Schedule] = {}
        self._next: dict[str, datetime] = {}

    def adopt(self, state: State) -> None:
        """Go on from what another has kept; what is announced here by younger daemons remains."""
        for name, theirs in state.entries.items():
            mine = self.entries.get(name)
            if mine is not None and mine.since > theirs.since:
                theirs.plan, theirs.since = mine.plan, mine.since
            self._enter(name, theirs)
        self.number = max(self.number, state.number)

    def announce(self, announced: Announcement, now: datetime) -> None:
        """Take a daemon at its word, but for what a younger one has said. What was due before is not made up for."""
        for name, plan in announced.plans.items():
            known = self.entries.get(name)
            if known is not None and known.since > announced.since:
                continue
            if plan is None:
                self._remove(name)
            elif known is None:
                self._enter(name, Entry(plan=plan, since=announced.since, until=now))
            else:
                is_other = plan.schedule != known.plan.schedule
                changes = {"plan": plan, "since": announced.since, **({"until": now} if is_other else {})}
                self._enter(name, known.model_copy(update=changes))

    def obey(self, command: Command, now: datetime) -> None:
        """Pause, resume or drop.

        Raises:
            LookupError: there is no such schedule.
        """
        entry = self.named(command.service)
        if command.command == "drop":
            self._remove(command.service)
        elif command.command == "pause":
            entry.paused = True
            self._next.pop(command.service, None)
        elif command.command == "resume" and entry.paused:
            entry.paused, entry.until = False, now
            self._enter(command.service, entry)

    def named(self, service: str) -> Entry:
        try:
            return self.entries[service]
        except KeyError:
            near = difflib.get_close_matches(service, self.entries, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise LookupError(f"{service!r} has no schedule{hint}") from None

    def state(self) -> State:
        return State(number=self.number, entries=self.entries)

    def next_due(self) -> datetime | None:
        """When something is due next; that may be past."""
        return min(self._next.values(), default=None)

    def due(self, now: datetime) -> Iterator[tuple[str, Plan, list[datetime]]]:
        """What is to be fired now, once: then `fired` or `failed` is to be called."""
        for name in [name for name, due in self._next.items() if due <= now]:
            entry = self.entries[name]
            del self._next[name]
            if times := due_times(self._schedules[name], entry.until, now, self._since, entry.plan.missed):
                yield name, entry.plan, times
            else:  # what was missed is skipped
                entry.until = now
                self._enter(name, entry)

    def fired(self, name: str, due: datetime) -> None:
        """A service's request for a due time, and all before it, are accepted."""
        if (entry := self.entries.get(name)) is not None:
            entry.until, entry.fired, entry.problem = max(due, entry.until), due, None
            self._enter(name, entry)

    def failed(self, name: str, problem: str, again: datetime) -> None:
        """They were not; another try is to be made."""
        if (entry := self.entries.get(name)) is not None:
            entry.problem = problem
            if not entry.paused:
                self._next[name] = again

    def lines(self, now: datetime) -> list[Line]:
        """What is told of all of them, in order."""
        return [self._line(name, entry, now) for name, entry in sorted(self.entries.items())]

    def _line(self, name: str, entry: Entry, now: datetime) -> Line:
        schedule = None if entry.paused else self._schedules.get(name)
        return Line(
            service=name,
            schedule=entry.plan.schedule,
            missed=entry.plan.missed,
            paused=entry.paused,
            last=entry.fired,
            next=[] if schedule is None else list(islice(schedule.after(max(now, entry.until)), TOLD_NEXT)),
            problem=entry.problem,
        )

    def _enter(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        self._next.pop(name, None)
        try:
            schedule = self._schedules[name] = parse(entry.plan.schedule)
        except ValueError as error:
            entry.problem = str(error)
            self._schedules.pop(name, None)
            return
        if not entry.paused and (due := next(schedule.after(entry.until), None)):
            self._next[name] = due

    def _remove(self, name: str) -> None:
        for known in (self.entries, self._schedules, self._next):
            known.pop(name, None)
