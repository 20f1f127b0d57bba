"""Queues whose name says which callback a reply is for, as it comes from a server that echoes nothing but the correlation ID."""

from __future__ import annotations

import asyncio
import time

from broker.handling.chain import DelayChain, failed
from broker.protocol.message import Publishing
from broker.protocol.queues import addressed_queue
from broker.transport.interface import Connection

AGAIN_AFTER = 20.0
"""Seconds after which a queue is declared once more before it is named: somebody may have deleted it."""


class AddressedQueues:
    """Those that one process has asked for replies on. Each is declared before the first request that names it."""

    def __init__(self, callback_queue: str) -> None:
        self._callback_queue = callback_queue
        self.names: dict[str, str] = {}
        """The callback of each."""
        self._connection: Connection | None = None
        self._declared: dict[str, tuple[float, asyncio.Task[None]]] = {}

    def reply_to(self, target: str, callbacks: tuple[str, ...]) -> str | None:
        """The queue on which replies for the one callback are asked for; None if there is no callback.

        Raises:
            ValueError: there are several callbacks.
        """
        if len(callbacks) > 1:
            raise ValueError(
                f"{target!r} echoes nothing, so the queue that it replies to says for which callback that is: name one callback, "
                f"not {len(callbacks)}"
            )
        if not callbacks:
            return None
        name = addressed_queue(self._callback_queue, callbacks[0]).name
        self.names[name] = callbacks[0]
        return name

    def keep(self, name: str, callback: str) -> None:
        """A reply has come by way of a queue for a callback that is hosted here: it is declared again, too, if it is deleted, as whoever
        asked may be gone."""
        self.names[name] = callback

    async def publish(self, connection: Connection, publishing: Publishing, chain: DelayChain) -> None:
        """Publish a request, once the queue that its reply comes to is declared if that is one of these, by way of the chain if it waits.

        Raises what `Connection.declare`, `Connection.publish` and `DelayChain.publish` raise.
        """
        if (reply_to := publishing.message.reply_to) in self.names:
            await asyncio.shield(self._declare(connection, str(reply_to)))
        await (chain.publish(connection, publishing) if publishing.exchange else connection.publish(publishing))

    async def declare_again(self, connection: Connection) -> None:
        """Declare all that are in use, as replies may still come when nothing is asked any more."""
        self._declared.clear()
        await asyncio.gather(*(self._declare(connection, name) for name in self.names))

    def _declare(self, connection: Connection, name: str) -> asyncio.Task[None]:
        if self._connection is not connection:
            self._connection = connection
            self._declared.clear()
        now = time.monotonic()
        at, declared = self._declared.get(name, (now, None))
        if declared is None or now - at > AGAIN_AFTER or failed(declared):
            queue = addressed_queue(self._callback_queue, self.names[name])
            declared = asyncio.ensure_future(connection.declare(queue))
            declared.add_done_callback(failed)  # its error is for those who publish
            self._declared[name] = now, declared
        return declared
