"""The runs of durable services that this process works on: each message goes to its run's actor; what rests is let go of."""

from __future__ import annotations

import time
from collections import OrderedDict

from broker.handling import events
from broker.handling.actor import Actor, Arrival, Workshop
from broker.handling.eager import directly
from broker.hosting.definition import ServiceDefinition
from broker.log import logger
from broker.protocol import runs
from broker.protocol.cids import new_cid
from broker.protocol.message import Message
from broker.protocol.outcomes import Outcome
from broker.stores.interface import StoreError

CACHED_RUNS = 1_000
CACHED_STEPS = 200_000
"""What rests is kept in memory up to that, to go on without being read and replayed."""


class Runs:
    """With `cached` 0, every message has its run read and replayed."""

    def __init__(self, workshop: Workshop, cached: int = CACHED_RUNS) -> None:
        self._workshop = workshop
        self._cached = cached
        self._actors: dict[str, Actor] = {}
        self._resting: OrderedDict[str, int] = OrderedDict()
        self._resting_steps = 0
        self._failing = False

    async def handle(
        self, definition: ServiceDefinition, message: Message, *, redelivered: bool, is_reply: bool
    ) -> Outcome:
        """What is to be published for a message before it is acknowledged, once it is journalled and what it led to is done.

        Raises:
            ConnectionLostError: the message will come again.
        """
        began = time.time()
        cid = message.correlation_id = message.correlation_id or new_cid()
        run, step = runs.step_of(message, definition.name) or (runs.run_id(definition.name, cid), None)
        arrival = Arrival(message, step, redelivered=redelivered, is_reply=is_reply)
        self._actor(definition, run).put(arrival)
        outcome = await directly(arrival.settled)
        if (observer := self._workshop.invoker.observer) is not None:
            observer.note(events.handled(definition.name, message, began, outcome, None, redelivered, is_reply))
        return outcome

    async def close(self) -> None:
        for actor in list(self._actors.values()):
            await actor.close()
        self._actors.clear()

    def _actor(self, definition: ServiceDefinition, run: str) -> Actor:
        actor = self._actors.get(run)
        if actor is None:
            actor = self._actors[run] = Actor(self._workshop, definition, run, self._told, self._rest)
        else:
            self._resting_steps -= self._resting.pop(run, 0)
        return actor

    def _rest(self, actor: Actor) -> None:
        """An actor has nothing to do."""
        if not actor.weight or not self._cached:
            self._forget(actor.run_id)
            return
        self._resting[actor.run_id] = actor.weight
        self._resting_steps += actor.weight
        while len(self._resting) > self._cached or self._resting_steps > CACHED_STEPS:
            run, weight = self._resting.popitem(last=False)
            self._resting_steps -= weight
            self._forget(run)

    def _forget(self, run: str) -> None:
        if (actor := self._actors.pop(run, None)) is not None:
            actor.let_go()

    def _told(self, error: StoreError | None) -> None:
        if error is not None and not self._failing:
            logger.error("%s; messages of durable services wait until it works", error)
        elif error is None and self._failing:
            logger.info("the store of durable services works again")
        self._failing = error is not None
