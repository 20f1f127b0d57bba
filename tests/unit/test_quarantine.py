"""What is counted against a message, and what it was handled."""

from __future__ import annotations

import pytest

from broker.protocol import quarantine
from broker.protocol.message import Message


def counted(crashes: int, *, rabbitmq_4: bool = True) -> Message:
    counts = {"x-delivery-count": crashes} | ({"x-acquired-count": crashes} if rabbitmq_4 else {})
    return Message(b"1", correlation_id="c1", headers=counts)


@pytest.mark.parametrize(
    ("crashes", "forgiving", "handled"),
    [(1, False, 1), (2, False, 1), (5, False, 1), (2, True, 2), (5, True, 2)],
)
def test_a_process_that_dies_while_it_hands_a_suspect_over_has_not_handled_it(
    crashes: int, forgiving: bool, handled: int
) -> None:
    suspect = counted(crashes)
    assert quarantine.is_suspect(suspect.headers, "s", redelivered=True, forgiving=forgiving)
    handed_over = quarantine.isolated(suspect, "s", "q", is_reply=False, forgiving=forgiving).again
    assert handed_over is not None
    assert quarantine.released(handed_over.message)[:2] == ("s", handled)


def test_where_given_back_counts_as_a_crash_one_is_forgiven() -> None:
    assert not quarantine.is_suspect(counted(1, rabbitmq_4=False).headers, "s", redelivered=True, forgiving=False)
    assert quarantine.is_suspect(counted(2, rabbitmq_4=False).headers, "s", redelivered=True, forgiving=False)


def test_a_copy_that_is_given_back_keeps_what_is_counted_and_adds_nothing() -> None:
    first = counted(1, rabbitmq_4=False)
    for redelivered in (True, False, False):  # RabbitMQ knows nothing of what its copies were
        assert not quarantine.may_be_given_back(first.headers, redelivered=redelivered)
        copied = quarantine.given_back(first, "s", redelivered=redelivered).again
        assert copied is not None and copied.routing_key == "s"
        first = copied.message
        assert quarantine.comes_again(first.headers, redelivered=False)
        assert not quarantine.is_suspect(first.headers, "s", redelivered=False, forgiving=False)
    crashed = Message(headers=first.headers | {"x-delivery-count": 1})
    assert quarantine.is_suspect(crashed.headers, "s", redelivered=True, forgiving=False)
    isolated = quarantine.isolated(crashed, "s", "q", is_reply=False, forgiving=False).again
    assert isolated is not None
    service, deliveries, released = quarantine.released(isolated.message)
    assert (service, deliveries, released.headers) == ("s", 2, {})


def test_what_is_given_back_uncounted_needs_no_copy() -> None:
    assert quarantine.may_be_given_back({}, redelivered=False)
    assert quarantine.may_be_given_back(counted(1).headers, redelivered=True)
    assert quarantine.may_be_given_back({"given-back": "x"}, redelivered=False)
