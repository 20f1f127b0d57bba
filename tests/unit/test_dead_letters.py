"""What an exported dead letter keeps, and what a replayed one is published as."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import archive
from broker.protocol.deadletters import DeadLetter, Filter
from broker.protocol.message import Message
from broker.protocol.outcomes import dead_letter
from broker.protocol.problems import problem

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(fold=0))
    | st.decimals(allow_nan=False, allow_infinity=False)
)
keys = st.text() | st.sampled_from(["$bytes", "$timestamp", "$decimal", "$float", "$table", "$other"])
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=8)
texts = st.none() | st.text(max_size=20)
numbers = st.none() | st.integers(0, 2**31)
messages = st.builds(
    Message,
    body=st.binary() | st.text().map(str.encode),
    headers=st.dictionaries(keys, values),
    content_type=texts,
    content_encoding=texts,
    correlation_id=texts,
    reply_to=texts,
    message_id=texts,
    expiration=numbers,
    priority=numbers,
    timestamp=numbers,
    type=texts,
    user_id=texts,
    app_id=texts,
)


@given(messages)
def test_a_line_keeps_all_of_a_message(message: Message) -> None:
    line = archive.dumps(message)
    assert "\n" not in line
    assert repr(archive.loads(line)) == repr(message)  # by repr: 1, 1.0 and True are equal


def test_what_is_not_a_number_is_kept() -> None:
    kept = archive.loads(archive.dumps(Message(b"", {"a": float("nan"), "b": float("-inf")}))).headers
    assert math.isnan(kept["a"])
    assert kept["b"] == float("-inf")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        '{"body": 5}',
        '{"body": null}',
        '{"body": "x", "nonsense": 1}',
        '{"body": "x", "headers": []}',
        '{"body": "x", "priority": "high"}',
        '{"body": {"$bytes": "no base64"}}',
        '{"body": "x", "headers": {"a": {"$timestamp": 5}}}',
        '{"body": "x", "headers": {"a": {"$decimal": "x"}}}',
        '{"body": "x", "headers": {"a": {"$table": 5}}}',
        "[" * 100_000,
    ],
)
def test_what_is_not_a_dead_letter_of_ours_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="."):
        archive.loads(line)


@given(st.dictionaries(st.text().filter(lambda k: not k.startswith(("dead-", "x-", "attempt", "CC", "BCC"))), scalars))
def test_a_replayed_message_is_the_original(headers: dict[str, Any]) -> None:
    original = Message(b"x", headers, "text/plain", correlation_id="c", message_id="m", reply_to="callbacks")
    dead = dead_letter(original, "error", problem("error", "E", "d", "orders.price", 5), "traceback").message
    replayed = DeadLetter.of(dead).replayed("callbacks", datetime.now(UTC))
    assert replayed is not None
    assert (replayed.routing_key, replayed.exchange) == ("orders.price", "")
    assert repr(replayed.message) == repr(original)


def test_a_replayed_message_begins_again() -> None:
    headers = {
        "attempt": 5,
        "CC": ["copies"],
        "x-death": [{"queue": "q"}],
        "x-first-death-queue": "q",
        "x-delivery-count": 7,
    }
    dead = dead_letter(Message(b"x", headers, expiration=500, timestamp=5), "error", problem("error", "E", "d", "s"))
    now = datetime(2030, 1, 2, tzinfo=UTC)
    replayed = DeadLetter.of(dead.message).replayed("callbacks", now)
    assert replayed is not None
    assert replayed.message.headers == {}  # the copies for CC have gone out already
    assert replayed.message.expiration == 500
    assert replayed.message.timestamp == int(now.timestamp())


@pytest.mark.parametrize(
    ("service", "reason", "queue", "expected"),
    [
        ("", "no-callback", None, "callbacks"),
        ("my.callback", "no-callback", None, "my.callback"),
        ("orders", "unroutable", "amq.gen-123", "amq.gen-123"),
        ("", "invalid", None, None),
        ("not a name", "invalid", None, None),
    ],
)
def test_where_a_dead_letter_goes_when_it_is_replayed(
    service: str, reason: str, queue: str | None, expected: str | None
) -> None:
    dead = dead_letter(Message(b"x"), reason, problem(reason, "E", "d", service), queue=queue).message
    replayed = DeadLetter.of(dead).replayed("callbacks", datetime.now(UTC))
    assert (replayed and replayed.routing_key) == expected


def test_a_filter_means_those_that_every_condition_holds_for() -> None:
    now = datetime.now(UTC)
    dead = DeadLetter("cid", "error", "orders.price", 1, now - timedelta(hours=1), {}, Message())
    hour, day = timedelta(minutes=59), timedelta(days=1)
    for meant in (
        Filter(),
        Filter(cids=frozenset({"cid", "x"})),
        Filter(reasons=frozenset({"error"}), services=("orders.*",)),
        Filter(older_than=hour, newer_than=day),
    ):
        assert meant.matches(dead, now)
    for other in (
        Filter(cids=frozenset({"x"})),
        Filter(reasons=frozenset({"error"}), services=("orders",)),
        Filter(older_than=day),
        Filter(newer_than=hour),
    ):
        assert not other.matches(dead, now)


@given(st.dictionaries(st.sampled_from(["dead-at", "dead-attempts", "dead-error", "dead-original"]), values))
def test_nonsense_in_the_headers_of_a_dead_letter_is_survived(headers: dict[str, Any]) -> None:
    dead = DeadLetter.of(Message(b"x", headers))
    Filter(older_than=timedelta(1)).matches(dead, datetime.now(UTC))
    dead.replayed("callbacks", datetime.now(UTC))
