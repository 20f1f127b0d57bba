"""A daemon: hosts services on a connection that it supervises, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

from broker.backoff import backoff
from broker.errors import BrokerUnavailableError, ConfigurationError, ConnectionLostError
from broker.handling.arrivals import Arrivals
from broker.handling.idempotency import Once
from broker.handling.intakes import Intake
from broker.handling.invoker import Invoker
from broker.handling.runs import CACHED_RUNS
from broker.hosting.registry import Registry
from broker.log import logger
from broker.process import migration
from broker.process.flight_recorder import FlightRecorder
from broker.process.metrics import Metrics
from broker.process.scheduler import Scheduler
from broker.process.suspects import Suspects
from broker.process.watchdog import Watchdog
from broker.protocol.names import SCHEDULES
from broker.protocol.queues import ACKNOWLEDGEMENT_TIMEOUT, durable_queues, own_queue, with_what_leads_there
from broker.recording.recorder import Observer, Observers
from broker.settings import Settings
from broker.stores.factory import open_store
from broker.stores.interface import Store
from broker.transport.interface import Connection, Consumer, Transport

SHOWN_SERVICES = 20
RECONNECT_FIRST = 0.2
RECONNECT_MAXIMUM = 10.0
LOOK_AT_QUARANTINE = 10.0
QUARANTINE_POLL = 0.1
LOOK_AT_MIGRATION = 1.0
LOOK_FOR_CALLBACKS = 20.0
HEARS_TIMEOUTS = (3, 12)
"""The version of RabbitMQ from which `x-consumer-timeout` counts as a queue's argument."""
RABBITMQS_TIMEOUT = 1800.0
"""Seconds."""
SUSPECTS_GRACE = 2.0
"""Seconds that the process of what is in quarantine has beyond its grace period, which is this one's, to end."""
BETWEEN_STARTS = 1.0
LINGER = 1.0
"""Seconds for which the process of what is in quarantine stays when that is empty: more may come."""


