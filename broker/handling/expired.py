"""Calls that nobody waits for any more are counted and told of now and then: under overload there are thousands."""

from __future__ import annotations

import asyncio
from collections import Counter

from broker.log import logger

TELL_EVERY = 10.0


class ExpiredCalls:
    """Counts the calls, by service, that were not handled as their callers waited no longer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._counts: Counter[str] = Counter()

    def count(self, service: str) -> None:
        if not self._counts:
            self._loop.call_later(TELL_EVERY, self._tell)
        self._counts[service] += 1

    def _tell(self) -> None:
        for service, count in self._counts.items():
            logger.warning("calls of %r that were not handled, as nobody waits for them any more: %d", service, count)
        self._counts.clear()
