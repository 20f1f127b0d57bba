"""The arithmetic of waits, without a broker."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import Retry, RetryAfter
from broker.protocol.delays import LEVELS, MAXIMUM, delayed, due, level_name, target, whole_seconds
from broker.protocol.message import Message, Publishing

seconds = st.integers(1, MAXIMUM)
own_headers = st.text().filter(
    lambda name: not name.startswith(("x-death", "x-first-death-", "x-last-death-", "delayed"))
)


def lowest(low: float, _: float) -> float:
    return low


def highest(_: float, high: float) -> float:
    return high


def test_the_default_policy_waits_about_two_minutes_in_all() -> None:
    waits = [Retry(jitter=0).wait(attempt, OSError()) for attempt in (1, 2, 3, 4, 5)]
    assert waits == [3, 9, 27, 81, None]


@given(st.integers(1, 10_000), st.floats(0, MAXIMUM), st.floats(1, 1e300), st.floats(0, MAXIMUM), st.floats(0, 1))
def test_any_policys_wait_is_a_whole_number_of_seconds_that_the_chain_can_wait(
    attempt: int, first: float, factor: float, maximum: float, jitter: float
) -> None:
    retry = Retry(attempts=10_001, first=first, factor=factor, maximum=maximum, jitter=jitter)
    shortest, longest = (retry.wait(attempt, OSError(), uniform) for uniform in (lowest, highest))
    assert shortest is not None
    assert longest is not None
    assert 0 <= shortest <= longest <= MAXIMUM
    assert longest <= round(min(maximum * (1 + jitter), MAXIMUM))


def test_what_the_handler_says_comes_before_the_policy() -> None:
    assert Retry(on=KeyError, maximum=1).wait(1, RetryAfter(100.5)) == 101
    assert Retry(attempts=2).wait(2, RetryAfter(1)) is None


@pytest.mark.parametrize(
    "numbers",
    [{"attempts": 0}, {"first": -1}, {"maximum": 1e9}, {"factor": 0.5}, {"factor": float("inf")}, {"jitter": 1.1}],
)
def test_a_policys_numbers_are_checked(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Retry: .*{next(iter(numbers))}"):
        Retry(**numbers)


@pytest.mark.parametrize("given_", ["OSError", [OSError, "x"], [int], 5])
def test_a_policys_exceptions_are_checked(given_: Any) -> None:
    with pytest.raises(TypeError):
        Retry(on=given_)


@given(seconds)
def test_the_routing_key_spells_the_seconds_and_the_first_exchange_is_that_of_their_highest_bit(wait: int) -> None:
    key, _, exchange = delayed(Publishing("orders", Message(b"x")), wait)
    bits = key.split(".")
    assert len(bits) == LEVELS
    assert sum(1 << (LEVELS - 1 - place) for place, bit in enumerate(bits) if bit == "1") == wait
    assert exchange == level_name(max(level for level in range(LEVELS) if wait >> level & 1))


@given(seconds, st.none() | st.integers(0, 10**9), st.dictionaries(own_headers, st.integers()))
def test_what_leaves_the_chain_is_what_went_in(wait: int, expiration: int | None, headers: dict[str, Any]) -> None:
    message = Message(b"x", headers, expiration=expiration, message_id="m")
    publishing = delayed(Publishing("orders", message), wait)
    assert target(publishing) == "orders"
    sent = publishing.message
    assert sent.expiration is None
    waited = [{"queue": level_name(level), "reason": "expired"} for level in range(LEVELS) if wait >> level & 1]
    sent.headers = {**sent.headers, "x-death": waited, "x-first-death-queue": "q", "x-last-death-reason": "expired"}
    queue, out, exchange = due(sent).publishing
    assert (queue, exchange) == ("orders", "")
    assert (out.body, out.headers, out.expiration, out.message_id) == (b"x", headers, expiration, "m")
    assert message.headers == headers  # the original is left alone


@given(seconds, st.sets(st.integers(0, LEVELS - 1)))
def test_what_leaves_the_chain_too_early_goes_back_for_the_rest(wait: int, levels: set[int]) -> None:
    sent = delayed(Publishing("orders", Message(b"x")), wait).message
    sent.headers = {**sent.headers, "x-death": [{"queue": level_name(level)} for level in levels]}
    rest = max(0, wait - sum(1 << level for level in levels))
    again = due(sent)
    assert again.publishing == delayed(Publishing("orders", Message(b"x")), rest)


@given(st.floats(0, MAXIMUM))
def test_a_delay_is_never_shorter_than_asked_for(delay: float) -> None:
    assert delay <= whole_seconds(delay) <= delay + 1
