"""The geometry of pictures: numbers in, the paths and places of an SVG out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.protocol.events import DEAD
from broker.recording.lookup import Minute
from broker.recording.spans import span
from broker.recording.summary import Tally
from broker.recording.trace import Step, begun

SPARK = (120, 18)
CHART = (720, 120)
SPANS: Mapping[str, tuple[int, int]] = {"1h": (60, 1), "6h": (360, 5), "1d": (1440, 20), "7d": (10_080, 120)}
"""Minutes that a chart shows, and minutes of each of its columns."""
TICKS = 4
MOST_ROWS = 300
LEAST = 0.25
"""Percent of a timeline, so that what is short can be seen."""


@dataclass(frozen=True, slots=True)
class Spark:
    """The last hour, a column a minute: what was handled, and what of it failed."""

    handled: str
    failures: str
    text: str


def spark(minutes: Sequence[Minute], end: int, count: int = 60) -> Spark:
    """`end` is the last minute, in minutes since 1970."""
    handled, failures = [0] * count, [0] * count
    for one in minutes:
        if 0 <= (at := one.minute - end + count - 1) < count:
            handled[at], failures[at] = one.tally.handled, one.tally.failures
    top = max(handled, default=0)
    text = f"{sum(handled):,} handled in the last hour, {sum(failures):,} of them failed"
    return Spark(columns(handled, top, *SPARK), columns(failures, top, *SPARK), text)


def columns(values: Sequence[float], top: float, width: int, height: int) -> str:
    """A path of columns side by side; those of 0 are left out, and others have a pixel at least."""
    if not top:
        return ""
    each = width / len(values)
    parts = []
    for at, value in enumerate(values):
        if value:
            tall = max(1.0, value / top * height)
            parts.append(f"M{at * each:.4g} {height}v-{tall:.3g}h{each:.3g}v{tall:.3g}z")
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Chart:
    """`lines` are paths by name, `top` what the upper edge stands for, `labels` what stands below, from left to right."""

    lines: Mapping[str, str]
    top: str
    labels: Sequence[str]
    is_empty: bool


def history(minutes: Sequence[Minute], end: int, chosen: str) -> tuple[Chart, Chart]:
    """A service's rate and times over one of `SPANS`, up to minute `end`."""
    count, each = SPANS[chosen]
    tallies = [Tally() for _ in range(count // each)]
    first = end - count + 1
    for one in minutes:
        if 0 <= (at := (one.minute - first) // each) < len(tallies):
            tallies[at].add_all(one.tally)
    handled = [tally.handled / each / 60 for tally in tallies]
    failures = [tally.failures / each / 60 for tally in tallies]
    top = _round(max(handled, default=0))
    labels = _ages(count)
    rates = {"handled": columns(handled, top, *CHART), "failures": columns(failures, top, *CHART)}
    times = [tally.times.percentiles((0.5, 0.95, 0.99)) for tally in tallies]
    slowest = _round(max((three[2] or 0.0 for three in times), default=0))
    lines = {name: _line([three[at] for three in times], slowest) for at, name in enumerate(("p50", "p95", "p99"))}
    return (
        Chart(rates, f"{top:,.3g} /s", labels, not any(handled)),
        Chart(lines, span(int(slowest * 1000)), labels, not any(handled)),
    )


def _round(value: float) -> float:
    """The next number of 1, 2 or 5 and zeros."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.9999)


def _ages(minutes: int) -> list[str]:
    unit, one = ("min", 1) if minutes <= 120 else ("h", 60) if minutes <= 2880 else ("days", 1440)
    return [*(f"{minutes * (4 - at) / 4 / one:g} {unit} ago" for at in range(4)), "now"]


def _line(values: Sequence[float | None], top: float) -> str:
    width, height = CHART
    each = width / len(values)
    parts: list[str] = []
    for at, value in enumerate(values):
        if value is not None and top:
            y = height - value / top * height
            follows = at and values[at - 1] is not None
            parts.append(f"{'L' if follows else 'M'}{(at + 0.5) * each:.4g} {y:.4g}" + ("" if follows else "h.1"))
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a row, in percent of the timeline: `kind` is `waits`, or the outcome of a handling."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of an invocation's story: the request itself, a handling, or a dead letter."""

    kind: str
    depth: int
    step: Step
    event: Mapping[str, object]
    bars: Sequence[Bar]
    after: int
    """µs since the beginning of the story."""
    waited: int | None
    is_first: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    rows: Sequence[Row]
    ticks: Sequence[tuple[float, str]]
    """Places in percent, and what they stand for."""
    length: int
    is_cut: bool


def timeline(root: Step, now: int) -> Timeline:
    """The whole tree, drawn to scale. What has not ended is drawn up to `now` (µs since 1970)."""
    start = root.begun
    end = max(_end(root, now), start + 1)
    scale = 100 / (end - start)
    rows: list[Row] = []
    _add(rows, root, 0, start, scale, now)
    ticks = [(100 * at / TICKS, span(round((end - start) * at / TICKS))) for at in range(TICKS + 1)]
    return Timeline(rows[:MOST_ROWS], ticks, end - start, len(rows) > MOST_ROWS)


def _end(step: Step, now: int) -> int:
    ends = [one["t"] for one in (*step.handlings, *step.dead)]
    if not ends and step.requested is not None:
        ends = [now]
    return max([*ends, *(_end(child, now) for child in step.children)], default=0)


def _add(rows: list[Row], step: Step, depth: int, start: int, scale: float, now: int) -> None:
    if len(rows) > MOST_ROWS:
        return

    def bar(kind: str, since: int, until: int) -> Bar:
        left = min(max(0.0, (since - start) * scale), 100 - LEAST)
        right = min(max(left + LEAST, (until - start) * scale), 100.0)
        return Bar(kind, round(left, 3), round(right - left, 3))

    ready = None if step.requested is None else step.requested + int((step.delay or 0) * 1e6)
    again: dict[object, int] = {}
    is_first = True
    for one in sorted((*step.handlings, *step.dead), key=begun):
        if one["event"] == DEAD:
            bars, waited, began, ready = [bar("error", one["t"], one["t"])], None, one["t"], one["t"]
        else:
            began, service = begun(one), one["service"]
            since = again.pop(service, ready)
            bars = [bar(str(one.get("outcome", "ok")), began, one["t"])]
            if since is not None and began > since:
                bars.insert(0, bar("waits", since, began))
            waited = None if since is None else max(0, began - since)
            if "retry_in" in one:
                again[service] = one["t"] + int(one["retry_in"] * 1e6)
            ready = one["t"]
        rows.append(
            Row("dead" if one["event"] == DEAD else "handled", depth, step, one, bars, began - start, waited, is_first)
        )
        is_first = False
    if is_first:
        since = step.begun
        bars = [bar("waits", since, now)] if step.requested is not None else []
        rows.append(Row("open", depth, step, {}, bars, since - start, None, True))
    for child in step.children:
        _add(rows, child, depth + 1, start, scale, now)
