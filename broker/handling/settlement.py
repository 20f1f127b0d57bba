"""What is published, and confirmed, before a delivery is acknowledged.

In comes an outcome; out go its reply, forwards, dead letter or next attempt, and then the acknowledgement. Nearly all have
nothing, or a reply, to publish: these take no task, the confirm's callback acknowledges. All else waits, for a second at most
where a queue refuses (`patience.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from broker.errors import ConnectionLostError, UnencodableError, UnroutableError
from broker.handling import events
from broker.handling.eager import Eager
from broker.handling.invoker import Invoker
from broker.handling.patience import PatientPublisher
from broker.log import logger
from broker.protocol import callbacks, delays
from broker.protocol import headers as h
from broker.protocol.message import Message, Publishing
from broker.protocol.outcomes import NOTHING, Outcome, dead_letter, failure, filed, stripped
from broker.protocol.problems import problem
from broker.transport.interface import Delivery

LONGEST_REFUSAL = 3600
"""Seconds after which a reply that a client's queue refuses becomes a dead letter."""


class Settlement:
    """Settles deliveries. `settled` is called once one is acknowledged, given back, or lost."""

    def __init__(self, invoker: Invoker, eager: Eager, settled: Callable[[Delivery], None]) -> None:
        self._invoker = invoker
        self._eager = eager
        self._settled = settled
        self.publisher = PatientPublisher(invoker)

    def settle(self, outcome: Outcome, delivery: Delivery) -> None:
        """Publish all of an outcome, and acknowledge once it is confirmed.

        Not if the delivery is lost meanwhile: the message comes again, and with it the same outcome.
        """
        if outcome is NOTHING:
            self._acknowledge(delivery)
            return
        reply, dead, forwards, again, refused, _ = outcome
        if reply is None or dead is not None or forwards or again is not None or refused or not delivery.live:
            self._eager.begin(self._settle_waiting(outcome, delivery))
            return
        self._invoker.publish(reply).add_done_callback(partial(self._replied, outcome, delivery))

    def give_back(self, delivery: Delivery) -> None:
        """Have the broker deliver it again, here or elsewhere."""
        delivery.requeue()
        self._settled(delivery)

    async def fail(self, delivery: Delivery, error: BaseException) -> None:
        """Give back what was not handled to its end; what an error of our own stopped becomes a dead letter."""
        if isinstance(error, ConnectionLostError):
            logger.debug("the connection was lost while a message was handled: the broker delivers it again")
            self._settled(delivery)
        elif isinstance(error, Exception):
            logger.error(
                "a message could not be handled because of an error in ackback itself; it becomes a dead letter",
                exc_info=error,
            )
            await self._bury_after_bug(delivery)
        else:
            self.give_back(delivery)
            if not isinstance(error, asyncio.CancelledError):
                raise error

    def _acknowledge(self, delivery: Delivery) -> None:
        delivery.ack()
        self._settled(delivery)

    def _replied(self, outcome: Outcome, delivery: Delivery, confirm: asyncio.Future[None]) -> None:
        if not confirm.cancelled() and confirm.exception() is None:
            self._acknowledge(delivery)
        else:
            self._eager.begin(self._settle_waiting(outcome, delivery))

    async def _settle_waiting(self, outcome: Outcome, delivery: Delivery) -> None:
        try:
            if not delivery.live:
                raise ConnectionLostError("the delivery was lost with its connection")
            await self.publish(outcome, delivery.message)
            self._acknowledge(delivery)
        except BaseException as error:
            await self.fail(delivery, error)

    async def _bury_after_bug(self, delivery: Delivery) -> None:
        error = problem("error", "Internal error", "an error in ackback itself; see the daemon's log", "")
        try:
            await self.file(dead_letter(delivery.message, "error", error))
        except ConnectionLostError:
            self._settled(delivery)
        else:
            self._acknowledge(delivery)

    async def publish(self, outcome: Outcome, message: Message) -> None:
        """Publish all of a message's outcome, and wait until it is confirmed.

        Raises:
            ConnectionLostError: the connection ended first.
        """
        publishing = [self._forward(one, message) for one in outcome.forwards]
        if outcome.dead is not None:
            publishing.append(self.file(outcome.dead))
        if outcome.reply is not None:
            publishing.append(self._reply(outcome.reply, outcome.refused))
        if outcome.again is not None:
            publishing.append(self._publish_again(outcome.again, outcome.refused, message))
        await asyncio.gather(*publishing)

    async def _publish_again(self, publishing: Publishing, refused: int, message: Message) -> None:
        """Send a message to be handled once more; one that cannot be sent ends as a dead letter."""
        try:
            if publishing.exchange == "" and self._invoker.hosts(publishing.routing_key):
                await self._publish_own(publishing, refused)
            else:
                await self.publisher.publish(publishing, refused)
        except (UnroutableError, UnencodableError) as error:
            reason = "unroutable" if isinstance(error, UnroutableError) else "error"
            logger.warning("%s; it becomes a dead letter", error, extra={"cid": publishing.message.correlation_id})
            name = delays.target(publishing)
            attempt = publishing.message.headers.get(h.ATTEMPT, 1)
            told = problem(reason, type(error).__name__, f"it cannot be handled again: {error}", name, attempt)
            original = message if publishing.exchange else publishing.message
            await self.publish(failure(original, reason, told), message)

    async def _reply(self, publishing: Publishing, refused: int) -> None:
        """A reply to a queue of ours is never dropped; one to a client that is gone is, unless it asks for a callback."""
        queue, message, _ = publishing
        if self._invoker.hosts(queue):
            await self._publish_own(publishing, refused)
            return
        cid = message.correlation_id
        if refused >= LONGEST_REFUSAL:
            detail = f"the reply's queue {queue!r} has refused it for {refused // 60} minutes (is it full?)"
            await self._bury_reply(publishing, detail)
            return
        try:
            await self.publisher.publish(publishing, refused, is_reply=True)
        except UnroutableError:
            if h.CALLBACK not in message.headers:
                logger.warning(
                    "the reply to %r is dropped: there is no such queue (any more)", queue, extra={"cid": cid}
                )
                return
            detail = f"the reply's queue {queue!r} does not exist, so its callback cannot be reached"
            await self._bury_reply(publishing, detail)

    async def _bury_reply(self, publishing: Publishing, detail: str) -> None:
        queue, message, _ = publishing
        logger.warning("%s; it becomes a dead letter", detail, extra={"cid": message.correlation_id})
        error = problem("unroutable", "Unroutable reply", detail, str(message.headers.get(h.SERVICE, "")))
        await self.file(dead_letter(message, "unroutable", error, queue=queue))

    async def _forward(self, publishing: Publishing, message: Message) -> None:
        name = publishing.routing_key
        if name in self._invoker.registry:
            await self._publish_own(publishing)
            return
        try:
            await self.publisher.publish(publishing)
        except UnroutableError:
            near = self._invoker.registry.nearest(name)
            hint = f"; did you mean {near!r}?" if near else ""
            detail = f"no daemon hosts the callback service {name!r}: there is no such queue{hint}"
            logger.warning(
                "%s; its reply becomes a dead letter", detail, extra={"cid": publishing.message.correlation_id}
            )
            reply = callbacks.by_address(message, self._invoker.callback_queue)
            outcome = callbacks.no_callback(reply, detail, name)
            assert outcome.dead is not None
            await self.file(outcome.dead)

    async def file(self, dead: Publishing) -> None:
        """File a dead letter; one whose foreign headers leave no room for its own is filed without them."""
        dead = filed(dead, datetime.now(UTC))
        if (observer := self._invoker.observer) is not None:
            observer.note(events.dead(dead.message))
        try:
            await self._publish_own(dead)
        except UnencodableError as error:
            logger.warning("%s; it is filed without its own headers", error, extra={"cid": dead.message.correlation_id})
            await self._publish_own(stripped(dead))

    async def _publish_own(self, publishing: Publishing, refused: int = 0) -> None:
        """Publish to a queue of our own, which is declared again should somebody have deleted it."""
        try:
            await self.publisher.publish(publishing, refused)
        except UnroutableError:
            await self._invoker.declare_own(publishing.routing_key)
            await self.publisher.publish(publishing, refused)
