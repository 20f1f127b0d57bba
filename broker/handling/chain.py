"""Publishing into the delay chain, which is declared when a connection first needs it."""

from __future__ import annotations

import asyncio

from broker.errors import UnroutableError
from broker.protocol.message import Publishing
from broker.protocol.queues import delay_chain
from broker.transport.interface import Connection


class DelayChain:
    """The chain that `protocol/delays.py` describes, as one process uses it."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._declaring: asyncio.Task[None] | None = None

    async def publish(self, connection: Connection, publishing: Publishing) -> None:
        """Publish to the chain; done once the broker has confirmed.

        Raises:
            ConfigurationError: the chain cannot be declared; the message says why.
            NotAcceptedError: the broker refused the message.
            ConnectionLostError: the connection ended first.
        """
        await asyncio.shield(self.declare(connection))
        try:
            await connection.publish(publishing)
        except UnroutableError:  # somebody has deleted parts of it
            self.forget()
            await asyncio.shield(self.declare(connection))
            await connection.publish(publishing)

    def forget(self) -> None:
        """The chain is not whole any more: declare it again before the next use."""
        self._connection = None

    def declare(self, connection: Connection) -> asyncio.Task[None]:
        """Begin to declare it, if that has not been done; it takes a second the first time."""
        if self._connection is not connection or self._declaring is None or failed(self._declaring):
            self._connection = connection
            self._declaring = asyncio.ensure_future(connection.declare(*delay_chain()))
            self._declaring.add_done_callback(failed)  # its error is for those who publish
        return self._declaring


def failed(task: asyncio.Task[None]) -> bool:
    """Whether a declaration has failed; its error counts as looked at then."""
    return task.done() and (task.cancelled() or task.exception() is not None)
