"""What the last minute was like: rates, times and failures of each service, and the daemons that live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from broker.protocol.events import DAEMON, HANDLED, Event
from broker.recording.histogram import Histogram

WINDOW = 60
"""Seconds."""
SILENT_AFTER = 12.0
"""Seconds without a sign of life: a daemon gives one every five."""
GONE_AFTER = 3600.0
"""Seconds after which nobody wants to hear of it any more."""
MOST_SECONDS = 10 * WINDOW
"""That are kept while what is old is gone through."""


class ServiceLine(NamedTuple):
    """One service. Rates are a second's, times in milliseconds (None: nothing was handled), `running` and `waiting` of all daemons."""

    name: str
    rate: float
    p50: float | None
    p95: float | None
    p99: float | None
    failures: int
    running: int
    waiting: int
    daemons: int


class DaemonLine(NamedTuple):
    """One daemon. `state` is what it said last, at `seen` (µs since 1970), `silent` whether it has not been heard of since, and did not say
    goodbye. `services` has by name what tells code apart (see `flight_recorder.description_of`)."""

    name: str
    host: str
    pid: int
    version: str
    state: str
    silent: bool
    seen: int
    resident: int
    lag_ms: float
    services: dict[str, str]

    @property
    def hosts(self) -> bool:
        """Whether it still handles its services' messages."""
        return not self.silent and self.state != "stopped"


@dataclass
class _Life:
    at: int
    event: Event = field(repr=False)


class Tally:
    """The handlings of one service within some time."""

    __slots__ = ("failures", "handled", "times")

    def __init__(self) -> None:
        self.handled = 0
        self.failures = 0
        self.times = Histogram()

    def add(self, took_ms: float, failed: bool) -> None:
        self.handled += 1
        self.failures += failed
        self.times.add(took_ms)

    def add_all(self, other: Tally) -> None:
        self.handled += other.handled
        self.failures += other.failures
        self.times.add_all(other.times)


class Summary:
    """Sums up events as they come. Times are in µs since 1970."""

    def __init__(self) -> None:
        self._seconds: dict[int, dict[str, Tally]] = {}
        self._daemons: dict[str, _Life] = {}
        self.last: dict[str, int] = {}
        """When the last handling of each service ended."""

    def add(self, event: Event, writer: str) -> None:
        if event["event"] == HANDLED:
            self.add_handling(event["t"], event["service"], event["took_ms"], event.get("outcome", "ok") != "ok")
        elif event["event"] == DAEMON and event["t"] >= (
            known.at if (known := self._daemons.get(writer)) is not None else 0
        ):
            self._daemons[writer] = _Life(event["t"], event)

    def add_handling(self, t: int, service: str, took_ms: float, failed: bool) -> None:
        self.last[service] = max(t, self.last.get(service, 0))
        second = self._seconds.setdefault(t // 1_000_000, {})
        if len(self._seconds) > MOST_SECONDS:
            del self._seconds[min(self._seconds)]
        tally = second.get(service)
        if tally is None:
            tally = second[service] = Tally()
        tally.add(took_ms, failed)

    def services(self, now: int) -> list[ServiceLine]:
        """Every service that a daemon hosts or that something was handled for, by name."""
        tallies = self._tallies(now // 1_000_000)
        hosted: dict[str, list[tuple[int, int]]] = {}
        for life in self._daemons.values():
            if life.event.get("state") != "stopped" and now - life.at < SILENT_AFTER * 1e6:
                for name, running, waiting, _ in services_of(life.event):
                    hosted.setdefault(name, []).append((running, waiting))
        lines = []
        for name in sorted({*tallies, *hosted}):
            tally, hosts = tallies.get(name) or Tally(), hosted.get(name, ())
            p50, p95, p99 = tally.times.percentiles((0.5, 0.95, 0.99))
            running, waiting = sum(one for one, _ in hosts), sum(one for _, one in hosts)
            rate = tally.handled / WINDOW
            lines.append(ServiceLine(name, rate, p50, p95, p99, tally.failures, running, waiting, len(hosts)))
        return lines

    def _tallies(self, second: int) -> dict[str, Tally]:
        """The last minute's, by service; what is older is forgotten."""
        for other in [one for one in self._seconds if not -WINDOW < one - second <= WINDOW]:
            del self._seconds[other]
        tallies: dict[str, Tally] = {}
        for seconds in self._seconds.values():
            for name, tally in seconds.items():
                tallies.setdefault(name, Tally()).add_all(tally)
        return tallies

    def daemons(self, now: int) -> list[DaemonLine]:
        """Those that live or fell silent lately, by name."""
        lines = []
        for name, life in sorted(self._daemons.items()):
            if now - life.at > GONE_AFTER * 1e6:
                del self._daemons[name]
                continue
            age = (now - life.at) / 1e6
            state = str(life.event.get("state"))
            lines.append(
                DaemonLine(
                    name,
                    str(life.event.get("host")),
                    _whole(life.event.get("pid")),
                    str(life.event.get("version")),
                    state,
                    state != "stopped" and age > SILENT_AFTER,
                    life.at,
                    _whole(life.event.get("resident")),
                    float(life.event.get("lag_ms") or 0),
                    {name: code for name, _, _, code in services_of(life.event)},
                )
            )
        return lines


def services_of(event: Event) -> Iterator[tuple[str, int, int, str]]:
    """Name, running, waiting and code of each service that a daemon says it hosts."""
    services = event.get("services")
    for name, told in services.items() if isinstance(services, dict) else ():
        if isinstance(told, list) and len(told) >= 2:
            code = told[3] if len(told) > 3 and isinstance(told[3], str) else ""
            yield str(name), _whole(told[0]), _whole(told[1]), code


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
