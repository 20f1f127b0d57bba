"""Which calls are too late to be handled."""

from __future__ import annotations

import time

import pytest

from broker.handling.deadlines import MARGIN, Deadlines
from broker.protocol.message import Message
from broker.protocol.queues import reply_queue
from tests.support import run

USUAL = 100.0  # seconds, so that how long the test itself takes does not count
PATIENCE = 1000


@pytest.mark.parametrize(
    ("left", "reply_to", "too_late"),
    [
        (PATIENCE, "call", False),
        (MARGIN * USUAL + 10, "call", False),  # old, but it can be answered
        (MARGIN * USUAL - 10, "call", True),
        (MARGIN * USUAL - 10, "somebody's", False),  # it is said to nobody that it was not handled: so it is
        (-10, "call", True),
        (-10, "somebody's", True),
    ],
)
def test_a_call_is_let_go_when_what_is_left_is_less_than_its_service_needs(
    left: float, reply_to: str, too_late: bool
) -> None:
    async def test() -> None:
        deadlines = Deadlines()
        deadlines.took("orders", USUAL)
        queue = reply_queue().name if reply_to == "call" else reply_to
        message = Message(b"", reply_to=queue, expiration=1000 * PATIENCE)
        assert deadlines.cannot_be_met("orders", message, time.time() + left) is too_late

    run(test())


def test_a_call_that_has_hardly_waited_is_handled_however_long_its_service_takes() -> None:
    async def test() -> None:
        deadlines = Deadlines()
        for _ in range(100):
            deadlines.took("orders", 10 * PATIENCE)
        message = Message(b"", reply_to=reply_queue().name, expiration=1000 * PATIENCE)
        assert not deadlines.cannot_be_met("orders", message, time.time() + PATIENCE - 10)
        for _ in range(100):
            deadlines.took("orders", 1.0)
        assert not deadlines.cannot_be_met("orders", message, time.time() + 10)  # it has become quick again

    run(test())
