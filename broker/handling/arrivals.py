"""What comes from the queues that this process consumes, and the way that each delivery takes.

delivery ─┬─ a service's queue ───────────────→ quarantine? ─→ Host: a slot ─→ Dispatcher ─→ outcome ─┬→ Settlement ─→ ack
          └─ one of ackback's own: OwnQueues ─┬─ for a service here ──┘                              │
                                              └─ an outcome ─────────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from broker.handling.actor import Workshop
from broker.handling.dispatcher import Dispatcher
from broker.handling.eager import Eager
from broker.handling.hosts import Host, Turn
from broker.handling.idempotency import Once
from broker.handling.in_place import InPlace
from broker.handling.intakes import Intake, Regulator
from broker.handling.invoker import Invoker
from broker.handling.own_queues import ForService, OwnQueues
from broker.handling.runs import CACHED_RUNS, Runs
from broker.handling.settlement import Settlement
from broker.handling.threads import Threads
from broker.hosting.definition import ServiceDefinition
from broker.log import logger
from broker.protocol import quarantine
from broker.protocol.headers import Headers
from broker.protocol.message import Message
from broker.protocol.outcomes import Outcome
from broker.protocol.queues import ACKNOWLEDGEMENT_TIMEOUT, DUE, UNDERTAKER
from broker.stores.interface import Store
from broker.transport.interface import Delivery

# Replies are handled in place or passed on, neither for long: enough of them to keep a busy daemon's callbacks fed.
CALLBACK_WINDOW = 200
UNDERTAKER_WINDOW = 50
DUE_WINDOW = 200
# One at a time: a crash is counted against all that a consumer has in hand.
QUARANTINE_WINDOW = 1

FORGIVING = 60.0
"""Seconds after a lost connection in which one count is forgiven."""

# A handler with a timeout may have to wait for a free slot before it runs, and for its outcome to be confirmed afterwards.
SHORTEST_TIMEOUT = 1800.0


class Arrivals:
    """The deliveries of one process, from their arrival until they are settled.

    `resize` has a queue consumed as its window says now. `runs_in` has the journals of durable services, where there are any; runs that
    have ended are kept there for `keep` seconds, and `cached_runs` are kept in memory while they wait.
    """

    def __init__(
        self,
        invoker: Invoker,
        once: Once | None,
        resize: Callable[[Intake], Coroutine[Any, Any, None]],
        runs_in: Store | None = None,
        keep: float = 0.0,
        cached_runs: int = CACHED_RUNS,
    ) -> None:
        registry, callback_queue = invoker.registry, invoker.callback_queue
        self.invoker = invoker
        self._once = once
        self._threads = Threads(sum(definition.concurrency for definition in registry) or 1)
        self._eager = Eager()
        self._dispatcher = Dispatcher(self.invoker, self._threads.run)
        self._settlement = Settlement(self.invoker, self._eager, self._settled)
        self._runs = None if runs_in is None else self._all_runs(runs_in, keep, cached_runs)
        turn = Turn()
        self._hosts = {definition.name: Host(definition, self._begin, turn) for definition in registry}
        self._regulator = Regulator(resize)
        self._in_hand: dict[Delivery, Intake] = {}
        self._empty: asyncio.Event | None = None
        self._refusing = False
        self._refused: list[Delivery] = []
        self._consumers_are_cancelled = False
        self._forgiving_until = 0.0
        self.isolated = asyncio.Event()
        """Set when something has been put into quarantine."""
        self.intakes = {intake.queue: intake for intake in self._all_intakes(callback_queue)}
        """Each queue to consume, and how."""
        self._callbacks = self.intakes[callback_queue]
        self._in_place = InPlace(self._callbacks, self._hosts)

    def _all_runs(self, store: Store, keep: float, cached: int) -> Runs:
        settlement = self._settlement
        shared = Workshop(self.invoker, store, keep, settlement, self._threads.run)
        return Runs(shared, cached)

    def _all_intakes(self, callback_queue: str) -> list[Intake]:
        decide = OwnQueues(self._hosts, lambda name: self._in_place.takes(name), self.is_forgiving, self.invoker)
        quarantine_queue = self.invoker.quarantine_queue
        own = (
            (UNDERTAKER, UNDERTAKER_WINDOW, decide.dead, False),
            (DUE, DUE_WINDOW, decide.due, False),
            (quarantine_queue, QUARANTINE_WINDOW, decide.quarantined, False),
            (callback_queue, CALLBACK_WINDOW, decide.reply, True),
        )
        intakes = [
            Intake(queue, window, ACKNOWLEDGEMENT_TIMEOUT, partial(self._take_own, queue, decision), adapts=adapts)
            for queue, window, decision, adapts in own
        ]
        for name, host in self._hosts.items():
            concurrency, timeout = host.definition.concurrency, host.definition.timeout
            patience = ACKNOWLEDGEMENT_TIMEOUT if timeout is None else max(2 * timeout, SHORTEST_TIMEOUT)
            intakes.append(
                Intake(name, concurrency, patience, partial(self._take, host), host.longest_wait, adapts=True)
            )
        return intakes

    def __len__(self) -> int:
        return len(self._in_hand)

    def services(self) -> Iterator[tuple[ServiceDefinition, int, int]]:
        """Each service, how many of its handlers run, and how many messages wait for one."""
        for host in self._hosts.values():
            yield host.definition, host.definition.concurrency - host.free, len(host.waiting)

    def forgive(self) -> None:
        """What was in hand is delivered again, and counted as a crash, though this process lives."""
        self._forgiving_until = time.monotonic() + FORGIVING

    def is_forgiving(self) -> bool:
        """Whether what is counted against a message may be this process's own lost connection."""
        return time.monotonic() < self._forgiving_until

    def give_back_waiting(self, queue: str) -> None:
        """Give back what has been fetched from a service's queue and has not been begun."""
        if host := self._hosts.get(queue):
            self._give_back(host.take_back(lambda one: self._is_from_a_service(one) or _may_be_given_back(one)))

    def _give_back(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if _may_be_given_back(delivery) or not self._is_from_a_service(delivery):
                self._settlement.give_back(delivery)
            else:
                queue = self._in_hand[delivery].queue
                copied = quarantine.given_back(delivery.message, queue, redelivered=delivery.redelivered)
                self._settlement.settle(copied, delivery)

    def _is_from_a_service(self, delivery: Delivery) -> bool:
        return self._in_hand[delivery].queue in self._hosts

    def forget_lost(self) -> None:
        """The connection is lost: begin nothing that the broker delivers again."""
        for host in self._hosts.values():
            for delivery in host.take_back(lambda one: not one.live):
                self._settled(delivery)

    async def refuse(self) -> None:
        """From now on begin nothing, neither what waits already nor what comes."""
        self._refusing = True
        await self._regulator.close()
        for host in self._hosts.values():
            self._refused += host.take_back(lambda _: True)

    def give_back_refused(self) -> None:
        """Once nothing is to come any more: what was given back before would come again, and again."""
        self._consumers_are_cancelled = True
        refused, self._refused = self._refused, []
        self._give_back(refused)

    async def drain(self, grace: float) -> int:
        """Let what is in hand finish within `grace` seconds, then give back what has not.

        Returns how many did not finish.
        """
        if self._in_hand:
            self._empty = asyncio.Event()
            try:
                async with asyncio.timeout(grace):
                    await self._empty.wait()
            except TimeoutError:
                pass
        unfinished = len(self._in_hand)
        await self._eager.cancel()
        if self._runs is not None:
            await self._runs.close()
        return unfinished

    def close(self) -> None:
        self._threads.close()

    def _arrived(self, intake: Intake, delivery: Delivery, message: Message) -> bool:
        """Note that a delivery is in hand; False if it is not to be begun, as this process is about to stop."""
        self._in_hand[delivery] = intake
        intake.begun(len(message.body))
        if self._refusing:
            self._refused.append(delivery)
            if self._consumers_are_cancelled:
                self.give_back_refused()
            return False
        if intake.adapts and not intake.watched:
            self._regulator.watch(intake)
        return True

    def _settled(self, delivery: Delivery) -> None:
        intake = self._in_hand.pop(delivery)
        intake.ended()
        if intake is self._callbacks:
            self._in_place.ended(delivery)
        if self._empty is not None and not self._in_hand:
            self._empty.set()

    def _take(self, host: Host, delivery: Delivery) -> None:
        message, name = delivery.message, host.definition.name
        if self._arrived(self.intakes[name], delivery, message):
            self._admit(host, delivery, message, None)

    def _take_own(self, queue: str, decide: Callable[[Message], ForService | Outcome], delivery: Delivery) -> None:
        message = delivery.message
        if not self._arrived(self.intakes[queue], delivery, message):
            return
        decision = decide(message)
        if isinstance(decision, Outcome):
            self._settlement.settle(decision, delivery)
        elif queue == self.invoker.quarantine_queue:
            self._hosts[decision.name].admit(delivery, decision.message, None)
        else:
            if decision.headers is not None:
                self._in_place.take(delivery)
            self._admit(self._hosts[decision.name], delivery, decision.message, decision.headers)

    def _admit(self, host: Host, delivery: Delivery, message: Message, headers: Headers | None) -> None:
        """Have a message handled, or put it into quarantine."""
        name = host.definition.name
        forgiving = delivery.redelivered and self.is_forgiving()
        if (delivery.redelivered or quarantine.QUARANTINE in message.headers) and quarantine.is_suspect(
            message.headers, name, redelivered=delivery.redelivered, forgiving=forgiving
        ):
            logger.info(
                "a message of %r may have ended the process that handled it: it is put into quarantine",
                name,
                extra={"cid": message.correlation_id},
            )
            isolated = quarantine.isolated(
                message, name, self.invoker.quarantine_queue, is_reply=headers is not None, forgiving=forgiving
            )
            self._settlement.settle(isolated, delivery)
            self.isolated.set()
        else:
            host.admit(delivery, message, headers)

    def _comes_again(self, delivery: Delivery, message: Message) -> bool:
        # What is in quarantine was delivered before, though not from there.
        return (
            quarantine.comes_again(message.headers, redelivered=delivery.redelivered)
            or self._in_hand[delivery].queue == self.invoker.quarantine_queue
        )

    def _begin(self, host: Host, delivery: Delivery, message: Message, headers: Headers | None) -> None:
        if headers is not None:
            self._in_place.begin(delivery, host)
        self._eager.begin(self._handle(host, delivery, message, headers))

    async def _handle(self, host: Host, delivery: Delivery, message: Message, headers: Headers | None) -> None:
        try:
            redelivered = self._comes_again(delivery, message)
            if self._runs is not None and host.definition.durable:
                is_reply = headers is not None
                outcome = await self._go_on_with_run(
                    self._runs, host, message, redelivered=redelivered, is_reply=is_reply
                )
            elif self._once is not None and host.definition.idempotent:
                outcome = await self._handle_once(self._once, host, message, headers, redelivered=redelivered)
            else:
                outcome = await self._dispatcher.dispatch(
                    host.definition, message, host.release, redelivered=redelivered, reply_headers=headers
                )
            self._settlement.settle(outcome, delivery)
        except BaseException as error:
            await self._settlement.fail(delivery, error)

    async def _go_on_with_run(
        self, runs: Runs, host: Host, message: Message, *, redelivered: bool, is_reply: bool
    ) -> Outcome:
        try:
            return await runs.handle(host.definition, message, redelivered=redelivered, is_reply=is_reply)
        finally:
            host.release()

    async def _handle_once(
        self, once: Once, host: Host, message: Message, headers: Headers | None, *, redelivered: bool
    ) -> Outcome:
        """As `dispatch`, but that what is kept for the message is its outcome; its slot is held until that is known."""
        dispatching = self._dispatcher.dispatch(
            host.definition, message, lambda: None, redelivered=redelivered, reply_headers=headers
        )
        try:
            return await once.run(host.definition.name, message, dispatching, is_reply=headers is not None)
        finally:
            host.release()


def _may_be_given_back(delivery: Delivery) -> bool:
    return quarantine.may_be_given_back(delivery.message.headers, redelivered=delivery.redelivered)
