"""The story of an invocation: all events of the tree that it belongs to, found by any CID of it, and the tree that they make."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from os import SEEK_END
from typing import Any, Self

from broker.errors import InvalidInputError
from broker.protocol.events import DEAD, HANDLED, LATEST, SENT, Event, inflated, is_number, parsed
from broker.protocol.message import Message
from broker.recording.reading import Batch, read
from broker.transport.interface import Connection, Offset

FEW = 8
"""So many CIDs are looked for in a batch's text before it is parsed: with more, parsing is quicker."""
MOST_INVOCATIONS = 10_000
"""Of one tree. A handler may invoke a million."""


@dataclass
class Step:
    """One invocation: who asked for it and when, what came of it, and what it invoked in turn.

    `requested` is in µs since 1970, None if nobody has recorded that. `handlings` are the events of the target, its callbacks and its
    further attempts, in order.
    """

    cid: str
    target: str | None = None
    source: str | None = None
    requested: int | None = None
    delay: float | None = None
    callbacks: tuple[str, ...] = ()
    handlings: list[Event] = field(default_factory=list)
    dead: list[Event] = field(default_factory=list)
    children: list[Step] = field(default_factory=list)

    @property
    def begun(self) -> int:
        """When it is first heard of."""
        times = [begun(one) for one in self.handlings] + [one["t"] for one in self.dead]
        return min([*times, *([] if self.requested is None else [self.requested])], default=0)


@dataclass
class Story:
    """The tree of an invocation, and how far back the record goes (µs since 1970; None if it is empty)."""

    root: Step | None
    since: int | None
    events: int
    """How many were looked through."""
    is_cut: bool
    """Whether the tree is larger than what is shown of it."""


def begun(handled: Event) -> int:
    """When a handling began, in µs since 1970; what takes no time is when it is."""
    return max(0, int(handled["t"] - handled.get("took_ms", 0) * 1000))


class Spool:
    """Batches of the record in a temporary file, to be gone through several times: what belongs to a tree may have been written before what
    tells so."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this
        self._events = 0
        self._since: int | None = None
        self._known: set[str] = set()
        self.offset = -1
        """Of the last batch."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, batch: Batch) -> bool:
        """Whether it may change the story that was told last."""
        self._file.seek(0, SEEK_END)
        self._file.write(len(batch.message.body).to_bytes(4, "big") + batch.message.body)
        told = batch.message.headers.get("events")
        self._events += told if isinstance(told, int) else 0
        self.offset = batch.offset
        if self._since is None:
            self._since = min((one["t"] for one in _parsed(_text(batch.message))), default=None)
        return bool(self._known) and _may_hold(_text(batch.message), self._known)

    def story(self, cid: str) -> Story:
        """What is known of the invocation with this CID."""
        self._known = {cid}
        while True:
            before = len(self._known)
            found = [
                event
                for text in self._texts()
                if _may_hold(text, self._known)
                for event in _connected(_parsed(text), self._known)
            ]
            is_cut = len(self._known) > MOST_INVOCATIONS
            if len(self._known) == before or is_cut:
                return Story(tree(found, cid), self._since, self._events, is_cut)

    def _texts(self) -> Iterator[bytes]:
        self._file.seek(0)
        while size := self._file.read(4):
            yield _text(Message(self._file.read(int.from_bytes(size, "big"))))


async def story(batches: AsyncIterator[Batch], cid: str) -> Story:
    """Find the tree of the invocation with this CID."""
    with Spool() as spool:
        async for batch in batches:
            spool.add(batch)
        return spool.story(cid)


async def stories(connection: Connection, begin: Offset, cid: str) -> AsyncIterator[Story]:
    """The story as it is now, and again whenever it may have gone on, without end."""
    with Spool() as spool:
        async for batch in read(connection, begin):
            spool.add(batch)
        yield spool.story(cid)
        async for batch in read(connection, spool.offset + 1, follow=True):
            if spool.add(batch):
                yield spool.story(cid)


