"""The flight recorder's values: batches, the tree of an invocation, the last minute."""

from __future__ import annotations

import asyncio
import io
import json
import random
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from broker.cli.record.lines import line
from broker.cli.record.tree import drawn
from broker.errors import ConnectionLostError, InvalidInputError, NotAcceptedError
from broker.protocol.events import (
    DAEMON,
    DEAD,
    HANDLED,
    MAX_INFLATED,
    SENT,
    Event,
    batch,
    event_stream,
    inflated,
    parsed,
)
from broker.protocol.message import Message, Publishing
from broker.recording import recorder as recorder_module
from broker.recording.histogram import Histogram
from broker.recording.reading import Batch, read
from broker.recording.recorder import BATCH, MOST, MOST_UNCONFIRMED, Recorder
from broker.recording.spans import span
from broker.recording.summary import MOST_SECONDS, Summary
from broker.recording.trace import Step, Story, story
from broker.transport.memory import MemoryBroker, MemoryConnection
from tests.support import run, until

TEXTS = st.text(max_size=40)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from([HANDLED, SENT, DEAD, DAEMON]),
            "t": st.integers(0, 2**52),
            "cid": TEXTS,
            "service": TEXTS,
            "took_ms": st.floats(0, 1e9, allow_nan=False),
            "state": TEXTS,
        },
        optional={
            "error": st.lists(TEXTS, min_size=2, max_size=2),
            "sent": st.lists(st.tuples(st.integers(0, 2**52), TEXTS, TEXTS).map(list), max_size=3),
        },
    ),
    max_size=20,
)


@given(EVENTS)
def test_what_is_written_is_read(events: list[Event]) -> None:
    message = batch(events, "host:1:ab", 7).message
    assert parsed(inflated(message)) == events
    assert message.headers == {"events": len(events), "daemon": "host:1:ab", "batch": 7}


def test_halves_of_surrogate_pairs_cost_no_batch() -> None:
    events = [{"event": DEAD, "t": 1, "cid": "\ud800"}, {"event": DEAD, "t": 2, "cid": "b"}]
    assert [one["t"] for one in parsed(inflated(batch(events, "w", 1).message))] == [1, 2]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "cut off"),
        (b"no zlib", "no batch of events"),
        (zlib.compress(b"[]")[:-3], "cut off"),
        (zlib.compress(bytes(MAX_INFLATED + 1)), "larger than"),
    ],
)
def test_what_is_no_batch_says_so(body: bytes, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        inflated(Message(body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
NAMES = [
    "cid",
    "service",
    "target",
    "source",
    "parent",
    "outcome",
    "reply",
    "reason",
    "state",
    "host",
    "version",
    "took_ms",
    "retry_in",
    "delay",
    "lag_ms",
    "attempt",
    "published",
    "pid",
    "resident",
    "dropped",
    "redelivered",
    "call",
    "sent",
    "error",
    "callbacks",
    "services",
]
RUBBISH = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"event": st.sampled_from([HANDLED, SENT, DEAD, DAEMON]) | JSON, "t": st.integers(-10, 2**70)},
        optional=dict.fromkeys(NAMES, JSON),
    ),
    st.tuples(st.sampled_from("hs"), *7 * [JSON]).map(list),
    st.tuples(st.just("h"), st.integers(), TEXTS, TEXTS, st.integers(), JSON, JSON, JSON).map(list),
)


@given(st.lists(RUBBISH, max_size=6))
def test_rubbish_is_passed_over_or_shown(rubbish: list[Any]) -> None:
    """Anybody may write to the stream."""
    summary = Summary()
    events = parsed(inflated(batch([*rubbish, handled("c", 5)], "w", 1).message))
    for event in events:
        assert line(event) is not None or event["event"] in (SENT, DAEMON)
        summary.add(event, "w")
    now = 10_000_000
    assert len(summary.services(now)) >= 1
    summary.daemons(now)
    for cid in {"c", *(event["cid"] for event in events if "cid" in event)}:
        found = tell(rubbish, cid) if cid != "c" else tell([*rubbish, handled("c", 5)], cid)
        if found.root is not None:
            Console(width=200, file=io.StringIO()).print(drawn(found, cid))


async def batches(events: Iterable[Event], size: int = 3) -> AsyncIterator[Batch]:
    listed = list(events)
    for number, at in enumerate(range(0, len(listed), size), start=1):
        yield Batch(number, "w", number, batch(listed[at : at + size], "w", number).message)


def tell(events: Iterable[Event], cid: str) -> Story:
    return asyncio.run(story(batches(events), cid))


def handled(cid: str, at: int, parent: str | None = None, sent: Iterable[str] = (), **more: Any) -> Event:
    event = {"event": HANDLED, "t": at, "cid": cid, "service": f"of {cid}", "took_ms": 0.5, **more}
    if parent is not None:
        event["parent"] = parent
    if named := [[at - 1, f"of {one}", one] for one in sent]:
        event["sent"] = named
    return event


