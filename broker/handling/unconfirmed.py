"""What a handler has sent and the broker has not confirmed yet: so much and no more, however many invocations it makes.

What is confirmed is let go at once. A failure waits for the end of the handler.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from broker.errors import NotAcceptedError, UnroutableError
from broker.handling.eager import directly
from broker.handling.invoker import Invoker, retrieved
from broker.protocol.message import Publishing

WINDOW = 2000
WINDOW_BYTES = 16 * 1024 * 1024
MOST = 50_000
"""Where it is not possible to wait: on the event loop, and in an outbox."""
MOST_BYTES = 64 * 1024 * 1024

# Held for the moment that a thread takes to count: one for all is cheaper than one for each message.
COUNTING = threading.Lock()


class Unconfirmed:
    """The unconfirmed invocations of one handler. `expect`, `check` and `is_full` are for any thread, all else for the event loop's."""

    __slots__ = (
        "_bytes_expected",
        "_bytes_settled",
        "_confirms",
        "_expected",
        "_failed",
        "_invoker",
        "_lost",
        "_settled",
    )

    def __init__(self, invoker: Invoker) -> None:
        self._invoker = invoker
        self._confirms: deque[tuple[Publishing, asyncio.Future[None]]] = deque()
        self._lost: list[Publishing] = []
        self._failed: BaseException | None = None
        self._expected = self._bytes_expected = 0
        self._settled = self._bytes_settled = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many as may be."""
        return self._expected - self._settled >= WINDOW or self._bytes_expected - self._bytes_settled >= WINDOW_BYTES

    def check(self) -> None:
        """Make sure that there may be one more where it is not possible to wait.

        Raises:
            NotAcceptedError: there are too many.
        """
        if self._expected - self._settled >= MOST or self._bytes_expected - self._bytes_settled >= MOST_BYTES:
            self._let_go()
            count, size = self._expected - self._settled, self._bytes_expected - self._bytes_settled
            if count >= MOST or size >= MOST_BYTES:
                raise NotAcceptedError(
                    f"{count:,} invocations ({size:,} bytes) of this handler are not confirmed yet, and at most {MOST:,} "
                    f"({MOST_BYTES:,} bytes) may be: use `await self.invoke_many(…)`, which waits, and no outbox"
                )

    def expect(self, publishing: Publishing) -> None:
        """It is going to be published."""
        with COUNTING:
            self._expected += 1
            self._bytes_expected += len(publishing.message.body)

    def publish(self, publishing: Publishing) -> None:
        """Publish what is expected."""
        self._confirms.append((publishing, self._invoker.publish(publishing)))
        self._let_go()

    async def room(self) -> None:
        """Wait until there may be one more."""
        while self.is_full:
            if self._confirms:
                await asyncio.wait([self._confirms[0][1]])
                self._let_go()
            else:
                await asyncio.sleep(0)  # it is on its way here from a thread

    async def all_confirmed(self) -> None:
        """Wait until all are confirmed.

        Raises:
            UnroutableError: there is no queue for one of the targets.
            NotAcceptedError: the broker refused one.
            ConnectionLostError: the connection ended.
        """
        while self._settled < self._expected:
            if not self._confirms:
                await asyncio.sleep(0)  # the rest is on its way here from a thread
                continue
            confirm = self._confirms[0][1]
            try:
                await directly(confirm)
            except BaseException:
                if not confirm.done():
                    raise  # this handling was cancelled
            self._let_go()
        for publishing in self._lost:
            await self._invoker.declare_own(publishing.routing_key)
            await self._invoker.publish(publishing)
        self._lost.clear()
        if self._failed is not None:
            raise self._failed

    def forget(self) -> None:
        """Nobody waits for them any more."""
        for _, confirm in self._confirms:
            confirm.add_done_callback(retrieved)

    def _let_go(self) -> None:
        confirms = self._confirms
        while confirms and confirms[0][1].done():
            publishing, confirm = confirms.popleft()
            error = asyncio.CancelledError() if confirm.cancelled() else confirm.exception()
            if error is not None:
                self._note(publishing, error)
            self._settled += 1
            self._bytes_settled += len(publishing.message.body)

    def _note(self, publishing: Publishing, error: BaseException) -> None:
        if isinstance(error, UnroutableError) and self._invoker.hosts(publishing.routing_key):
            self._lost.append(publishing)  # somebody has deleted a queue of ours
        elif self._failed is None or (
            isinstance(self._failed, NotAcceptedError) and not isinstance(error, NotAcceptedError)
        ):
            # The first; but that the connection was lost counts more, as then all of it comes again.
            self._failed = error
