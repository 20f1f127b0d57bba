"""The way of a delivery: to the dispatcher, its outcome to the broker, and only then the acknowledgement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from broker.backoff import backoff
from broker.errors import (
    ConfigurationError,
    ConnectionLostError,
    InvalidInputError,
    NotAcceptedError,
    UnencodableError,
    UnroutableError,
)
from broker.handling.dispatcher import Dispatcher
from broker.handling.idempotency import Once
from broker.handling.invoker import Invoker
from broker.handling.threads import Threads
from broker.hosting.definition import ServiceDefinition
from broker.hosting.registry import Registry
from broker.log import logger
from broker.protocol import callbacks, deaths, delays, quarantine
from broker.protocol import headers as h
from broker.protocol.cids import new_cid
from broker.protocol.headers import Headers
from broker.protocol.message import Message, Publishing
from broker.protocol.outcomes import DEAD_REASON, DEAD_SERVICE, NOTHING, Outcome, failure, filed, forwards, stripped
from broker.protocol.outcomes import dead_letter as dead_letter_of
from broker.protocol.problems import problem
from broker.protocol.queues import DUE, UNDERTAKER
from broker.transport.interface import Delivery

# Replies are handled in place or passed on, neither for long: enough of them to keep a busy daemon's callbacks fed.
CALLBACK_PREFETCH = 200
UNDERTAKER_PREFETCH = 50
DUE_PREFETCH = 200
# One at a time: a crash counts against all that a consumer has in hand.
QUARANTINE_PREFETCH = 1


# How many seconds RabbitMQ waits for an acknowledgement. A handler without a timeout may take days: 30 of them is what RabbitMQ's timers
# are good for (they count milliseconds in 32 bits). One with a timeout may have to wait for a free slot before it runs, and for its
# outcome to be confirmed afterwards.
NO_TIMEOUT = 30 * 86400.0
SHORTEST_TIMEOUT = 1800.0


class Consuming(NamedTuple):
    """How a queue is consumed: with which prefetch and acknowledgement timeout (seconds), and what takes its deliveries."""

    prefetch: int
    timeout: float
    take: Callable[[Delivery], None]


class _Host:
    """A hosted service: its free slots, and the deliveries that wait for one."""

    __slots__ = ("definition", "free", "waiting")

    def __init__(self, definition: ServiceDefinition) -> None:
        self.definition = definition
        self.free = definition.concurrency
        self.waiting: deque[tuple[Delivery, Message, Headers | None]] = deque()


class Receiver:
    """Handles the deliveries of one process, each in a task of its own."""

    def __init__(self, registry: Registry, callback_queue: str, max_body: int, once: Once | None = None) -> None:
        self._once = once
        self.invoker = Invoker(registry, callback_queue, max_body)
        self._registry = registry
        self._callback_queue = callback_queue
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(sum(definition.concurrency for definition in registry) or 1)
        self._dispatcher = Dispatcher(self.invoker, self._threads.run)
        self._hosts = {definition.name: _Host(definition) for definition in registry}
        self._running: dict[Delivery, asyncio.Task[None]] = {}
        self._quarantined: Delivery | None = None
        self._refused_once: set[str] = set()
        self._refusing = False

    def consumers(self) -> dict[str, Consuming]:
        """Each queue to consume, and how."""
        own: tuple[tuple[str, int, Callable[[Delivery], None]], ...] = (
            (UNDERTAKER, UNDERTAKER_PREFETCH, self._take_dead),
            (DUE, DUE_PREFETCH, self._take_due),
            (self.invoker.quarantine_queue, QUARANTINE_PREFETCH, self._take_quarantined),
            (self._callback_queue, CALLBACK_PREFETCH, self._take_reply),
        )
        consumers = {
            queue: Consuming(prefetch, NO_TIMEOUT, self._unless_refusing(take)) for queue, prefetch, take in own
        }
        for name, host in self._hosts.items():
            timeout = host.definition.timeout
            consumers[name] = Consuming(
                host.definition.concurrency,
                NO_TIMEOUT if timeout is None else max(2 * timeout, SHORTEST_TIMEOUT),
                self._unless_refusing(partial(self._take, host)),
            )
        return consumers

    def _unless_refusing(self, take: Callable[[Delivery], None]) -> Callable[[Delivery], None]:
        def take_or_give_back(delivery: Delivery) -> None:
            if self._refusing:
                delivery.requeue()
            else:
                take(delivery)

        return take_or_give_back

    def __len__(self) -> int:
        return len(self._running) + sum(len(host.waiting) for host in self._hosts.values())

    def isolating(self) -> bool:
        """Whether a message from quarantine is being handled."""
        return self._quarantined in self._running

    def refuse(self) -> None:
        """From now on give back what comes, and what waits already."""
        self._refusing = True
        for host in self._hosts.values():
            while host.waiting:
                host.waiting.popleft()[0].requeue()

    async def drain(self, grace: float) -> int:
        """Let what is running finish within `grace` seconds, then give back what has not.

        Returns how many did not finish.
        """
        if self._running:
            await asyncio.wait(self._running.values(), timeout=grace)
        unfinished = list(self._running.values())
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        return len(unfinished)

    def close(self) -> None:
        self._threads.close()

    def _take(self, host: _Host, delivery: Delivery, headers: Headers | None = None) -> None:
        """Handle a delivery, or put it into quarantine. `headers` are those of a reply to the callback queue."""
        message, name = delivery.message, host.definition.name
        if (delivery.redelivered or quarantine.QUARANTINE in message.headers) and quarantine.is_suspect(
            message.headers, name, redelivered=delivery.redelivered
        ):
            logger.info(
                "a message of %r was delivered %d times and never finished: it is handled by itself from now on",
                name,
                quarantine.CRASHES,
                extra={"cid": message.correlation_id},
            )
            outcome = quarantine.isolated(message, name, self.invoker.quarantine_queue, is_reply=headers is not None)
            self._start(self._pass_on(outcome, delivery), delivery)
        else:
            self._admit(host, delivery, message, headers)

    def _admit(self, host: _Host, delivery: Delivery, message: Message, headers: Headers | None) -> None:
        """Handle a delivery's message as soon as its service has a free slot."""
        if host.free:
            host.free -= 1
            self._start(self._handle(host, delivery, message, headers), delivery)
        else:
            host.waiting.append((delivery, message, headers))

    def _release(self, host: _Host) -> None:
        if not host.waiting:
            host.free += 1
            return
        delivery, message, headers = host.waiting.popleft()
        self._start(self._handle(host, delivery, message, headers), delivery)

    def _take_reply(self, delivery: Delivery) -> None:
        """Run a reply's callback here, or pass the reply on."""
        message = delivery.message
        cid = message.correlation_id = message.correlation_id or new_cid()
        try:
            headers = h.read(message)
        except InvalidInputError as error:
            logger.warning("a reply with invalid headers becomes a dead letter: %s", error, extra={"cid": cid})
            self._start(self._pass_on(callbacks.unreadable(message, error), delivery), delivery)
            return
        names = callbacks.names_for(headers)
        if len(names) == 1 and (host := self._hosts.get(names[0])) and host.free:
            self._take(host, delivery, headers)
        elif names:
            self._start(self._pass_on(forwards(message, cid, names), delivery), delivery)
        else:
            logger.warning("a reply that names no callback becomes a dead letter", extra={"cid": cid})
            self._start(self._pass_on(callbacks.no_callback(message, callbacks.NONE_NAMED), delivery), delivery)

    def _take_dead(self, delivery: Delivery) -> None:
        outcome = deaths.bury(delivery.message)
        assert outcome.dead is not None
        told = outcome.dead.message.headers
        logger.warning(
            "RabbitMQ gave up a message of %r (%s): it becomes a dead letter",
            told[DEAD_SERVICE],
            told[DEAD_REASON],
            extra={"cid": outcome.dead.message.correlation_id},
        )
        self._start(self._pass_on(outcome, delivery), delivery)

    def _take_due(self, delivery: Delivery) -> None:
        """Put a message whose wait is over on its queue."""
        message = delivery.message
        try:
            outcome = Outcome(again=delays.due(message))
        except InvalidInputError as error:
            outcome = failure(message, "invalid", problem("invalid", "Invalid headers", str(error), ""))
        else:
            if outcome.again and outcome.again.exchange:
                self.invoker.chain.forget()  # it left the chain before its time: something is missing there
        self._start(self._pass_on(outcome, delivery), delivery)

    def _take_quarantined(self, delivery: Delivery) -> None:
        self._quarantined = delivery
        try:
            name, _, message = quarantine.released(delivery.message)
        except InvalidInputError as error:
            outcome = failure(delivery.message, "invalid", problem("invalid", "Invalid headers", str(error), ""))
        else:
            if host := self._hosts.get(name):
                self._admit(host, delivery, message, None)
                return
            outcome = quarantine.elsewhere(delivery.message, name)
        self._start(self._pass_on(outcome, delivery), delivery)

    def _start(self, handling: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        self._running[delivery] = self._loop.create_task(handling)

    async def _handle(self, host: _Host, delivery: Delivery, message: Message, headers: Headers | None) -> None:
        try:
            try:
                dispatching = self._dispatcher.dispatch(
                    host.definition, message, redelivered=delivery.redelivered, reply_headers=headers
                )
                if self._once is not None and host.definition.idempotent:
                    is_reply = headers is not None
                    outcome = await self._once.run(host.definition.name, message, dispatching, is_reply=is_reply)
                else:
                    outcome = await dispatching
            finally:
                self._release(host)
            if outcome is not NOTHING:
                await self._settle(outcome, delivery)
            delivery.ack()
        except BaseException as error:
            await self._not_handled(delivery, error)
        finally:
            del self._running[delivery]

    async def _pass_on(self, outcome: Outcome, delivery: Delivery) -> None:
        try:
            await self._settle(outcome, delivery)
            delivery.ack()
        except BaseException as error:
            await self._not_handled(delivery, error)
        finally:
            del self._running[delivery]

    async def _not_handled(self, delivery: Delivery, error: BaseException) -> None:
        """Give back what was not handled to its end; what an error of our own stopped becomes a dead letter."""
        if isinstance(error, ConnectionLostError):
            logger.debug("the connection was lost while a message was handled: the broker delivers it again")
        elif isinstance(error, asyncio.CancelledError):
            delivery.requeue()
        elif isinstance(error, Exception):
            logger.error(
                "a message could not be handled because of an error in ackback itself; it becomes a dead letter",
                exc_info=error,
            )
            await self._bury_after_bug(delivery)
        else:
            raise error

    async def _bury_after_bug(self, delivery: Delivery) -> None:
        error = problem("error", "Internal error", "an error in ackback itself; see the daemon's log", "")
        try:
            await self._file(dead_letter_of(delivery.message, "error", error))
        except ConnectionLostError:
            return
        delivery.ack()

    async def _settle(self, outcome: Outcome, delivery: Delivery) -> None:
        """Publish all of an outcome and wait until it is confirmed.

        Not if the delivery is lost meanwhile: the message comes again, and with it the same outcome.
        """
        if not delivery.live:
            raise ConnectionLostError("the delivery was lost with its connection")
        reply, dead, forwards, again = outcome
        if reply is not None and dead is None:
            await self._send_reply(reply)
            return
        publishing = [self._forward(one, delivery) for one in forwards]
        if dead is not None:
            publishing.append(self._file(dead))
        if reply is not None:
            publishing.append(self._send_reply(reply))
        if again is not None:
            publishing.append(self._publish_again(again, delivery))
        await asyncio.gather(*publishing)

    async def _publish_again(self, publishing: Publishing, delivery: Delivery) -> None:
        """Send a message to be handled once more; one that cannot be sent ends as a dead letter."""
        try:
            if publishing.exchange == "" and self.invoker.hosts(publishing.routing_key):
                await self._publish_own(publishing)
            else:
                await self._publish_accepted(publishing)
        except (UnroutableError, UnencodableError) as error:
            reason = "unroutable" if isinstance(error, UnroutableError) else "error"
            logger.warning("%s; it becomes a dead letter", error, extra={"cid": publishing.message.correlation_id})
            name = delays.target(publishing)
            attempt = publishing.message.headers.get(h.ATTEMPT, 1)
            told = problem(reason, type(error).__name__, f"it cannot be handled again: {error}", name, attempt)
            original = delivery.message if publishing.exchange else publishing.message
            await self._settle(failure(original, reason, told), delivery)

    async def _send_reply(self, publishing: Publishing) -> None:
        """A reply to a queue of ours is never dropped; one to a client that is gone is, unless it asks for a callback."""
        try:
            await self.invoker.publish(publishing)
            return
        except NotAcceptedError:
            pass  # the rare case: find out what to do about it
        queue, message, _ = publishing
        if self.invoker.hosts(queue):
            await self._publish_own(publishing)
            return
        try:
            await self._publish_accepted(publishing)
        except UnroutableError:
            cid = message.correlation_id
            if h.CALLBACK not in message.headers:
                logger.warning(
                    "the reply to %r is dropped: there is no such queue (any more)", queue, extra={"cid": cid}
                )
                return
            detail = f"the reply's queue {queue!r} does not exist, so its callback cannot be reached"
            logger.warning("%s; it becomes a dead letter", detail, extra={"cid": cid})
            error = problem("unroutable", "Unroutable reply", detail, str(message.headers.get(h.SERVICE, "")))
            await self._file(dead_letter_of(message, "unroutable", error, queue=queue))

    async def _forward(self, publishing: Publishing, delivery: Delivery) -> None:
        name = publishing.routing_key
        if name in self._registry:
            await self._publish_own(publishing)
            return
        try:
            await self._publish_accepted(publishing)
        except UnroutableError:
            near = self._registry.nearest(name)
            hint = f"; did you mean {near!r}?" if near else ""
            detail = f"no daemon hosts the callback service {name!r}: there is no such queue{hint}"
            logger.warning(
                "%s; its reply becomes a dead letter", detail, extra={"cid": publishing.message.correlation_id}
            )
            outcome = callbacks.no_callback(delivery.message, detail, name)
            assert outcome.dead is not None
            await self._file(outcome.dead)

    async def _file(self, dead: Publishing) -> None:
        """File a dead letter; one whose foreign headers leave no room for its own is filed without them."""
        try:
            await self._publish_own(filed(dead, datetime.now(UTC)))
        except UnencodableError as error:
            logger.warning("%s; it is filed without its own headers", error, extra={"cid": dead.message.correlation_id})
            await self._publish_own(stripped(dead))

    async def _publish_own(self, publishing: Publishing) -> None:
        """Publish to a queue of our own, which is declared again should somebody have deleted it."""
        try:
            await self._publish_accepted(publishing)
        except UnroutableError:
            await self.invoker.declare_own(publishing.routing_key)
            await self._publish_accepted(publishing)

    async def _publish_accepted(self, publishing: Publishing) -> None:
        """Publish until the broker accepts: a full queue, or one without its majority of nodes, is waited for."""
        queue = publishing.routing_key
        for pause in backoff():
            try:
                await self.invoker.publish(publishing)
            except (UnroutableError, UnencodableError):
                raise
            except (NotAcceptedError, ConfigurationError) as error:
                if queue not in self._refused_once:
                    self._refused_once.add(queue)
                    logger.warning("%s; trying again until it is accepted", error)
                await asyncio.sleep(pause)
            else:
                if queue in self._refused_once:
                    self._refused_once.discard(queue)
                    logger.info("queue %r accepts messages again", queue)
                return