def shape(step: Step) -> tuple[str, list[Any]]:
    return step.cid, sorted(shape(child) for child in step.children)


@given(st.data())
def test_any_cid_finds_the_whole_tree_and_nothing_else(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 25))
    parents = {f"c{n}": f"c{data.draw(st.integers(0, n - 1))}" for n in range(1, size)}
    events = []
    for number in range(size):
        cid = f"c{number}"
        children = [child for child, parent in parents.items() if parent == cid]
        events.append(handled(cid, 1000 + number, parents.get(cid), children))
    others = [handled(f"x{n}", 1000 + n, f"x{n - 1}" if n % 3 else None) for n in range(data.draw(st.integers(0, 9)))]
    shuffled = data.draw(st.permutations([*events, *others]))
    found = tell(shuffled, f"c{data.draw(st.integers(0, size - 1))}")

    def expected(cid: str) -> tuple[str, list[Any]]:
        return cid, sorted(expected(child) for child, parent in parents.items() if parent == cid)

    assert found.root is not None
    assert shape(found.root) == expected("c0")
    assert (found.since, found.events, found.is_cut) == (min(one["t"] for one in shuffled[:3]), len(shuffled), False)


def test_a_batch_that_was_written_twice_counts_once() -> None:
    async def twice_and_another_of_an_unknown_number(connection: MemoryConnection) -> None:
        await connection.declare(event_stream(60, 1000, 1000))
        for number in (1, 1, 0, 0):
            await connection.publish(batch([handled("c", 5 + number)], "w", number))

    async def test() -> None:
        connection = await MemoryBroker().connect()
        await twice_and_another_of_an_unknown_number(connection)
        found = await story(read(connection), "c")
        assert found.root is not None
        assert [one["t"] for one in found.root.handlings] == [5, 5, 6]

    run(test())


def test_who_is_not_known_has_no_tree_and_parents_in_a_circle_have_an_end() -> None:
    assert tell([handled("a", 5)], "b") == Story(None, 5, 1, False)
    assert tell([], "b") == Story(None, None, 0, False)
    assert tell([handled("a", 5, "b"), handled("b", 6, "a")], "a").root is not None
    assert tell([handled("a", 5, "a")], "a").root is not None


def test_the_drawing() -> None:
    events = [
        {"event": SENT, "t": 1_000_000, "cid": "o", "target": "order", "callbacks": ["told"]},
        handled("o", 1_001_500, sent=["p"], took_ms=1.0),
        handled("p", 1_010_000, "o", took_ms=2.0, outcome="retried", retry_in=3, error=["E", "bad\x1b[31m\u202e"]),
        handled("p", 4_030_000, "o", took_ms=2.0, attempt=2, outcome="error", error=["E", "bad"], redelivered=True),
        {"event": DEAD, "t": 4_031_000, "cid": "p", "service": "of p", "reason": "error"},
        {
            "event": HANDLED,
            "t": 4_040_000,
            "cid": "p",
            "service": "told",
            "took_ms": 1.0,
            "reply": "error",
            "parent": "o",
        },
    ]
    console = Console(width=200, file=(out := io.StringIO()))
    console.print(drawn(tell(events, "p"), "p"))
    assert [one.rstrip() for one in out.getvalue().splitlines()] == [
        "order  o  1970-01-01 00:00:01.000Z",
        "├── handled of o  ok  +500 µs  took 1 ms, waited 500 µs",
        "└── of p  p  +1.5 ms",
        "    ├── handled of p  retried  +8 ms  took 2 ms, waited 6.5 ms; again in 3 s  E: bad\\x1b[31m\\u202e",
        "    ├── handled of p, attempt 2  error  +3.03 s  took 2 ms, waited 18 ms; redelivered  E: bad",
        "    ├── callback, of a failure told  ok  +3.04 s  took 1 ms, waited 9 ms",
        "    └── dead letter  error  +3.03 s",
    ]


def test_lengths_of_time() -> None:
    shown = [span(micros) for micros in (0, 999, 1240, 3_500_000, 125_000_000, 7_500_000_000, 200_000_000_000)]
    assert shown == ["0 µs", "999 µs", "1.24 ms", "3.5 s", "2 min 5 s", "2 h 5 min", "2 d 7 h"]


