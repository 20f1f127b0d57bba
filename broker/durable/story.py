"""A journal as the author of its handler would tell it: each step, what came of it, and when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from broker.durable.journal import (
    AGAIN,
    ASK,
    BYTES,
    CANCEL,
    DUE,
    ERROR,
    FAILED,
    GOT,
    LEFT,
    OVER,
    SIGNAL,
    UNROUTABLE,
    Journal,
)
from broker.durable.run import INVOKE, TIMER, WAIT

SHOWN = 200
"""Characters of an answer."""


@dataclass(slots=True)
class Step:
    """A step of a run. Times are in seconds since 1970; `answer` is what came, None if nothing has, `failed` whether that is a failure,
    `left` when the handler gave it up."""

    number: int
    kind: str
    what: str
    place: str
    asked: float
    answered: float | None = None
    answer: str | None = None
    failed: bool = False
    left: float | None = None
    is_waited_for: bool = False


@dataclass(slots=True)
class Remark:
    """What happened to the run beside its steps: an attempt failed, say."""

    at: float
    text: str


def story(journal: Journal) -> list[Step | Remark]:
    """What has happened, in order, since the run last began anew."""
    told: list[Step | Remark] = []
    steps: dict[int, Step] = {}
    waits: dict[str, list[Step]] = {}
    early: dict[str, list[tuple[float, str]]] = {}
    now = journal.begin[1]
    for entry in journal.entries:
        kind = entry[0]
        if kind == ASK:
            _, number, of, what, digest, place = entry
            step = steps[number] = Step(number, of, what, place, now)
            told.append(step)
            if of == WAIT:
                if early.get(digest):
                    step.answered, step.answer = early[digest].pop(0)
                else:
                    waits.setdefault(digest, []).append(step)
            continue
        now = max(now, entry[1])
        if kind == GOT and entry[2] in steps:
            step = steps[entry[2]]
            step.answered, step.answer = entry[1], _shown(entry[3], entry[4])
            step.failed = entry[3] in (ERROR, UNROUTABLE)
        elif kind == SIGNAL:
            still = [one for one in waits.get(entry[2], ()) if one.left is None]
            if still:
                step = still[0]
                waits[entry[2]].remove(step)
                step.answered, step.answer = entry[1], _shown(entry[3], entry[4])
            else:
                early.setdefault(entry[2], []).append((entry[1], _shown(entry[3], entry[4])))
        elif kind == LEFT and entry[2] in steps:
            steps[entry[2]].left = entry[1]
        elif kind == CANCEL:
            told.append(Remark(entry[1], "it was cancelled"))
        elif kind == FAILED:
            wait = "" if entry[5] is None else f"; the next in {entry[5]} s"
            told.append(Remark(entry[1], f"attempt {entry[2]} failed ({entry[3]}): {_shown(ERROR, entry[4])}{wait}"))
        elif kind == AGAIN:
            told.append(Remark(entry[1], f"attempt {entry[2]} began"))
    for signals in early.items():
        told += [Remark(at, f'signal "{signals[0]}" came, and is kept: {answer}') for at, answer in signals[1]]
    if journal.state not in OVER:
        for step in steps.values():
            step.is_waited_for = step.answered is None and step.left is None and step.kind != INVOKE
    return told


def due(step: Step) -> str:
    """When a timer that has not come back does (UTC)."""
    at = step.asked + float(step.what.removesuffix(" s")) if step.kind == TIMER else step.asked
    return datetime.fromtimestamp(at, UTC).isoformat(" ", "seconds").removesuffix("+00:00")


def _shown(outcome: str, value: Any) -> str:
    if outcome == DUE:
        return ""
    if outcome == BYTES:
        return f"{len(value) * 3 // 4} bytes"
    if outcome == UNROUTABLE:
        return f"nobody hosts {value}"
    if outcome == ERROR:
        problem = json.loads(value)
        return f"{problem.get('title')}: {problem.get('detail')}"[:SHOWN]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))[:SHOWN]
