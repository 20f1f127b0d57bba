"""What the core asks of a transport, and nothing more.

A transport makes connections. A connection declares queues, publishes with confirms, consumes with acknowledgements, and
says when it is lost. It never reconnects by itself: who holds it decides what to do then. All calls are made on the
event loop that made the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from broker.protocol.entities import Binding, Exchange, Queue
from broker.protocol.message import Message, Publishing

Offset = Literal["first", "last", "next"] | int | datetime
"""Where a stream's consumer begins (https://www.rabbitmq.com/docs/streams#consuming). A message's own is its header `x-stream-offset`."""


class Delivery(Protocol):
    """One message handed to a consumer. Exactly one of `ack` and `requeue` is called, once.

    Both return at once; on a connection that is lost they do nothing, as the broker delivers the message again.
    """

    @property
    def message(self) -> Message: ...
    @property
    def redelivered(self) -> bool: ...
    @property
    def live(self) -> bool:
        """Whether an acknowledgement would still reach the broker. If not, it delivers the message again."""

    def ack(self) -> None:
        """The message is dealt with."""

    def requeue(self) -> None:
        """Give the message back to its queue, to be delivered again."""


class QueueState(NamedTuple):
    """How many messages on a queue are ready to be delivered, and how many consumers it has."""

    ready: int
    consumers: int


class Server(NamedTuple):
    """What a broker says that it is: its version, and the name of its cluster. Both are empty where it does not say."""

    version: tuple[int, ...]
    cluster: str


class Consumer(Protocol):
    """What was delivered may be acknowledged at any time, also when no more is delivered.

    Every method may raise ConnectionLostError, but for `cancel`.
    """

    async def pause(self) -> None:
        """Deliver nothing more for now."""

    async def resume(self, prefetch: int) -> None:
        """Deliver again, after `pause`, at most `prefetch` unacknowledged besides those from before it."""

    async def cancel(self) -> None:
        """End the deliveries for good."""


class Connection(Protocol):
    """A live connection to a broker."""

    lost: asyncio.Future[str]
    """Done when the connection has ended without `close`; its result says why."""
    server: Server

    @property
    def blocked(self) -> bool:
        """Whether the broker has told that it takes no messages, as it has raised an alarm."""

    async def declare(self, *wanted: Queue | Exchange | Binding) -> None:
        """Make sure, one after the other, that they exist as described.

        Raises:
            OtherArgumentsError: one exists with other arguments.
            ConfigurationError: the user may not declare it.
            ConnectionLostError: the connection ended.
        """

    async def delete(self, one: Queue | Exchange) -> int:
        """Delete it, if it is there, and return how many messages were on it.

        Raises:
            ConfigurationError: the user may not delete it.
            ConnectionLostError: the connection ended.
        """

    async def look_at(self, queue: str) -> QueueState | None:
        """What is on a queue at the moment; None if there is no such queue. One that belongs to another connection seems empty.

        Raises:
            ConfigurationError: the user may not look at it.
            ConnectionLostError: the connection ended.
        """

    def publish(self, publishing: Publishing) -> asyncio.Future[None]:
        """Publish a `Publishing`, mandatory and persistent; done once the broker has confirmed.

        An exchange other than the default one must exist: RabbitMQ ends the connection if it does not.

        The future raises:
            UnroutableError: no queue takes it.
            NotAcceptedError: the broker refused the message (a full queue, say).
            ConnectionLostError: the connection ended first; the message may or may not have been accepted.
        """

    async def consume(
        self,
        queue: str,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
        on_cancelled: Callable[[str], None],
        timeout: float | None = None,
        offset: Offset | None = None,
    ) -> Consumer:
        """Start deliveries, at most `prefetch` of them unacknowledged.

        `offset` is where in a stream they begin; it may be somewhat earlier.

        `timeout` is how many seconds RabbitMQ waits for an acknowledgement, in place of its own 30 minutes, after which it delivers
        the message again (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).

        `on_cancelled` is called with the reason if the broker ends the deliveries (the queue was deleted, say) while the
        connection lives on.

        Raises:
            ConfigurationError: there is no such queue, or the user may not read it.
            ConnectionLostError: the connection ended.
        """

    async def close(self) -> None:
        """Flush what is acknowledged and end the connection. Everything unacknowledged goes back to its queue."""


class Transport(Protocol):
    @property
    def address(self) -> str:
        """Where it connects to, fit to be shown: no password."""

    async def connect(self, *, in_one: bool = False) -> Connection:
        """Connect; `in_one` publishes and consumes by the same TCP connection, for who may do neither while RabbitMQ has raised an alarm.

        Raises:
            BrokerUnavailableError: nothing answers there, or it refuses us; the message says which.
        """