def test_the_last_minute() -> None:
    summary, second = Summary(), 1_000_000
    now = 1000 * second
    for number in range(100):
        outcome = {"outcome": "error"} if number < 5 else {}
        summary.add({"event": HANDLED, "t": now, "cid": "c", "service": "a", "took_ms": float(number), **outcome}, "w1")
    summary.add({"event": HANDLED, "t": now - 61 * second, "cid": "c", "service": "old", "took_ms": 1}, "w1")
    for writer, age, state in (("w1", 4, "lives"), ("w2", 16, "lives"), ("w3", 16, "stopped"), ("w4", 3601, "lives")):
        services = {"a": [1, 2, 50, "x"]}
        summary.add({"event": DAEMON, "t": now - age * second, "state": state, "services": services}, writer)
    (a,) = [one for one in summary.services(now) if one.name == "a"]
    assert (round(a.rate, 2), a.failures, a.running, a.waiting, a.daemons) == (1.67, 5, 1, 2, 1)
    assert (a.p50, a.p95, a.p99) == (
        pytest.approx(49, rel=0.05),
        pytest.approx(94, rel=0.05),
        pytest.approx(98, rel=0.05),
    )
    assert [(one.name, one.silent) for one in summary.daemons(now)] == [("w1", False), ("w2", True), ("w3", False)]


@given(st.lists(st.floats(0.002, 1e7), min_size=1), st.floats(0, 1))
def test_percentiles_are_right_to_five_percent(times: list[float], share: float) -> None:
    histogram = Histogram()
    for ms in times:
        histogram.add(ms)
    (found,) = Histogram.loads(histogram.dumps()).percentiles([share])
    assert found == pytest.approx(sorted(times)[int(share * (len(times) - 1))], rel=0.05)


def test_of_nothing_there_are_no_percentiles() -> None:
    assert Histogram().percentiles((0.5, 0.95)) == [None, None]


def test_what_is_old_is_gone_through_in_bounded_memory() -> None:
    summary = Summary()
    for second in range(100_000):
        summary.add_handling(second * 1_000_000, "a", 1.0, failed=False)
    assert len(summary._seconds) <= MOST_SECONDS
    (a,) = summary.services(100_000 * 1_000_000)
    assert a.rate == pytest.approx(1, abs=0.05)


class Published:
    """A connection whose confirms the test gives."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Publishing, asyncio.Future[None]]] = []

    def publish(self, publishing: Publishing) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((publishing, future))
        return future

    def numbers(self) -> list[int]:
        return [one["n"] for publishing, _ in self.waiting for one in parsed(inflated(publishing.message))]

    def answer(self, error: Exception | None = None) -> None:
        waiting, self.waiting = self.waiting, []
        for _, future in waiting:
            future.set_exception(error) if error else future.set_result(None)


def event(number: int) -> Event:
    return {"event": DEAD, "t": 1, "n": number}


def test_a_broker_that_does_not_keep_up_costs_events_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_AFTER", 0.01)

    async def test() -> None:
        recorder, connection = Recorder(), Published()
        recorder.connection = connection  # type: ignore[assignment]
        total = MOST_UNCONFIRMED * BATCH + MOST + 1000
        for number in range(total):
            recorder.note(event(number))
        assert len(connection.waiting) == MOST_UNCONFIRMED
        assert recorder.dropped == 1000
        seen = connection.numbers()
        while connection.waiting:
            connection.answer()
            await until(lambda: connection.waiting or not recorder._events)
            seen += connection.numbers()
        assert seen == list(range(total - 1000))

    run(test())


def test_what_a_lost_connection_has_not_confirmed_is_written_on_the_next() -> None:
    async def test() -> None:
        recorder, first, second = Recorder(), Published(), Published()
        recorder.connection = first  # type: ignore[assignment]
        for number in range(BATCH + 1):
            recorder.note(event(number))
        first.answer(ConnectionLostError("gone"))
        await until(lambda: recorder.connection is None)
        await recorder.close()
        recorder.connection = second  # type: ignore[assignment]
        recorder.flush()
        assert second.numbers() == list(range(BATCH + 1))
        second.answer(NotAcceptedError("full"))
        await until(lambda: recorder.dropped == BATCH + 1)

    run(test())


def test_close_sends_what_there_is() -> None:
    async def test() -> None:
        recorder, connection = Recorder(), Published()
        recorder.connection = connection  # type: ignore[assignment]
        recorder.note(event(1))
        closing = asyncio.ensure_future(recorder.close())
        await until(lambda: connection.waiting)
        connection.answer()
        await closing

    run(test())


def test_trees_that_are_too_large_are_cut() -> None:
    events = [handled("root", 5, sent=[f"c{number}" for number in range(10_001)])]
    found = tell([*events, *(handled(f"c{n}", 6, "root") for n in range(0, 10_001, 100))], "c0")
    assert found.is_cut


def test_the_order_of_batches_is_of_no_account() -> None:
    events = [handled(f"c{n}", n, f"c{n - 1}" if n else None) for n in range(50)]
    random.Random(1).shuffle(events)
    found = tell(events, "c49")
    assert found.root is not None
    assert found.root.cid == "c0"


def test_a_row_may_say_when_its_message_was_published() -> None:
    rows = [["h", 9, "c", "s", 2, None, None, None, 1], ["h", 9, "c", "s", 2, None, None, None, "1"], ["h", 9]]
    event = {"event": HANDLED, "t": 9, "cid": "c", "service": "s", "took_ms": 0.002, "published": 1}
    assert parsed(json.dumps(rows).encode()) == [event]
