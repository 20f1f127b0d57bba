"""A daemon: hosts services on a connection that it supervises, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, NoReturn

from broker.backoff import backoff
from broker.errors import BrokerUnavailableError, ConfigurationError, ConnectionLostError
from broker.handling.arrivals import Arrivals
from broker.handling.idempotency import Once
from broker.handling.intakes import Intake
from broker.hosting.registry import Registry
from broker.log import logger
from broker.protocol.queues import durable_queues, own_queue, with_what_leads_there
from broker.settings import Settings
from broker.stores.factory import open_store
from broker.transport.interface import Connection, Consumer, Transport

SHOWN_SERVICES = 20
RECONNECT_FIRST = 0.2
RECONNECT_MAXIMUM = 10.0
QUARANTINE_FIRST = 30.0
QUARANTINE_POLL = 0.1


class Daemon:
    """Hosts the registry's services until it is stopped.

    `up` is set once the queues are there for the first time, `ready` while every queue is being consumed. The daemon belongs to the
    event loop that it was made on.
    """

    def __init__(self, settings: Settings, registry: Registry, transport: Transport) -> None:
        self._settings = settings
        self._registry = registry
        self._transport = transport
        self._once = _once(settings, registry)
        self._arrivals = Arrivals(
            registry, settings.callbacks.queue, settings.worker.max_body, self._once, self._resize
        )
        self._consumers: dict[str, Consumer] = {}
        self._resuming: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._stop = asyncio.Event()
        self._was_ready = False
        self.up = asyncio.Event()
        self.ready = asyncio.Event()

    def stop(self) -> None:
        """Begin to drain; `run` returns once that is done."""
        self._stop.set()

    def busy(self) -> int:
        """Messages being handled."""
        return len(self._arrivals)

    async def run(self) -> int:
        """Connect, consume, recover, until `stop`; then drain.

        Returns how many messages did not finish within the grace period and went back to their queues.

        Raises:
            ConfigurationError: at the start, a queue cannot be declared or consumed as it has to be.
        """
        serving = asyncio.ensure_future(self._serve())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            for task in (serving, stopping):
                task.cancel()
                with suppress(asyncio.CancelledError, ConfigurationError):
                    await task
        return await self._drain()

    async def _serve(self) -> NoReturn:
        pauses = backoff(RECONNECT_FIRST, RECONNECT_MAXIMUM)
        told: str | None = None
        while True:
            try:
                self._connection = await self._transport.connect()
                await self._start(self._connection)
            except (BrokerUnavailableError, ConfigurationError) as error:
                await self._abandon()
                if isinstance(error, ConfigurationError) and not self._was_ready:
                    raise
                if str(error) != told:
                    told = str(error)
                    logger.error("%s; trying again until it works", told)
                await asyncio.sleep(next(pauses))
                continue
            reason = await asyncio.shield(self._connection.lost)
            logger.warning("the connection to %s was lost: %s; reconnecting", self._transport.address, reason)
            await self._abandon()
            pauses, told = backoff(RECONNECT_FIRST, RECONNECT_MAXIMUM), reason
            await asyncio.sleep(next(pauses))

    async def _start(self, connection: Connection) -> None:
        queues = durable_queues((d.name for d in self._registry), self._settings.callbacks.queue)
        await _all(connection.declare(*with_what_leads_there(queue)) for queue in queues)
        self._arrivals.invoker.connection = connection
        self.up.set()
        await self._empty_quarantine(connection)
        await _all(self._consume(connection, queue) for queue in self._arrivals.intakes if queue not in self._consumers)
        self.ready.set()
        self._was_ready = True
        names = sorted(definition.name for definition in self._registry)
        more = f" and {len(names) - SHOWN_SERVICES} more" if len(names) > SHOWN_SERVICES else ""
        logger.info(
            "ready: %d service%s (%s%s) on %d queues, callbacks on %r, broker %s, pid %d",
            len(names),
            "" if len(names) == 1 else "s",
            ", ".join(names[:SHOWN_SERVICES]) or "none",
            more,
            len(queues),
            self._settings.callbacks.queue,
            self._transport.address,
            os.getpid(),
        )

    async def _empty_quarantine(self, connection: Connection) -> None:
        """Handle what is in quarantine by itself, for a while at least, before anything that could be harmed with it."""
        queue = self._arrivals.invoker.quarantine_queue
        if not await _is_filled(connection, queue):
            return
        logger.warning("messages are in quarantine (%s): they are handled before all others", queue)
        await self._consume(connection, queue)
        with suppress(TimeoutError):
            async with asyncio.timeout(QUARANTINE_FIRST):
                while self._arrivals.isolating() or await _is_filled(connection, queue):
                    await asyncio.sleep(QUARANTINE_POLL)

    async def _consume(self, connection: Connection, queue: str) -> None:
        intake = self._arrivals.intakes[queue]

        def on_cancelled(reason: str) -> None:
            task = asyncio.ensure_future(self._resume(connection, queue, reason))
            self._resuming.add(task)
            task.add_done_callback(self._resuming.discard)

        self._consumers[queue] = await connection.consume(
            queue, intake.grant(), intake.take, on_cancelled, intake.timeout
        )

    async def _resize(self, intake: Intake) -> None:
        """Consume a queue as its window says now; where that is narrower, give back what waits for a slot."""
        consumer = self._consumers.get(intake.queue)
        if consumer is None:
            return
        with suppress(ConnectionLostError):  # then all is consumed anew
            await consumer.pause()
            if intake.window.size < intake.granted:
                self._arrivals.give_back_waiting(intake.queue)
                await intake.room()
            await consumer.resume(intake.grant())

    async def _resume(self, connection: Connection, queue: str, reason: str) -> None:
        """Declare and consume a queue again whose deliveries the broker has ended."""
        self._consumers.pop(queue, None)
        logger.warning("%s; declaring and consuming it again", reason)
        for pause in backoff():
            try:
                await connection.declare(*with_what_leads_there(own_queue(queue)))
                await self._consume(connection, queue)
            except BrokerUnavailableError:
                return  # the whole connection is being made again, and this consumer with it
            except ConfigurationError as error:
                logger.error("%s; trying again until it works", error)
                await asyncio.sleep(pause)
            else:
                logger.info("consuming queue %r again", queue)
                return

    async def _drain(self) -> int:
        await self._arrivals.refuse()
        self.ready.clear()
        for task in list(self._resuming):
            task.cancel()
        await asyncio.gather(*(consumer.cancel() for consumer in self._consumers.values()))
        grace = self._settings.worker.grace
        logger.info("stopping: no new messages; %d being handled have %g s to finish", self.busy(), grace)
        unfinished = await self._arrivals.drain(grace)
        await self._abandon()
        self._arrivals.close()
        if self._once is not None:
            await self._once.close()
        if unfinished:
            logger.warning("stopped: %d not finished in time went back to their queues", unfinished)
        else:
            logger.info("stopped: everything finished")
        return unfinished

    async def _abandon(self) -> None:
        """Give up the connection of the moment. What it had not acknowledged, the broker delivers again."""
        self.ready.clear()
        self._consumers.clear()
        connection, self._connection = self._connection, None
        self._arrivals.invoker.connection = None
        if connection is not None:
            await connection.close()
        self._arrivals.forget_lost()


async def _is_filled(connection: Connection, queue: str) -> bool:
    seen = await connection.look_at(queue)
    return seen is not None and seen.ready > 0


def _once(settings: Settings, registry: Registry) -> Once | None:
    if not any(definition.idempotent for definition in registry):
        return None
    return Once(open_store(settings.idempotency.store.get_secret_value()), settings.idempotency.keep)


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them together, all to their end, and raise the first error."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
