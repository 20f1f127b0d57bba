"""What the last minute was like: rates, times and failures of each service, and the daemons that live."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from broker.protocol.events import DAEMON, HANDLED, Event

WINDOW = 60.0
"""Seconds."""
MOST_HANDLINGS = 200_000
"""That are remembered: beyond that, the window is shorter."""
SILENT_AFTER = 15.0
"""Seconds without a sign of life: a daemon gives one every five."""
GONE_AFTER = 120.0


class ServiceLine(NamedTuple):
    """One service. Rates are a second's, times in milliseconds (None: nothing was handled), `running` and `waiting` of all daemons."""

    name: str
    rate: float
    p50: float | None
    p95: float | None
    failures: int
    running: int
    waiting: int
    daemons: int


class DaemonLine(NamedTuple):
    """One daemon. `state` is what it said last, `silent` whether it has not been heard of since, and did not say goodbye."""

    name: str
    host: str
    pid: int
    version: str
    state: str
    silent: bool
    resident: int
    lag_ms: float
    services: int


@dataclass
class _Life:
    at: int
    event: Event = field(repr=False)


class Summary:
    """Sums up events as they come. Times are in µs since 1970."""

    def __init__(self) -> None:
        self._handlings: deque[tuple[int, str, float, bool]] = deque(maxlen=MOST_HANDLINGS)
        self._daemons: dict[str, _Life] = {}

    def add(self, event: Event, writer: str) -> None:
        if event["event"] == HANDLED:
            took = event.get("took_ms")
            failed = event.get("outcome", "ok") != "ok"
            self._handlings.append(
                (event["t"], str(event.get("service")), took if isinstance(took, (int, float)) else 0.0, failed)
            )
        elif event["event"] == DAEMON and event["t"] >= (
            known.at if (known := self._daemons.get(writer)) is not None else 0
        ):
            self._daemons[writer] = _Life(event["t"], event)

    def services(self, now: int) -> list[ServiceLine]:
        """Every service that a daemon hosts or that something was handled for, by name."""
        since = now - int(WINDOW * 1e6)
        while self._handlings and self._handlings[0][0] < since:
            self._handlings.popleft()
        times: dict[str, list[float]] = {}
        failures: dict[str, int] = {}
        for _, name, took, failed in self._handlings:
            times.setdefault(name, []).append(took)
            failures[name] = failures.get(name, 0) + failed
        hosted: dict[str, list[tuple[int, int]]] = {}
        for life in self._daemons.values():
            if life.event.get("state") != "stopped" and now - life.at < SILENT_AFTER * 1e6:
                for name, running, waiting in services_of(life.event):
                    hosted.setdefault(name, []).append((running, waiting))
        return [
            ServiceLine(
                name,
                len(times.get(name, ())) / WINDOW,
                percentile(times.get(name, ()), 0.5),
                percentile(times.get(name, ()), 0.95),
                failures.get(name, 0),
                sum(running for running, _ in hosted.get(name, ())),
                sum(waiting for _, waiting in hosted.get(name, ())),
                len(hosted.get(name, ())),
            )
            for name in sorted({*times, *hosted})
        ]

    def daemons(self, now: int) -> list[DaemonLine]:
        """Those that live or fell silent lately, by name."""
        lines = []
        for name, life in sorted(self._daemons.items()):
            age = (now - life.at) / 1e6
            state = str(life.event.get("state"))
            if age < GONE_AFTER:
                lines.append(
                    DaemonLine(
                        name,
                        str(life.event.get("host")),
                        _whole(life.event.get("pid")),
                        str(life.event.get("version")),
                        state,
                        state != "stopped" and age > SILENT_AFTER,
                        _whole(life.event.get("resident")),
                        float(life.event.get("lag_ms") or 0),
                        sum(1 for _ in services_of(life.event)),
                    )
                )
        return lines


def services_of(event: Event) -> Iterator[tuple[str, int, int]]:
    """Name, running and waiting of each service that a daemon says it hosts."""
    services = event.get("services")
    for name, told in services.items() if isinstance(services, dict) else ():
        if isinstance(told, list) and len(told) >= 2:
            yield str(name), _whole(told[0]), _whole(told[1])


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that so large a share of all is not above (nearest rank); None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
