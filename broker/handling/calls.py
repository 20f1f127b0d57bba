"""Request and reply: calls that wait for the answer, over a reply queue of the connection's own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from broker.errors import ConnectionLostError, RemoteError, alarm_note
from broker.protocol import bodies, problems
from broker.protocol import headers as h
from broker.protocol.message import Message, Publishing
from broker.protocol.queues import reply_queue
from broker.protocol.requests import MAX_EXPIRATION
from broker.transport.interface import Connection, Delivery

# The replies of calls are acknowledged as they come: nothing slow happens between, so the window only has to fill the wire.
PREFETCH = 1000


class Calls:
    """The calls that wait for their replies."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[asyncio.Future[Message]]] = {}
        self._connection: Connection | None = None
        self._reply_queue: asyncio.Task[str] | None = None

    def __len__(self) -> int:
        return sum(len(futures) for futures in self._waiting.values())

    async def call(
        self, connection: Connection, publishing: Publishing, timeout: float, latest: float | None = None
    ) -> Any:
        """Publish a request and return the response's payload. Its deadline is not after `latest` (seconds since 1970).

        Raises:
            RemoteError: the service answered with a failure.
            TimeoutError: no reply within `timeout` seconds.
            NotAcceptedError: the request was not accepted (UnroutableError: nobody hosts the service).
            ConnectionLostError: the connection ended while waiting; the request may or may not have been handled.
        """
        target, message, _ = publishing
        cid = message.correlation_id
        assert cid is not None
        # Nobody waits after that, so nobody needs to handle it.
        message.expiration = max(1, round(1000 * min(timeout, MAX_EXPIRATION)))
        ends = time.time() + timeout
        message.headers[h.DEADLINE] = round(1000 * (ends if latest is None else min(ends, latest)))
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                message.reply_to = await self._reply_queue_on(connection)
                reply = await self._exchange(connection, publishing, cid)
        except TimeoutError:
            if scope.expired():
                why = alarm_note(connection.blocked)
                raise TimeoutError(f"no reply from {target!r} within {timeout:g} s{why} (CID {cid})") from None
            raise
        if reply.headers.get(h.STATUS) == h.ERROR:
            raise RemoteError(problems.from_json(reply.body, target))
        return bodies.decode(reply)

    async def _exchange(self, connection: Connection, publishing: Publishing, cid: str) -> Message:
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(cid, [])
        waiting.append(answer)

        def on_confirm(confirm: asyncio.Future[None]) -> None:
            error = None if confirm.cancelled() else confirm.exception()
            if error is not None and not answer.done():
                answer.set_exception(error)

        try:
            connection.publish(publishing).add_done_callback(on_confirm)
            return await answer
        finally:
            waiting.remove(answer)
            if not waiting:
                self._waiting.pop(cid, None)

    async def _reply_queue_on(self, connection: Connection) -> str:
        if self._connection is not connection or self._reply_queue is None or _failed(self._reply_queue):
            self._connection = connection
            self._reply_queue = asyncio.ensure_future(self._open(connection))
        return await asyncio.shield(self._reply_queue)

    async def _open(self, connection: Connection) -> str:
        queue = reply_queue()
        await connection.declare(queue)
        await connection.consume(queue.name, PREFETCH, self._on_reply, self._on_ended)
        connection.lost.add_done_callback(lambda lost: None if lost.cancelled() else self._on_ended(lost.result()))
        return queue.name

    def _on_reply(self, delivery: Delivery) -> None:
        message = delivery.message
        for answer in self._waiting.get(message.correlation_id or "", ()):
            if not answer.done():
                answer.set_result(message)
        delivery.ack()

    def _on_ended(self, reason: str) -> None:
        self._connection = None
        for futures in self._waiting.values():
            for answer in futures:
                if not answer.done():
                    answer.set_exception(
                        ConnectionLostError(
                            f"{reason}, while waiting for a reply: the request may or may not have been handled"
                        )
                    )


def _failed(task: asyncio.Task[str]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
