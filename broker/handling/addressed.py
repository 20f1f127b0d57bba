"""Queues whose name says which callback a reply is for, as it comes from a server that echoes nothing but the correlation ID."""

from __future__ import annotations

import asyncio

from broker.errors import AckbackError
from broker.protocol.message import Publishing
from broker.protocol.queues import addressed_queue
from broker.transport.interface import Connection


class AddressedQueues:
    """Those that one process has asked for replies on. Each is declared before the first request that names it."""

    def __init__(self, callback_queue: str) -> None:
        self._callback_queue = callback_queue
        self._names: dict[str, str] = {}
        self._connection: Connection | None = None
        self._declared: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, queue: object) -> bool:
        return queue in self._names

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
        self._names[name] = callbacks[0]
        return name

    async def declare(self, connection: Connection, publishing: Publishing) -> None:
        """Declare the queue that a request's reply comes to, if that has not been done on this connection.

        Raises what `Connection.declare` raises.
        """
        await asyncio.shield(self._declare(connection, str(publishing.message.reply_to)))

    async def declare_again(self, connection: Connection) -> None:
        """Declare all that are in use: somebody may have deleted one."""
        self._declared.clear()
        await asyncio.gather(*(self._declare(connection, name) for name in self._names))

    def _declare(self, connection: Connection, name: str) -> asyncio.Task[None]:
        if self._connection is not connection:
            self._connection = connection
            self._declared.clear()
        declared = self._declared.get(name)
        if declared is None or _failed(declared):
            queue = addressed_queue(self._callback_queue, self._names[name])
            declared = self._declared[name] = asyncio.ensure_future(connection.declare(queue))
            declared.add_done_callback(_failed)  # its error is for those who publish
        return declared


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or isinstance(task.exception(), AckbackError))
