"""Publishing what has to arrive, without holding anybody up.

A delivery keeps its place in a window, which it shares with others, until what comes of it is confirmed. So what a queue refuses (as
it is full, say) is tried for a second, and then waits in the delay chain, where it holds no place: each wait is longer than the last.
While a queue goes on to refuse, what comes for it next is tried once.
"""

from __future__ import annotations

import asyncio
import time

from broker.backoff import backoff
from broker.errors import ConfigurationError, NotAcceptedError, UnencodableError, UnroutableError
from broker.handling.invoker import Invoker
from broker.log import logger
from broker.protocol import delays
from broker.protocol.message import Publishing

PATIENCE = 1.0
"""Seconds for which what a queue refuses is tried in place."""
FORGOTTEN_AFTER = 120.0
"""Seconds after which a refusal says nothing about now. What waits is tried more often."""
MOST_REFUSING = 1000


class PatientPublisher:
    """Publishes until the broker has the message, in its queue or in the delay chain."""

    def __init__(self, invoker: Invoker) -> None:
        self._invoker = invoker
        self._refusing: dict[str, tuple[float, float]] = {}
        """When a queue first refused, and when it last did."""

    async def publish(self, publishing: Publishing, refused: int = 0, *, is_reply: bool = False) -> None:
        """Publish, or have it published later.

        `refused` is for how many seconds its queue has refused it before, `is_reply` whether it is a reply to a client.

        Raises:
            UnroutableError: there is no such queue.
            UnencodableError: it cannot be published at all.
            ConnectionLostError: the connection ended.
        """
        queue = publishing.routing_key
        for pause in backoff():
            try:
                await self._invoker.publish(publishing)
            except (UnroutableError, UnencodableError):
                raise
            except (NotAcceptedError, ConfigurationError) as error:
                if self._refuses_for_long(queue, error) and await self._postpone(
                    publishing, refused, is_reply=is_reply
                ):
                    return
                await asyncio.sleep(pause)
            else:
                if self._refusing.pop(queue, None):
                    logger.info("queue %r accepts messages again", queue)
                return

    def _refuses_for_long(self, queue: str, error: Exception) -> bool:
        """Note a refusal; whether the queue has refused for too long to wait for it."""
        now = time.monotonic()
        first, last = self._refusing.get(queue, (now, now))
        if now - last > FORGOTTEN_AFTER:
            first = now
        elif queue not in self._refusing:
            logger.warning("%s; trying again until it is accepted", error)
            if self._invoker.connection is not None:
                self._invoker.chain.declare(self._invoker.connection)  # it may be needed soon
            if len(self._refusing) >= MOST_REFUSING:
                self._refusing.clear()
        self._refusing[queue] = first, now
        return now - first >= PATIENCE

    async def _postpone(self, publishing: Publishing, refused: int, *, is_reply: bool) -> bool:
        """Have it wait in the delay chain; False if it cannot."""
        if publishing.exchange:
            return False
        try:
            await self._invoker.publish(delays.postponed(publishing, refused, is_reply=is_reply))
        except (NotAcceptedError, ConfigurationError, UnencodableError) as error:
            logger.debug("%s: it cannot wait in the delay chain", error)
            return False
        return True
