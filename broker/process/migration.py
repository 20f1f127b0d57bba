"""Brings queues that an earlier version has declared over to the arguments of this one, with what is on them.

Nobody may consume them meanwhile, and nobody should publish to them: RabbitMQ has no way to delete a quorum queue only if it is empty, and
what arrives in that very moment would go with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from broker.errors import AckbackError, OtherArgumentsError, alarm_note
from broker.log import logger
from broker.protocol import migration
from broker.protocol.entities import Queue
from broker.protocol.message import Message, Publishing
from broker.protocol.migration import BESIDE, LOCK, Note
from broker.protocol.queues import MIGRATION, as_before, delay_chain_as_before, own_queue, with_what_leads_there
from broker.transport.interface import Connection, Delivery

BATCH = 50
"""Messages in hand at once, each with a body of up to 16 MiB."""
PATIENCE = 30.0
"""Seconds to wait for RabbitMQ, and for the consumers of a process that was killed to be gone."""
POLL = 0.1
SETTLED_AFTER = 1.0
"""Seconds after which what a killed process has written, or had in hand, is where it belongs: RabbitMQ does not tell."""


class MigrationError(AckbackError):
    """It cannot be done, or cannot go on. Nothing is lost; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """A queue that this version would declare, and how it is found. `problem`: why it cannot be brought over."""

    queue: Queue
    ready: int = 0
    is_former: bool = False
    problem: str | None = None


async def survey(connection: Connection, queues: Sequence[Queue]) -> list[Found]:
    """Those of the queues that exist, in their order; nothing is changed."""
    found = [await _look(connection, queue) for queue in queues]
    return [one for one in found if one is not None]


async def _look(connection: Connection, queue: Queue) -> Found | None:
    if (state := await connection.look_at(queue.name)) is None:
        return None
    try:
        await connection.declare(queue)
        return Found(queue, state.ready)
    except OtherArgumentsError as error:
        difference = str(error).partition("; ")[0]
    if not await _is_former(connection, queue):
        return Found(queue, state.ready, problem=f"{difference}: no version of ackback has declared it like that")
    if state.consumers:
        who = "a consumer" if state.consumers == 1 else f"{state.consumers} consumers"
        return Found(queue, state.ready, True, f"it has {who}: stop all daemons, and whoever else consumes it, first")
    return Found(queue, state.ready, True)


async def lock(connection: Connection) -> None:
    """Let no other process migrate queues of this virtual host while the connection lives.

    Raises:
        MigrationError: another one does.
        ConfigurationError: the user may not declare queues of ackback's.
    """
    try:
        await connection.declare(Queue(LOCK, exclusive=True))
    except OtherArgumentsError:  # it belongs to another connection
        raise MigrationError("another `ackback migrate` is under way on this broker") from None


async def interrupted(connection: Connection) -> str | None:
    """The queue at which an earlier migration was interrupted; empty if it was between two, None if there was none."""
    if await connection.look_at(MIGRATION) is None:
        return None
    async with _Notes.of(connection, interrupted=True) as notes:
        return notes.last.queue if notes.last else ""


async def waiting(connection: Connection) -> str | None:
    """Why a daemon has to wait before it declares and consumes its queues; None if it need not."""
    if await connection.look_at(MIGRATION) is None:
        return None
    if await connection.look_at(LOCK) is None:
        return "`ackback migrate` was interrupted: its queues are not whole before it has been run again"
    return "`ackback migrate` is under way"


async def migrate(connection: Connection, queues: Sequence[Queue], advance: Callable[[int], None]) -> None:
    """Bring the queues over, and first what an earlier migration has left undone. `advance` is told how many messages have moved.

    Raises:
        MigrationError: it cannot go on; run again, it goes on where it was.
        BrokerUnavailableError: so, too.
    """
    begins = await connection.look_at(MIGRATION) is None
    await connection.declare(own_queue(BESIDE), own_queue(MIGRATION))
    if begins:
        await _confirmed(connection, [Publishing(MIGRATION, Message(Note("", "out").encode()))])
    async with _Notes.of(connection, interrupted=not begins) as notes:
        mover = _Mover(connection, notes, advance)
        if notes.last is not None and notes.last.queue:
            await mover.bring_over(own_queue(notes.last.queue))
        for queue in queues:
            if await _is_former(connection, queue):
                await mover.bring_over(queue)
    if await _left_alone(connection, own_queue(BESIDE)):
        raise MigrationError(
            f"there are messages left on queue {BESIDE!r}, which nobody but `ackback migrate` should publish to"
        )
    await connection.delete(own_queue(BESIDE))
    await connection.delete(own_queue(MIGRATION))


