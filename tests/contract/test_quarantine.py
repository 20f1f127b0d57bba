"""Messages that end their process, or here their connection, whenever they are handled: the culprit dies, its neighbours do not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from broker import Service
from broker.protocol.message import Message, Publishing
from broker.protocol.quarantine import LOSSES_IN_QUARANTINE, QUARANTINE, queue_name
from broker.transport.interface import Connection, Delivery, Transport
from broker.transport.memory import MemoryBroker
from tests.contract.conftest import Cuttable
from tests.support import DEAD_LETTERS, delete_queues, run, running, unique, until

Through = Callable[[], AbstractAsyncContextManager[Cuttable]]


class Graves:
    """The dead letters that appear, read on a connection of their own."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._read: list[Message] = []
        self._connection: Connection | None = None

    async def __aenter__(self) -> Graves:
        if not isinstance(self._transport, MemoryBroker):
            self._connection = await self._transport.connect()
            await self._connection.consume(DEAD_LETTERS, 100, self._take, lambda _: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._connection.close()

    def _take(self, delivery: Delivery) -> None:
        self._read.append(delivery.message)
        delivery.ack()

    def of(self, cid: str) -> list[Message]:
        messages = self._transport.ready(DEAD_LETTERS) if isinstance(self._transport, MemoryBroker) else self._read
        return [one for one in messages if one.correlation_id == cid]


@pytest.mark.parametrize("kind", ["requests", "replies"])
def test_what_ends_every_connection_is_given_up_after_a_few_and_its_neighbours_are_handled(
    transport: Transport, cuttable: Through, kind: str
) -> None:
    culprit = unique("culprit")
    handled: Counter[str] = Counter()
    finished: set[str] = set()

    async def test() -> None:
        async with cuttable() as through:

            class Fragile(Service):
                name = unique("fragile")
                concurrency = 8

                async def handle(self) -> str:
                    handled[self.cid] += 1
                    if self.cid == culprit:
                        await asyncio.sleep(0.05)
                        through.cut()
                    await asyncio.sleep(0.1)
                    finished.add(self.cid)
                    return "done"

            async with running(through.transport, Fragile) as daemon, Graves(transport) as graves:
                cids = [unique("neighbour") for _ in range(12)]
                cids.insert(3, culprit)
                is_reply = kind == "replies"
                queue = daemon.callback_queue if is_reply else Fragile.name
                headers: dict[str, Any] = {"callback": Fragile.name} if is_reply else {}
                connection = await transport.connect()
                for cid in cids:
                    await connection.publish(Publishing(queue, Message(b"x", dict(headers), correlation_id=cid)))
                await connection.close()
                found = await until(lambda: graves.of(culprit), timeout=60)
                await until(lambda: finished >= set(cids) - {culprit}, timeout=60)
                await until(lambda: not daemon.daemon.busy())
                assert len(found) == 1
                assert (found[0].headers["dead-reason"], found[0].headers["dead-service"]) == (
                    "delivery-limit",
                    Fragile.name,
                )
                # Twice beside others, as a process that loses its connection, and lives, forgives one count; by itself, once and whenever
                # it was put back.
                attempts = 2 + 1 + LOSSES_IN_QUARANTINE
                assert found[0].headers["dead-attempts"] == attempts
                # A reply that finds no free slot is passed on, which begins its count again.
                assert handled[culprit] == attempts or (is_reply and handled[culprit] <= attempts + 2)
                assert QUARANTINE not in found[0].headers
                assert not any(graves.of(cid) for cid in cids if cid != culprit)
            await delete_queues(transport, [queue_name(daemon.callback_queue)])

    run(test())


def test_a_failing_network_does_not_make_a_message_in_quarantine_a_culprit(
    transport: Transport, cuttable: Through
) -> None:
    began = finished = 0

    async def test() -> None:
        async with cuttable() as through:

            class Innocent(Service):
                name = unique("innocent")

                async def handle(self) -> None:
                    nonlocal began, finished
                    began += 1
                    if began <= LOSSES_IN_QUARANTINE:
                        await asyncio.sleep(0.05)
                        through.cut()
                    await asyncio.sleep(0.1)
                    finished += 1

            async with running(through.transport, Innocent) as daemon, Graves(transport) as graves:
                cid = unique("cid")
                note = {"service": Innocent.name, "deliveries": 1}
                quarantine = queue_name(daemon.callback_queue)
                await daemon.publish(quarantine, Message(b"x", {QUARANTINE: note}, correlation_id=cid))
                await until(lambda: finished == LOSSES_IN_QUARANTINE + 1, timeout=60)
                await until(lambda: not daemon.daemon.busy())
                assert not graves.of(cid)
            await delete_queues(transport, [quarantine])

    run(test())


def test_a_message_in_quarantine_finds_the_daemon_that_hosts_its_service(transport: Transport) -> None:
    seen: list[tuple[str, Any]] = []

    class Elsewhere(Service):
        name = unique("elsewhere")

        async def handle(self) -> None:
            seen.append((self.cid, self.request.headers))

    class Other(Service):
        name = unique("other")

        async def handle(self) -> None:
            pass

    async def test() -> None:
        shared = {"queue": unique("callbacks")}
        note = {"service": Elsewhere.name, "deliveries": 2}
        async with running(transport, Other, callbacks=shared) as daemon:
            async with running(transport, Elsewhere, callbacks=shared):
                for cid in ("a", "b", "c", "d"):
                    message = Message(b"x", {QUARANTINE: note, "mine": 1}, correlation_id=cid)
                    await daemon.publish(queue_name(shared["queue"]), message)
                await until(lambda: len(seen) == 4)
        assert sorted(seen, key=str) == [(cid, {"mine": 1}) for cid in ("a", "b", "c", "d")]
        await delete_queues(transport, [queue_name(shared["queue"])])

    run(test())


@pytest.mark.parametrize("note", ["text", {}, {"service": "amq.x", "deliveries": 1}, {"service": "x"}])
def test_nonsense_in_quarantine_is_a_dead_letter(transport: Transport, note: Any) -> None:
    class Hosted(Service):
        name = unique("any")

        async def handle(self) -> None:
            pass

    async def test() -> None:
        async with running(transport, Hosted) as daemon:
            cid = unique("cid")
            quarantine = queue_name(daemon.callback_queue)
            await daemon.publish(quarantine, Message(b"x", {QUARANTINE: note}, correlation_id=cid))
            assert (await daemon.dead_letter(cid)).headers["dead-reason"] == "invalid"
        await delete_queues(transport, [quarantine])

    run(test())
