"""A daemon's part in firing what is scheduled: it announces its own, and fires everybody's while RabbitMQ has it be the one who does."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from broker.backoff import backoff
from broker.errors import AckbackError, BrokerUnavailableError, ConfigurationError, InvalidInputError
from broker.handling.invoker import Invoker, retrieved
from broker.log import logger
from broker.process.timetable import Timetable
from broker.protocol import schedules
from broker.protocol.bodies import JSON
from broker.protocol.events import SENT_ROW
from broker.protocol.message import Message, Publishing
from broker.protocol.names import SCHEDULES
from broker.protocol.outcomes import failure, filed, reply
from broker.protocol.problems import problem
from broker.protocol.queues import own_queue
from broker.protocol.requests import Template
from broker.protocol.schedules import Announcement, Command, Plan, State
from broker.transport.interface import Connection, Delivery

Work = Callable[[], Awaitable[None]]

PREFETCH = 1000
KEPT_ANEW_EVERY = 600.0
"""Seconds after which the state is published again, so that no acknowledgement timeout comes near."""
TRY_AGAIN = timedelta(seconds=5)
"""After which what could not be fired is fired again."""


class Scheduler:
    """Takes part on the connection of the moment. `plans` has the schedule of every service here, None for those without one.

    A daemon without any takes part, too, where others have made the queue: so a schedule goes when its last one is removed.
    """

    def __init__(self, plans: Mapping[str, Plan | None], invoker: Invoker) -> None:
        self._is_needed = any(plans.values())
        self._announcement = schedules.announcement(time.time(), plans)
        self._invoker = invoker
        self._last = State()
        self._told: str | None = None
        self._turn: _Turn | None = None
        self._task: asyncio.Task[None] | None = None

    def connected(self, connection: Connection) -> None:
        self._task = asyncio.ensure_future(self._take_part(connection))

    async def disconnected(self) -> None:
        """Give way to another daemon; what was kept goes back to the queue."""
        task, self._task = self._task, None
        if task is not None:
            if self._turn is not None:
                self._turn.stop()  # as aiormq may swallow a cancellation
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _take_part(self, connection: Connection) -> None:
        for pause in backoff():
            self._turn = turn = _Turn(connection, self._invoker, self._last)
            try:
                if self._is_needed:
                    await connection.declare(own_queue(SCHEDULES))
                elif await connection.look_at(SCHEDULES) is None:
                    return
                await turn.take(self._announcement)
            except BrokerUnavailableError:
                return  # there will be another connection
            except Exception as error:
                if str(error) != self._told:
                    self._told = str(error)
                    more = None if isinstance(error, AckbackError) else error
                    logger.error(
                        "nothing that is scheduled is fired here: %s; trying again until it works", error, exc_info=more
                    )
                await asyncio.sleep(pause)
            self._last = turn.state
            if turn.is_stopped:
                return


class _Turn:
    """From the beginning of a consumer to its end: it is given nothing until it is the active one. `last` is what is known if nothing
    was kept."""

    def __init__(self, connection: Connection, invoker: Invoker, last: State) -> None:
        self.state = last
        self._connection = connection
        self._invoker = invoker
        self._template = Template()
        self._work: asyncio.Queue[Work] = asyncio.Queue()
        self.is_stopped = self._is_over = False
        self._since = datetime.now(UTC)
        self._token = secrets.token_hex(8)
        self._timetable: Timetable | None = None
        self._early: list[Delivery] = []
        self._unsettled: dict[Delivery, None] = {}
        self._held: tuple[int, Delivery] | None = None
        self._heard: list[Delivery] = []
        self._has_changed = False
        self._kept_at = 0.0
        self._firing: set[asyncio.Task[None]] = set()

    async def take(self, announcement: Publishing) -> None:
        """Until the queue is deleted.

        Raises:
            BrokerUnavailableError: the connection ended.
            ConfigurationError: the queue cannot be consumed, or a newer version has written to it.
            NotAcceptedError: the queue takes no messages; UnroutableError: it has just been deleted.
        """
        consumer = await self._connection.consume(SCHEDULES, PREFETCH, self._on_delivery, self._on_cancelled)
        try:
            await self._connection.publish(announcement)
            while not self._is_over:
                await self._do_what_comes()
                if self._timetable is not None:
                    self._fire_what_is_due(self._timetable)
                    await self._keep(self._timetable)
        finally:
            for task in self._firing:
                task.cancel()
            await consumer.cancel()
            for delivery in self._unsettled:
                delivery.requeue()

    def stop(self) -> None:
        """Have `take` end."""
        self.is_stopped = self._is_over = True

    def _on_delivery(self, delivery: Delivery) -> None:
        self._unsettled[delivery] = None
        self._work.put_nowait(partial(self._hear, delivery))

    def _on_cancelled(self, reason: str) -> None:
        async def over() -> None:
            self._is_over = True

        logger.warning("%s; declaring and consuming it again", reason)
        self._work.put_nowait(over)

    async def _do_what_comes(self) -> None:
        """Wait until there is something to do, or due; do all that there is."""
        work: list[Work] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience()):
                work.append(await self._work.get())
        while not self._work.empty():
            work.append(self._work.get_nowait())
        for one in work:
            await one()

    def _patience(self) -> float | None:
        """Seconds until something is to be done, whatever comes."""
        if self._timetable is None:
            return None
        until = self._kept_at + KEPT_ANEW_EVERY
        if (due := self._timetable.next_due()) is not None:
            until = min(until, due.timestamp())
        return max(0.0, until - time.time())

    async def _hear(self, delivery: Delivery) -> None:
        if self._timetable is not None:
            await self._heed(self._timetable, delivery)
            return
        if not self._early:  # from now on this is the active one
            self._connection.publish(schedules.beginning(self._token)).add_done_callback(retrieved)
        self._early.append(delivery)
        message = delivery.message
        all_has_come = message.type == schedules.BEGINNING and message.correlation_id == self._token
        if all_has_come or len(self._early) >= PREFETCH:
            await self._begin()

    async def _begin(self) -> None:
        timetable = Timetable(self._since)
        early = sorted(self._early, key=lambda one: one.message.type != schedules.STATE)
        if early[0].message.type != schedules.STATE:
            timetable.adopt(self.state)
        for delivery in early:
            await self._heed(timetable, delivery)
        self._timetable = timetable
        logger.info("what is scheduled is fired here (%d)", len(timetable.entries))

    async def _heed(self, timetable: Timetable, delivery: Delivery) -> None:
        message = delivery.message
        if message.type == schedules.BEGINNING:
            self._settle(delivery)
            return
        try:
            said = schedules.read(message)
        except InvalidInputError as error:
            await self._refuse(delivery, str(error))
            return
        now = datetime.now(UTC)
        if isinstance(said, State):
            self._hold(timetable, said, delivery)
            return
        if isinstance(said, Announcement):
            timetable.announce(said, now)
        else:
            self._obey(timetable, said, now, message)
            if said.command == "list":
                self._settle(delivery)
                return
        self._heard.append(delivery)

    def _hold(self, timetable: Timetable, state: State, delivery: Delivery) -> None:
        """Of two states, keep the later, and go on from it if it is not one's own."""
        if state.version > schedules.VERSION:
            raise ConfigurationError(f"a newer version of ackback has written to {SCHEDULES!r}")
        if state.number > timetable.number:
            timetable.adopt(state)
        former, self._held = self._held, (state.number, delivery)
        if former is not None:
            if former[0] > state.number:
                former, self._held = self._held, former
            self._settle(former[1])

    async def _refuse(self, delivery: Delivery, why: str) -> None:
        logger.warning("a message on %r becomes a dead letter: %s", SCHEDULES, why)
        outcome = failure(delivery.message, "invalid", problem("invalid", "Invalid command", why, SCHEDULES))
        assert outcome.dead is not None
        await self._connection.publish(filed(outcome.dead, datetime.now(UTC)))
        self._answer(outcome.reply)
        self._settle(delivery)

    def _obey(self, timetable: Timetable, command: Command, now: datetime, message: Message) -> None:
        """Do as it says, and reply with what there is then, or what was fired."""
        try:
            if command.command == "fire":
                plan = timetable.named(command.service).plan
                self._begin_to_fire(self._fire_now(command.service, plan, now, message))
                return
            if command.command != "list":
                timetable.obey(command, now)
        except LookupError as error:
            told = problem("unknown", "No such schedule", error.args[0], SCHEDULES)
            self._answer(failure(message, "unknown", told).reply)
        else:
            self._answer_with(message, schedules.lines(timetable.lines(now)))

    def _answer_with(self, message: Message, body: bytes) -> None:
        self._answer(reply(message, SCHEDULES, body, JSON))

    def _answer(self, answer: Publishing | None) -> None:
        if answer is not None:
            self._connection.publish(answer).add_done_callback(retrieved)

    async def _fire_now(self, service: str, plan: Plan, now: datetime, message: Message) -> None:
        cid = schedules.cid_of(service, now)
        try:
            await self._publish(service, plan, cid)
        except AckbackError as error:
            told = problem("refused", "Not fired", str(error), SCHEDULES)
            self._answer(failure(message, "refused", told).reply)
        else:
            self._answer_with(message, schedules.fired(cid))

    def _fire_what_is_due(self, timetable: Timetable) -> None:
        for service, plan, times in timetable.due(datetime.now(UTC)):
            self._begin_to_fire(self._fire(timetable, service, plan, times))

    def _begin_to_fire(self, firing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(firing)
        self._firing.add(task)
        task.add_done_callback(self._firing.discard)

    async def _fire(self, timetable: Timetable, service: str, plan: Plan, times: Sequence[datetime]) -> None:
        sent = [self._publish(service, plan, schedules.cid_of(service, due)) for due in times]
        errors = [one for one in await asyncio.gather(*sent, return_exceptions=True) if one is not None]

        async def note() -> None:
            self._has_changed = True
            if not errors:
                timetable.fired(service, times[-1])
                return
            logger.error("%s: what was due at %s is not fired: %s; trying again", service, times[0], errors[0])
            timetable.failed(service, str(errors[0]), datetime.now(UTC) + TRY_AGAIN)

        self._work.put_nowait(note)

    async def _publish(self, service: str, plan: Plan, cid: str) -> None:
        began = time.time()
        publishing = self._template.request(service, plan.payload, cid, began, self._invoker.max_body)
        if self._invoker.tracing is not None:
            self._invoker.tracing.sent(publishing, service)
        await self._invoker.publish(publishing)
        if self._invoker.observer is not None:
            self._invoker.observer.note((SENT_ROW, int(began * 1e6), cid, service, ()))

    async def _keep(self, timetable: Timetable) -> None:
        """If something has changed, or was kept long ago, publish the state; then what was heard is acknowledged."""
        heard, self._heard = self._heard, []
        if heard or self._has_changed or time.time() - self._kept_at >= KEPT_ANEW_EVERY:
            self._has_changed, self._kept_at = False, time.time()
            timetable.number += 1
            self.state = timetable.state()
            await self._connection.publish(schedules.state(self.state))
        for delivery in heard:
            self._settle(delivery)

    def _settle(self, delivery: Delivery) -> None:
        del self._unsettled[delivery]
        delivery.ack()
