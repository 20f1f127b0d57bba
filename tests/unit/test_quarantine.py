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
