"""What nobody has asked, but somebody should know: pure functions of what has been seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from broker.protocol.names import DEAD_LETTERS
from broker.recording.spans import span
from broker.recording.summary import DaemonLine, ServiceLine
from broker.transport.interface import QueueState

BAD, ODD = "bad", "odd"
PATIENCE = 20.0
"""Seconds for which a service with messages may finish nothing, however quick it usually is."""
TIMES_USUAL = 3.0


class Concern(NamedTuple):
    """`grade` is `bad` or `odd`, `word` says in one word what it is, `link` where to look."""

    grade: str
    word: str
    text: str
    link: str


class Backlog(NamedTuple):
    """A service that has had messages for all the time since `since`. `finished` is when it ended a handling last (µs since 1970), `usual`
    how many seconds nearly all of its handlings take; None: not known."""

    since: int
    finished: int
    usual: float | None


def concerns(
    services: Sequence[ServiceLine],
    daemons: Sequence[DaemonLine],
    queues: Mapping[str, QueueState | None],
    backlogs: Mapping[str, Backlog],
    now: int,
) -> list[Concern]:
    """The worst first."""
    found = [
        *_silent(daemons, now),
        *_orphaned(queues, daemons),
        *_stalled(services, backlogs, now),
        *_of_several_codes(daemons),
        *_of_several_versions(daemons),
        *_dead_letters(queues),
    ]
    return sorted(found, key=lambda one: one.grade)


def of_the_record(problem: str | None, progress: float | None) -> Concern:
    """Why nothing else can be said."""
    if problem is not None:
        return Concern(BAD, "record", f"it is not being read: {problem}", "/daemons")
    return Concern(
        ODD, "record", f"it is being read, {100 * (progress or 0.0):.0f} % so far: what is newer is still to come", "/"
    )


def _silent(daemons: Iterable[DaemonLine], now: int) -> Iterator[Concern]:
    silent = sorted((one for one in daemons if one.silent), key=lambda one: -one.seen)
    if len(silent) > 1:
        text = f"{len(silent)} daemons have not been heard of, and have not said goodbye, the last for {_since(silent[0], now)}"
        yield Concern(BAD, "silent", text, "/daemons")
    elif silent:
        text = f"{silent[0].name} was last heard of {_since(silent[0], now)} ago, and has not said goodbye"
        yield Concern(BAD, "silent", text, "/daemons")


def _since(daemon: DaemonLine, now: int) -> str:
    return span((now - daemon.seen) // 1_000_000 * 1_000_000)


def _orphaned(queues: Mapping[str, QueueState | None], daemons: Sequence[DaemonLine]) -> Iterator[Concern]:
    hosted = {name for one in daemons if one.hosts for name in one.services}
    for name, state in sorted(queues.items()):
        if state and state.ready and not state.consumers and name not in hosted and name != DEAD_LETTERS:
            text = f"{_messages(state.ready)} for {name}, and no daemon hosts it"
            yield Concern(BAD, "nobody", text, _service(name))


def _stalled(services: Iterable[ServiceLine], backlogs: Mapping[str, Backlog], now: int) -> Iterator[Concern]:
    for one in services:
        backlog = backlogs.get(one.name)
        if backlog is None or not one.daemons:
            continue
        standing = (now - max(backlog.since, backlog.finished)) / 1e6
        if standing > max(PATIENCE, TIMES_USUAL * (backlog.usual or 0.0)):
            usual = f"; it usually takes {span(int(backlog.usual * 1e6))}" if backlog.usual is not None else ""
            text = f"{one.name} has finished nothing for {span(int(standing * 1e6))} while messages wait{usual}"
            yield Concern(BAD, "stalled", text, _service(one.name))


def _of_several_codes(daemons: Iterable[DaemonLine]) -> Iterator[Concern]:
    codes: dict[str, dict[str, str]] = {}
    for one in daemons:
        if one.hosts:
            for name, code in one.services.items():
                codes.setdefault(name, {}).setdefault(code, one.name)
    for name, by_code in sorted(codes.items()):
        if len(by_code) > 1:
            text = f"{name} is not the same code everywhere (module, class or input): {' and '.join(by_code.values())} differ"
            yield Concern(ODD, "two codes", text, _service(name))


def _of_several_versions(daemons: Iterable[DaemonLine]) -> Iterator[Concern]:
    versions = sorted({one.version for one in daemons if one.hosts})
    if len(versions) > 1:
        yield Concern(ODD, "versions", f"daemons run different versions of ackback: {', '.join(versions)}", "/daemons")


def _dead_letters(queues: Mapping[str, QueueState | None]) -> Iterator[Concern]:
    state = queues.get(DEAD_LETTERS)
    if state and state.ready:
        yield Concern(ODD, "dead letters", f"{state.ready:,} to be replayed or dropped", "/failures")


def _messages(number: int) -> str:
    return "1 message waits" if number == 1 else f"{number:,} messages wait"


def _service(name: str) -> str:
    return f"/services/{quote(name, safe='')}"
