"""Calls whose callers wait no longer, or will not when they could be answered: they are not handled.

Under overload the oldest requests come first, and those are as old as their callers are patient: whoever handles them does nothing but
work that nobody waits for. So a call that has waited for most of its time is let go when what is left is less than its service needs,
and the time goes to one that can be answered. They are counted and told of now and then, as there may be thousands.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from broker.log import logger
from broker.protocol import headers as h
from broker.protocol.message import Message
from broker.protocol.queues import is_call

TELL_EVERY = 10.0
NEW_SHARE = 0.1
"""Of the latest handling in a service's usual time."""
MARGIN = 1.5
"""Times a service's usual time that has to be left, as some take longer."""
REPLYS_WAY = 0.05
"""Seconds that have to be left beside: under overload, which is what this is for, RabbitMQ and the caller are busy, too."""


class Deadlines:
    """Those of the calls to the services of this process. Times are in seconds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._counts: Counter[str] = Counter()
        self._usual: dict[str, float] = {}

    def took(self, service: str, seconds: float) -> None:
        """A call was handled."""
        usual = self._usual.get(service, seconds)
        self._usual[service] = usual + NEW_SHARE * (seconds - usual)

    def cannot_be_met(self, service: str, message: Message, deadline: float) -> bool:
        """Whether a call with that deadline, in seconds since 1970, is too late to be answered in time.

        One that has waited for less than half of its time is always handled: it is not overload that makes it late, and how long a
        service takes is only learnt by handling.
        """
        left = deadline - time.time()
        if left <= 0:
            return True
        needed = MARGIN * self._usual.get(service, 0.0) + REPLYS_WAY
        return left < needed and is_call(message) and left < (message.expiration or 0) / 2000

    def let_go(self, service: str) -> None:
        """Count a call that is not handled."""
        if not self._counts:
            self._loop.call_later(TELL_EVERY, self._tell)
        self._counts[service] += 1

    def _tell(self) -> None:
        for service, count in self._counts.items():
            logger.warning(
                "%d calls of %r were not handled, as their callers wait no longer (%r: by the clocks of both sides)",
                count,
                service,
                h.DEADLINE,
            )
        self._counts.clear()
