"""A run that another process goes on with. Each daemon here has a broker of its own, so that it is the test that says who gets a message;
they share the store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker import Service
from broker.handling.actor import COMES_AGAIN
from broker.protocol.message import Message
from broker.transport.memory import MemoryBroker
from tests.support import Inbox, Running, run, running, unique, until


class Process:
    """A daemon, and who gets the replies there."""

    def __init__(self, daemon: Running, inbox: Inbox, durable: str) -> None:
        self._daemon = daemon
        self._inbox = inbox
        self._durable = durable

    async def request(self, cid: str, *, again: bool = False) -> None:
        await self._publish(Message(b"1", correlation_id=cid, reply_to=self._inbox.queue), again)

    async def signal(self, cid: str, name: str, *, again: bool = False) -> None:
        await self._publish(Message(b"1", {"signal": name}, correlation_id=cid, message_id=name), again)

    async def _publish(self, message: Message, again: bool) -> None:
        message.content_type = "application/json"
        if again:
            message.headers[COMES_AGAIN] = True
        await self._daemon.publish(self._durable, message)

    async def dead_letter(self, cid: str) -> None:
        await self._daemon.dead_letter(cid)

    async def answer(self) -> Any:
        return json.loads((await self._inbox.next()).body)


class Processes:
    """The durable service `handle`, and a target, `sink`, that notes what it is asked for under which CID."""

    def __init__(self, store: Path) -> None:
        self._store = {"store": {"url": f"sqlite://{store}"}}
        self.sink, self.cid = unique("sink"), unique("cid")
        self.durable = unique("durable")
        self.sunk: list[tuple[Any, str]] = []
        sunk = self.sunk

        class Sink(Service):
            name = self.sink

            async def handle(self, value: Any) -> None:
                sunk.append((value, self.cid))

        self._sink = Sink

    @asynccontextmanager
    async def another(self, handle: Any) -> AsyncIterator[Process]:
        durable = type("Durable", (Service,), {"name": self.durable, "durable": True, "handle": handle})
        async with running(MemoryBroker(), durable, self._sink, **self._store) as daemon:
            yield Process(daemon, await daemon.inbox(), self.durable)


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path / "runs.db")


def test_what_was_asked_for_before_the_end_is_asked_for_again_with_what_led_to_it(processes: Processes) -> None:
    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        self.invoke_async(processes.sink, "before the end")
        await self.wait_for("end")
        self.invoke_async(processes.sink, "at the end")
        return ["done"]

    async def test() -> None:
        async with processes.another(handle) as first:
            await first.request(processes.cid)
            await first.signal(processes.cid, "go")
            await until(lambda: processes.sunk)
            await first.signal(processes.cid, "end")
            assert await first.answer() == ["done"]
            await until(lambda: len(processes.sunk) == 2)
        sunk = list(processes.sunk)
        async with processes.another(handle) as second:
            await second.signal(processes.cid, "go", again=True)
            await until(lambda: processes.sunk == [*sunk, sunk[0]])
            await second.signal(processes.cid, "end", again=True)
            await until(lambda: processes.sunk == [*sunk, *sunk])
            await second.request(processes.cid, again=True)
            assert await second.answer() == ["done"]

    run(test())


def test_what_was_asked_for_before_a_run_begins_anew_is_asked_for_again_by_another_process(
    processes: Processes,
) -> None:
    async def handle(self: Any, page: int) -> Any:
        if page == 2:
            return ["read"]
        await self.wait_for("go")
        self.invoke_async(processes.sink, "of page 1")
        await self.wait_for("next")
        return self.again(2)

    async def test() -> None:
        async with processes.another(handle) as first:
            await first.request(processes.cid)
            await first.signal(processes.cid, "go")
            await until(lambda: processes.sunk)
        async with processes.another(handle) as second:
            await second.signal(processes.cid, "next")
            await second.request(processes.cid)
            assert await second.answer() == ["read"]
            await until(lambda: len(processes.sunk) == 2)
        assert len(set(processes.sunk)) == 1

    run(test())


def test_a_process_that_knows_a_run_from_earlier_sees_that_it_died_elsewhere(processes: Processes) -> None:
    works = [False]

    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        if not works[0]:
            raise ValueError("not yet")
        return ["done"]

    async def test() -> None:
        async with processes.another(handle) as first, processes.another(handle) as second:
            await first.request(processes.cid)
            await first.request(other := unique("cid"))
            await first.signal(other, "go")
            assert (await first.answer())["detail"] == "not yet"  # so the other has begun there, too
            await second.signal(processes.cid, "go")
            await second.dead_letter(processes.cid)
            works[0] = True
            await first.request(processes.cid)
            assert await first.answer() == ["done"]

    run(test())


def test_a_process_that_knows_a_run_from_earlier_does_not_take_what_comes_twice_for_done(processes: Processes) -> None:
    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        self.invoke_async(processes.sink, "went")
        await self.wait_for("end")

    async def test() -> None:
        async with processes.another(handle) as first, processes.another(handle) as second:
            await first.request(processes.cid)
            await first.signal(processes.cid, "go")
            await until(lambda: processes.sunk)
            await second.signal(processes.cid, "go", again=True)
            await until(lambda: len(processes.sunk) == 2)
            await first.signal(processes.cid, "go", again=True)
            await until(lambda: len(processes.sunk) == 3)
        assert len(set(processes.sunk)) == 1

    run(test())