async def former_delays(connection: Connection) -> int:
    """How many messages still wait in the delay chain of earlier versions, from which they come out by themselves.

    Without any, it is deleted.
    """
    chain = list(delay_chain_as_before())
    states = [await connection.look_at(one.name) for one in chain if isinstance(one, Queue)]
    if not any(states):
        return 0
    if count := sum(state.ready for state in states if state):
        return count
    for one in chain:
        await connection.delete(one)
    return 0


class _Notes:
    """The notes on the queue `MIGRATION`; the newest alone stays there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        self._kept: Delivery | None = None
        self.last: Note | None = None

    @classmethod
    @asynccontextmanager
    async def of(cls, connection: Connection, *, interrupted: bool) -> AsyncIterator[_Notes]:
        notes = cls(connection)
        # It may have been killed before it wrote the first.
        written = await _left_alone(connection, own_queue(MIGRATION), 1, patience=2 * SETTLED_AFTER)
        consumer = await connection.consume(MIGRATION, 10, notes._deliveries.put_nowait, lambda _: None)
        try:
            for _ in range(written):
                await notes._take()
            with suppress(TimeoutError):
                while interrupted:  # what the interrupted process had in hand may come back later than what it had not
                    async with asyncio.timeout(SETTLED_AFTER):
                        await notes._take()
            yield notes
        finally:
            await consumer.cancel()
            if notes._kept is not None:
                notes._kept.requeue()
            _give_back(notes._deliveries)

    async def write(self, note: Note) -> Note:
        note = replace(note, number=self.last.number + 1 if self.last else 1)
        await _confirmed(self._connection, [Publishing(MIGRATION, Message(note.encode()))])
        await self._take()
        return note

    async def _take(self) -> None:
        """Take the next one, and off the queue that of this and the newest one that is older."""
        delivery = await _next(self._deliveries)
        note = Note.decode(delivery.message.body)
        if self.last is not None and note.number < self.last.number:
            delivery.ack()
            return
        if self._kept is not None:
            self._kept.ack()
        self._kept, self.last = delivery, note


class _Mover:
    def __init__(self, connection: Connection, notes: _Notes, advance: Callable[[int], None]) -> None:
        self._connection = connection
        self._notes = notes
        self._advance = advance

    async def bring_over(self, queue: Queue) -> None:
        beside, last = own_queue(BESIDE), self._notes.last
        if last is None or last.queue != queue.name:
            last = await self._notes.write(Note(queue.name, "out", left=await _left_alone(self._connection, queue)))
        if last.direction == "out":
            if await _is_former(self._connection, queue):
                if self._forgets_what_is_given_back(queue):
                    await self._move_singly(queue, beside)
                    last = Note(queue.name, "out")
                await self._move(queue, beside, last, migration.set_aside)
                if lost := await self._connection.delete(queue):
                    raise MigrationError(
                        f"{lost} messages came to {queue} in the moment of its deletion, and went with it: somebody publishes "
                        "to it. Run this again to go on"
                    )
            last = await self._notes.write(Note(queue.name, "back", left=await _left_alone(self._connection, beside)))
        await self._connection.declare(*with_what_leads_there(queue))
        await self._move(beside, queue, last, migration.put_back)
        await self._notes.write(Note("", "out"))

    async def _move(self, source: Queue, target: Queue, last: Note, converted: Callable[[Message], Message]) -> None:
        """Move all that is on `source`, in order. `last` is the note of the batch at which this was interrupted."""
        interrupted, at_least = last if last.batch else None, last.left - len(last.batch)
        while left := await _left_alone(self._connection, source, at_least):
            at_least = 0
            arrived: asyncio.Queue[Delivery] = asyncio.Queue()
            consumer = await self._connection.consume(source.name, BATCH, arrived.put_nowait, lambda _: None)
            moved = 0
            while moved < left:
                size = len(interrupted.batch) if interrupted else BATCH
                batch = [await _next(arrived) for _ in range(min(size, left - moved))]
                published = await self._published(batch, left, target, interrupted) if interrupted else None
                if published is None:  # the batch has not been noted yet
                    published = 0
                    await self._note(batch, left - moved, target)
                interrupted = None
                await _confirmed(
                    self._connection,
                    [Publishing(target.name, converted(one.message)) for one in batch[published:]],
                )
                for one in batch:
                    one.ack()
                moved += len(batch)
                self._advance(len(batch))
            await consumer.cancel()
            _give_back(arrived)

    def _forgets_what_is_given_back(self, queue: Queue) -> bool:
        """RabbitMQ 3 drops, from a queue with a delivery limit of -1, what a process that ends had in hand."""
        return self._connection.server.version < (4,) and as_before(queue).arguments["x-delivery-limit"] == -1

    async def _move_singly(self, source: Queue, target: Queue) -> None:
        """Move all with one message in hand, and that for as short as can be. What has been published is acknowledged by our end, too."""
        while left := await _left_alone(self._connection, source):
            arrived: asyncio.Queue[Delivery] = asyncio.Queue()
            consumer = await self._connection.consume(source.name, 1, arrived.put_nowait, lambda _: None)
            for _ in range(left):
                delivery = await _next(arrived)
                await _confirmed(self._connection, [Publishing(target.name, migration.set_aside(delivery.message))])
                delivery.ack()
                self._advance(1)
            await consumer.cancel()

    async def _note(self, batch: Sequence[Delivery], left: int, target: Queue) -> None:
        last = self._notes.last
        assert last is not None
        arrived = await self._ready(target)
        others = last.others or bool(last.batch and arrived != last.arrived + len(last.batch))
        digests = [migration.digest(one.message) for one in batch]
        await self._notes.write(Note(last.queue, last.direction, digests, left, arrived, others))

    async def _published(self, batch: Sequence[Delivery], left: int, target: Queue, noted: Note) -> int | None:
        """How many of the batch at which a migration was interrupted are on `target` already; None if these are the ones after it."""
        if [migration.digest(one.message) for one in batch] != list(noted.batch) or left < noted.left:
            return None
        # What the interrupted one had written may still be on its way through RabbitMQ.
        before, now = -1, await self._ready(target)
        while before != now:
            await asyncio.sleep(SETTLED_AFTER)
            before, now = now, await self._ready(target)
        if noted.others:
            logger.warning("somebody publishes to %s: up to %d messages may be on it twice now", target, len(batch))
            return 0
        return min(now - noted.arrived, len(batch))

    async def _ready(self, queue: Queue) -> int:
        state = await self._connection.look_at(queue.name)
        return state.ready if state else 0


async def _left_alone(connection: Connection, queue: Queue, at_least: int = 0, patience: float = PATIENCE) -> int:
    """How many messages are on a queue that nobody consumes.

    The consumer of a process that was killed is there for a moment, and what that had in hand comes back a little later: so there is
    something to wait for, `patience` seconds, while there are fewer than `at_least`.
    """
    begun = asyncio.get_running_loop().time()
    while (state := await connection.look_at(queue.name)) is not None and (state.consumers or state.ready < at_least):
        if asyncio.get_running_loop().time() - begun > (PATIENCE if state.consumers else patience):
            if state.consumers:
                raise MigrationError(
                    f"{queue} has a consumer: stop all daemons, and whoever else consumes it, and run this again"
                )
            logger.warning("%s has %d messages, though %d were expected", queue, state.ready, at_least)
            break
        await asyncio.sleep(POLL)
    return state.ready if state is not None else 0


async def _is_former(connection: Connection, queue: Queue) -> bool:
    """Whether a queue is there, as an earlier version has declared it."""
    if await connection.look_at(queue.name) is None:
        return False
    try:
        await connection.declare(as_before(queue))
    except OtherArgumentsError:
        return False
    return True


def _give_back(deliveries: asyncio.Queue[Delivery]) -> None:
    """Give back what has come since the last was taken, once no more comes: RabbitMQ counts who has something in hand as a consumer."""
    while not deliveries.empty():
        deliveries.get_nowait().requeue()


async def _next(deliveries: asyncio.Queue[Delivery]) -> Delivery:
    async with _patience("RabbitMQ delivers no more of a queue, though there is more on it: run this again"):
        return await deliveries.get()


async def _confirmed(connection: Connection, publishings: Sequence[Publishing]) -> None:
    """Publish, and wait until all are confirmed."""
    futures = [connection.publish(one) for one in publishings]
    if futures:
        async with _patience(
            f"RabbitMQ has confirmed nothing for {PATIENCE:g} s{{alarm}}: run this again once it does", connection
        ):
            await asyncio.gather(*futures)


@asynccontextmanager
async def _patience(text: str, connection: Connection | None = None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError:
        raise MigrationError(text.format(alarm=alarm_note(connection is not None and connection.blocked))) from None