def _text(message: Message) -> bytes:
    try:
        return inflated(message)
    except InvalidInputError:
        return b""


def _parsed(text: bytes) -> list[Event]:
    try:
        return parsed(text) if text else []
    except InvalidInputError:
        return []


def _may_hold(text: bytes, known: set[str]) -> bool:
    if len(known) > FEW or not all(cid.isascii() and cid.isprintable() for cid in known):
        return True
    return any(cid.encode() in text for cid in known)


def _connected(events: list[Event], known: set[str]) -> Iterator[Event]:
    """Those that are about invocations that are known; others that they tell of are known from then on."""
    for event in events:
        cid, parent = event.get("cid"), event.get("parent")
        if cid in known or parent in known or _sends_one_of(event, known):
            known.update(one for one in (cid, parent) if isinstance(one, str))
            if len(known) <= MOST_INVOCATIONS:
                known.update(sent.cid for sent in sent_of(event))
            yield event


def _sends_one_of(event: Event, known: set[str]) -> bool:
    return "sent" in event and any(sent.cid in known for sent in sent_of(event))


@dataclass(frozen=True, slots=True)
class Sent:
    """What a handler has invoked. `at` is in µs since 1970, `delay` in seconds."""

    at: int
    target: str
    cid: str
    delay: float | None


def sent_of(event: Event) -> Iterator[Sent]:
    """What an event says that was invoked; what is malformed is passed over."""
    sent = event.get("sent")
    for one in sent if isinstance(sent, list) else ():
        match one:
            case [int(at), str(target), str(cid), *rest] if 0 <= at <= LATEST:
                yield Sent(at, target, cid, rest[0] if rest and is_number(rest[0]) else None)


def tree(events: list[Event], cid: str) -> Step | None:
    """The steps that the events tell of, put together, and the one at their root; None if they tell of none."""
    steps: dict[str, Step] = {}
    parents: dict[str, str] = {}

    def step(name: Any) -> Step:
        return steps.setdefault(str(name), Step(str(name)))

    for event in sorted(events, key=lambda one: one["t"]):
        sender = event.get("cid") if event["event"] == HANDLED else event.get("parent")
        for sent in sent_of(event):
            child = step(sent.cid)
            child.requested, child.target, child.delay = sent.at, sent.target, sent.delay
            child.source = str(event.get("service"))
            parents.setdefault(sent.cid, str(sender))
        if event["event"] == HANDLED:
            step(event.get("cid")).handlings.append(event)
            if isinstance(parent := event.get("parent"), str):
                parents.setdefault(str(event.get("cid")), parent)
        elif event["event"] == DEAD and "cid" in event:
            step(event.get("cid")).dead.append(event)
        elif event["event"] == SENT and "cid" in event:
            sent_step = step(event["cid"])
            sent_step.requested, sent_step.target = event["t"], str(event.get("target"))
            sent_step.delay = event.get("delay")
            names = event.get("callbacks")
            sent_step.callbacks = tuple(map(str, names)) if isinstance(names, list) else ()
    for child_cid, parent in parents.items():
        if child_cid != parent:
            step(parent)
    for child_cid, parent in parents.items():
        if child_cid != parent:
            steps[parent].children.append(steps[child_cid])
    for one in steps.values():
        one.handlings.sort(key=begun)
        one.children.sort(key=lambda child: child.begun)
    return _topmost(steps, parents, cid)


def _topmost(steps: dict[str, Step], parents: dict[str, str], cid: str) -> Step | None:
    if cid not in steps:
        return None
    above = {cid}
    while (parent := parents.get(cid)) is not None and parent not in above and parent in steps:
        cid = parent
        above.add(cid)
    return steps[cid]


def as_values(step: Step) -> dict[str, Any]:
    """The tree as values for JSON."""
    return {
        "cid": step.cid,
        "target": step.target,
        "source": step.source,
        "requested": step.requested,
        "delay": step.delay,
        "callbacks": step.callbacks,
        "handlings": step.handlings,
        "dead": step.dead,
        "children": [as_values(child) for child in step.children],
    }