class Daemon:
    """Hosts the registry's services until it is stopped.

    `up` is set once the queues are there for the first time, `ready` while every queue is being consumed. The daemon belongs to the
    event loop that it was made on.

    What is in quarantine is handled by the process of `suspects`; without one, here, beside all else. A daemon of
    `suspects_only` is that process's: it consumes nothing but the quarantine, and stops when that is empty.

    `store` takes the place of the configured one; of durable services, so many runs are kept in memory while they wait. Without `fires` it
    takes no part in firing what is scheduled.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        transport: Transport,
        suspects: Suspects | None = None,
        *,
        suspects_only: bool = False,
        store: Store | None = None,
        cached_runs: int = CACHED_RUNS,
        fires: bool = True,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._registry = registry
        self._transport = transport
        self._store = store or _store(settings, registry)
        once = None if self._store is None else Once(self._store, settings.store.keep)
        self._flight_recorder = FlightRecorder(settings.events, transport) if settings.events.enabled else None
        self._metrics = None if settings.metrics.port is None else Metrics()
        observers: list[Observer] = [] if self._flight_recorder is None else [self._flight_recorder.recorder]
        if self._metrics is not None:
            observers.append(self._metrics)
        invoker = Invoker(
            registry,
            settings.callbacks.queue,
            settings.worker.max_body,
            settings.silent,
            observers[0] if len(observers) == 1 else Observers(*observers) if observers else None,
            None if self._metrics is None else self._metrics.published,
        )
        self._arrivals = Arrivals(invoker, once, self._resize, self._store, settings.store.keep, cached_runs)
        plans = {definition.name: definition.plan for definition in registry}
        self._scheduler = Scheduler(plans, invoker) if fires and not suspects_only else None
        self._suspects = suspects
        self._suspects_only = suspects_only
        self._quarantine = self._arrivals.invoker.quarantine_queue
        self._consumed = (
            [self._quarantine]
            if suspects_only
            else [queue for queue in self._arrivals.intakes if suspects is None or queue != self._quarantine]
        )
        self._consumers: dict[str, Consumer] = {}
        self._resuming: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._stop = asyncio.Event()
        self._was_ready = False
        self._told_of_timeouts = False
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
        watchdog = Watchdog()
        try:
            await self._serve_until_stopped()
            return await self._drain()
        finally:
            if self._flight_recorder is not None:
                await self._flight_recorder.close(self._arrivals)
            watchdog.close()

    async def _serve_until_stopped(self) -> None:
        serving = asyncio.ensure_future(self._serve())
        stopping = asyncio.ensure_future(self._stop.wait())
        beside = [asyncio.ensure_future(self._look_for_callbacks())]
        if self._suspects is not None:
            beside.append(asyncio.ensure_future(self._have_suspects_handled(self._suspects)))
        if self._flight_recorder is not None:
            beside.append(asyncio.ensure_future(self._flight_recorder.run(self._arrivals)))
        if self._metrics is not None:
            beside.append(asyncio.ensure_future(self._metrics.run(self._arrivals, self.ready)))
        if self._suspects_only:
            beside.append(asyncio.ensure_future(self._stop_once_quarantine_is_empty()))
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            # aiormq may swallow a cancellation: so these look whether to stop, too.
            self._stop.set()
            self._arrivals.isolated.set()
            for task in (serving, stopping, *beside):
                task.cancel()
                with suppress(asyncio.CancelledError, ConfigurationError):
                    await task

    async def _serve(self) -> None:
        pauses = backoff(RECONNECT_FIRST, RECONNECT_MAXIMUM)
        told: str | None = None
        while not self._stop.is_set():
            try:
                self._connection = await self._transport.connect()
                await self._start(self._connection)
            except (BrokerUnavailableError, ConfigurationError) as error:
                await self._abandon()
                if isinstance(error, ConfigurationError) and not self._was_ready:
                    raise
                if self._suspects_only and not self._arrivals.is_forgiving():
                    break  # who finds something in quarantine starts another
                if str(error) != told:
                    told = str(error)
                    self._tell_of_outage(logging.ERROR, "%s; trying again until it works", told)
                await asyncio.sleep(next(pauses))
                continue
            if self._stop.is_set():
                break  # a cancellation was swallowed meanwhile, and no other will come
            reason = await asyncio.shield(self._connection.lost)
            lost = "the connection to %s was lost: %s; reconnecting"
            self._tell_of_outage(logging.WARNING, lost, self._transport.address, reason)
            self._arrivals.forgive()
            await self._abandon()
            pauses, told = backoff(RECONNECT_FIRST, RECONNECT_MAXIMUM), reason
            await asyncio.sleep(next(pauses))

    async def _start(self, connection: Connection) -> None:
        await self._while_queues_are_migrated(connection)
        queues = durable_queues((d.name for d in self._registry), self._settings.callbacks.queue)
        if any(definition.plan for definition in self._registry):
            queues.append(own_queue(SCHEDULES))
        if not self._suspects_only:  # its parent has
            await _all(connection.declare(*with_what_leads_there(queue)) for queue in queues)
        await self._arrivals.invoker.convention.look_for_all(connection)
        self._arrivals.invoker.connection = connection
        if self._flight_recorder is not None:
            self._flight_recorder.connected()
        self.up.set()
        # Before anything is consumed, as this process may not live for long.
        if self._suspects is not None and await _is_filled(connection, self._quarantine):
            self._suspects.start()
        await _all(self._consume(connection, queue) for queue in self._consumed if queue not in self._consumers)
        if self._scheduler is not None:
            self._scheduler.connected(connection)
        self.ready.set()
        self._was_ready = True
        if not self._suspects_only:
            self._tell_ready(len(queues))
        self._tell_of_timeouts(connection.server.version)

    async def _while_queues_are_migrated(self, connection: Connection) -> None:
        told = None
        while (why := await migration.waiting(connection)) is not None and not self._stop.is_set():
            if why != told:
                told = why
                logger.warning("%s; waiting until that is done", why)
            await asyncio.sleep(LOOK_AT_MIGRATION)

    def _tell_of_outage(self, level: int, text: str, *told: str) -> None:
        if not self._suspects_only:  # its parent has
            logger.log(level, text, *told)

    def _tell_ready(self, queues: int) -> None:
        names = sorted(definition.name for definition in self._registry)
        logger.info(
            "ready: %d service%s (%s) on %d queues, callbacks on %r, broker %s, pid %d",
            len(names),
            "" if len(names) == 1 else "s",
            _shortened(names),
            queues,
            self._settings.callbacks.queue,
            self._transport.address,
            os.getpid(),
        )

    def _tell_of_timeouts(self, version: tuple[int, ...]) -> None:
        """Say, once, whose messages RabbitMQ delivers again before they are handled, as it does not hear how long it is to wait."""
        if self._told_of_timeouts or not () < version < HEARS_TIMEOUTS:
            return
        self._told_of_timeouts = True
        names = sorted(one.name for one in self._registry if one.timeout is None or one.timeout >= RABBITMQS_TIMEOUT)
        if names:
            logger.warning(
                "RabbitMQ %s delivers again what has not been handled after %d minutes, and heeds nobody but its own configuration: "
                "for services that may take longer (%s) put `consumer_timeout = %d` into rabbitmq.conf, or give them a timeout",
                ".".join(map(str, version)),
                RABBITMQS_TIMEOUT / 60,
                _shortened(names),
                round(ACKNOWLEDGEMENT_TIMEOUT * 1000),
            )

    async def _look_for_callbacks(self) -> None:
        """Now and then look whether callbacks by convention have come or gone with other daemons."""
        while not self._stop.is_set():
            await asyncio.sleep(LOOK_FOR_CALLBACKS)
            await self.ready.wait()
            invoker = self._arrivals.invoker
            for look in (invoker.addressed.declare_again, invoker.convention.look_again):
                with suppress(BrokerUnavailableError, ConfigurationError):
                    if self._connection is not None:
                        await look(self._connection)

    async def _have_suspects_handled(self, suspects: Suspects) -> None:
        """Whenever something is in quarantine, have it handled in a process of its own."""
        while not self._stop.is_set():
            await self.ready.wait()
            self._arrivals.isolated.clear()
            with suppress(BrokerUnavailableError, ConfigurationError):
                if self._connection is not None and await _is_filled(self._connection, self._quarantine):
                    suspects.start()
                    await asyncio.sleep(BETWEEN_STARTS)
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AT_QUARANTINE):
                    await self._arrivals.isolated.wait()

    async def _stop_once_quarantine_is_empty(self) -> None:
        empty_since = self._loop.time()
        while self._loop.time() - empty_since < LINGER and not self._stop.is_set():
            await self.ready.wait()
            with suppress(BrokerUnavailableError, ConfigurationError):
                if self.busy() or (self._connection and await _is_filled(self._connection, self._quarantine)):
                    empty_since = self._loop.time()
            await asyncio.sleep(QUARANTINE_POLL)
        self.stop()

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
        """Consume a queue as its window says now; where that is too narrow for what is in hand, give back what waits for a slot."""
        consumer = self._consumers.get(intake.queue)
        if consumer is None:
            return
        with suppress(ConnectionLostError):  # then all is consumed anew
            await consumer.pause()
            if intake.is_overfull:
                self._arrivals.give_back_waiting(intake.queue)
                await intake.room()
            await consumer.resume(intake.grant())

    async def _resume(self, connection: Connection, queue: str, reason: str) -> None:
        """Declare and consume a queue again whose deliveries the broker has ended."""
        self._consumers.pop(queue, None)
        logger.warning("%s; declaring and consuming it again", reason)
        self._arrivals.forgive()
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
        grace = self._settings.worker.grace
        stops_by = self._loop.time() + grace + SUSPECTS_GRACE
        if self._suspects is not None:
            self._suspects.stop()
        if self._scheduler is not None:
            await self._scheduler.disconnected()
        await self._arrivals.refuse()
        self.ready.clear()
        for task in list(self._resuming):
            task.cancel()
        await asyncio.gather(*(consumer.cancel() for consumer in self._consumers.values()))
        self._arrivals.give_back_refused()
        # The end of the process of what is in quarantine is no news, and must not be taken for that of a daemon.
        level = logging.DEBUG if self._suspects_only else logging.INFO
        logger.log(level, "stopping: no new messages; %d being handled have %g s to finish", self.busy(), grace)
        if self._flight_recorder is not None:
            self._flight_recorder.note("drains", self._arrivals)
        unfinished = await self._arrivals.drain(grace)
        await self._abandon()
        self._arrivals.close()
        if self._store is not None:
            await self._store.close()
        if self._suspects is not None:
            await self._suspects.stopped(stops_by - self._loop.time())
        if unfinished:
            logger.warning("stopped: %d not finished in time went back to their queues", unfinished)
        else:
            logger.log(level, "stopped: everything finished")
        return unfinished

    async def _abandon(self) -> None:
        """Give up the connection of the moment. What it had not acknowledged, the broker delivers again."""
        self.ready.clear()
        self._consumers.clear()
        connection, self._connection = self._connection, None
        self._arrivals.invoker.connection = None
        if self._scheduler is not None:
            await self._scheduler.disconnected()
        if connection is not None:
            await connection.close()
        self._arrivals.forget_lost()


def _shortened(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - SHOWN_SERVICES} more" if len(names) > SHOWN_SERVICES else ""
    return (", ".join(names[:SHOWN_SERVICES]) or "none") + more


async def _is_filled(connection: Connection, queue: str) -> bool:
    seen = await connection.look_at(queue)
    return seen is not None and seen.ready > 0


def _store(settings: Settings, registry: Registry) -> Store | None:
    durable = sorted(definition.name for definition in registry if definition.durable)
    if not durable and not any(definition.idempotent for definition in registry):
        return None
    url = settings.store_url
    if durable and url == "memory" and not settings.urls[0].startswith("memory:"):
        raise ConfigurationError(
            f"store.url is memory, which ends with this process, and what is durable ({_shortened(durable)}) does not: "
            "leave it out for a file beside the configuration, or set [store] url to postgresql://… or redis://…"
        )
    return open_store(url)


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them together, all to their end, and raise the first error."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
