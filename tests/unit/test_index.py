"""The record's index: what is put in is found again, whatever happens to the file."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ConfigurationError
from broker.protocol.events import DAEMON, DEAD, HANDLED, SENT, Event, parsed
from broker.protocol.message import Message
from broker.recording.index import Index, NotWritableError, packed, unpacked
from broker.recording.lookup import Lookup, Search
from broker.recording.reading import Batch
from broker.recording.trace import Step, tree
from tests.unit.test_events import EVENTS

SECOND = 1_000_000


def batches(events: list[Event], first: int = 0) -> list[tuple[Batch, list[Event]]]:
    """Each event as a batch of its own."""
    return [(Batch(first + n, "w", first + n + 1, Message(b"")), [event]) for n, event in enumerate(events)]


@pytest.fixture
def index(tmp_path: Path) -> Any:
    index = Index(tmp_path / "index.db")
    yield index
    index.close()


ORDER: list[Event] = [
    {"event": SENT, "t": 1 * SECOND, "cid": "order-1", "target": "shop.order"},
    {"event": HANDLED, "t": 3 * SECOND, "cid": "a" * 32, "service": "shop.price", "took_ms": 5.0, "parent": "order-1", "source": "shop.order",
     "outcome": "error", "error": ["LookupError", "no price"], "attempt": 2},
    {"event": DEAD, "t": 3 * SECOND, "cid": "a" * 32, "service": "shop.price", "reason": "error", "error": ["LookupError", "no price"]},
    {"event": HANDLED, "t": 2 * SECOND, "cid": "order-1", "service": "shop.order", "took_ms": 1.5, "sent": [[1500000, "shop.price", "a" * 32]]},
    {"event": HANDLED, "t": 4 * SECOND, "cid": "a" * 32, "service": "shop.priced", "took_ms": 0.5, "reply": "error"},
    {"event": HANDLED, "t": 5 * SECOND, "cid": "another", "service": "shop.order", "took_ms": 1.0},
]  # fmt: skip


def test_any_cid_of_an_order_finds_its_tree(index: Index) -> None:
    index.add(batches(ORDER))
    lookup = Lookup(index.path)
    for cid in ("order-1", "a" * 32):
        root, is_cut = lookup.story(cid)
        assert root is not None and not is_cut
        assert (root.cid, root.target, [one["service"] for one in root.handlings]) == (
            "order-1",
            "shop.order",
            ["shop.order"],
        )
        (price,) = root.children
        assert [(one["service"], one.get("outcome", "ok")) for one in price.handlings] == [
            ("shop.price", "error"),
            ("shop.priced", "ok"),
        ]
        assert price.handlings[0] == ORDER[1] and price.dead == [ORDER[2]]
    assert lookup.story("nobody") == (None, False)


@given(EVENTS)
def test_what_is_put_in_comes_out(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    index = Index(tmp_path_factory.mktemp("index") / "index.db")
    kept = [one for one in events if one["event"] != DAEMON]
    good = parsed(json.dumps(kept).encode())
    index.add(batches(good))
    for cid in {one["cid"] for one in good}:
        root, _ = Lookup(index.path).story(cid)
        expected = tree(good, cid)
        if expected is not None and len({one["cid"] for one in good}) == 1:
            assert root is not None and _handlings(root) == _handlings(expected)
        assert (root is None) == (expected is None)
    index.close()


def _handlings(step: Step) -> list[int]:
    return sorted([one["t"] for one in step.handlings] + [t for child in step.children for t in _handlings(child)])


@given(st.text(max_size=40) | st.text("0123456789abcdefABCDEF", min_size=32, max_size=32))
def test_cids_are_packed_and_unpacked(cid: str) -> None:
    assert unpacked(packed(cid)) == cid


def test_searches(index: Index) -> None:
    index.add(batches(ORDER))
    lookup = Lookup(index.path)

    def found(**wanted: Any) -> list[tuple[str, str]]:
        return [(one.event["event"], one.event["service"]) for one in lookup.search(Search(**wanted), 10)]

    assert found() == [
        (HANDLED, "shop.order"),
        (HANDLED, "shop.priced"),
        (HANDLED, "shop.order"),
        (DEAD, "shop.price"),
        (HANDLED, "shop.price"),
    ]
    assert found(service="shop.price", outcome="failed") == [(DEAD, "shop.price"), (HANDLED, "shop.price")]
    assert found(service="shop.order", outcome="ok") == [(HANDLED, "shop.order")] * 2
    assert found(outcome="error") == [(DEAD, "shop.price"), (HANDLED, "shop.price")]
    assert found(service="nobody") == found(outcome="nothing") == []
    assert found(since=4 * SECOND) == [(HANDLED, "shop.order"), (HANDLED, "shop.priced")]
    newest = lookup.search(Search(), 2)
    assert [one.event["t"] for one in lookup.search(Search(before=newest[-1].number), 2)] == [2 * SECOND, 3 * SECOND]
    assert lookup.beginning_with("aaaa", 10) == ["a" * 32]
    assert lookup.beginning_with("order", 10) == ["order-1"]
    assert lookup.services() == ["shop.order", "shop.price", "shop.priced"]
    assert (lookup.since(), lookup.count()) == (SECOND, 6)
    (minute,) = lookup.minutes(0, "shop.order")["shop.order"]
    assert (minute.minute, minute.tally.handled, minute.tally.failures) == (0, 2, 0)
    assert sorted(lookup.handlings_since(4 * SECOND)) == [
        (4 * SECOND, "shop.priced", 0.5, 0),
        (5 * SECOND, "shop.order", 1.0, 0),
    ]


def test_it_goes_on_where_it_was_and_two_may_write(index: Index) -> None:
    index.add(batches(ORDER[:3]))
    again = Index(index.path)
    assert again.place == (2, "w", 3)
    assert again.add(batches(ORDER)) == 3
    assert index.add(batches(ORDER)) == 0
    again.close()
    assert Lookup(index.path).count() == 6


def test_what_is_older_than_the_stream_goes(index: Index) -> None:
    for number, one in enumerate(batches(ORDER)):
        index.add([one])
        assert index.place.offset == number
    assert sum(index.forget_before(5)) == 5
    lookup = Lookup(index.path)
    assert lookup.count() == 1
    assert lookup.story("order-1") == (None, False)
    assert index._db.execute("SELECT count(*) FROM mentions").fetchone() == (1,)
    assert list(index.forget_before(5)) == []
    index.clear()
    assert (lookup.count(), index.place.offset) == (0, -1)


def test_daemons_and_what_they_tell_of_services(index: Index) -> None:
    sign = {
        "event": DAEMON,
        "t": SECOND,
        "state": "started",
        "services": {"a": [0, 0, 50, "c0de"]},
        "about": {"a": {"class": "m.A"}},
    }
    index.add(
        batches(
            [
                sign,
                {"event": DAEMON, "t": 2 * SECOND, "state": "lives"},
                {"event": DAEMON, "t": SECOND, "state": "lives"},
            ]
        )
    )
    lookup = Lookup(index.path)
    assert lookup.about("a") == {"c0de": {"class": "m.A"}}
    assert [(writer, event["state"]) for writer, event in lookup.daemons()] == [("w", "lives")]


def garbage(path: Path) -> None:
    path.write_bytes(b"what,else\n1,2\n" * 1000)


def other_version(path: Path) -> None:
    Index(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def other_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (id)")
    connection.close()


def overwritten(path: Path) -> None:
    Index(path).close()
    body = bytearray(path.read_bytes())
    body[4096:8192] = b"\xff" * 4096
    path.write_bytes(bytes(body))


@pytest.mark.parametrize("spoil", [garbage, other_version, overwritten])
def test_a_file_that_cannot_be_used_is_put_aside_and_said_once(
    tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "index.db"
    spoil(path)
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        index = Index(path)
    assert index.add(batches(ORDER)) == 6
    index.close()
    (aside,) = tmp_path.glob("index.db.*.unusable")
    assert aside.read_bytes() == before
    (said,) = caplog.messages
    assert aside.name in said and "made anew" in said


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    other_program(path)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"index\.db is another program's database"):
        Index(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_only_be_read_is_said() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.db"
        Index(path).close()
        path.chmod(0o444)
        Path(folder).chmod(0o755)
        if is_root := os.geteuid() == 0:  # who may write everywhere
            os.seteuid(65534)
        try:
            with pytest.raises(
                NotWritableError, match="index.db cannot be written: attempt to write a readonly database"
            ):
                Index(path)
        finally:
            if is_root:
                os.seteuid(0)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotWritableError, match=r"nowhere.*cannot be written: unable to open"):
        Index(tmp_path / "nowhere" / "index.db")
