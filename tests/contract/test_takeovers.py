"""A run that another process goes on with. Each daemon here has a broker of its own, so that it is the test that says who gets a message;
they share the store."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from broker import Retry, Service, UnroutableError
from broker.handling.actor import COMES_AGAIN
from broker.protocol import runs
from broker.protocol.delays import level_name
from broker.protocol.message import Message
from broker.transport.memory import MemoryBroker
from tests.support import Inbox, Running, run, running, unique, until

pytestmark = pytest.mark.embedded


class Process:
    """A daemon, and who gets the replies there."""

    def __init__(self, broker: MemoryBroker, daemon: Running, inbox: Inbox, durable: str) -> None:
        self._broker = broker
        self._daemon = daemon
        self._inbox = inbox
        self._durable = durable

    async def request(
        self, cid: str, *, again: bool = False, to_reply_to: Process | None = None, attempt: int = 1
    ) -> None:
        reply_to = (to_reply_to or self)._inbox.queue
        await self._publish(Message(b"1", {"attempt": attempt}, correlation_id=cid, reply_to=reply_to), again)

    async def signal(self, cid: str, name: str, *, again: bool = False) -> None:
        await self._publish(Message(b"1", {"signal": name}, correlation_id=cid, message_id=name), again)

    async def _publish(self, message: Message, again: bool) -> None:
        message.content_type = "application/json"
        if again:
            message.headers[COMES_AGAIN] = True
        await self._daemon.publish(self._durable, message)

    async def dead_letter(self, cid: str) -> None:
        await self._daemon.dead_letter(cid)

    async def next_attempt(self, cid: str) -> int:
        """Its number, once it waits for its hour."""
        waiting = level_name(11)  # 2,048 s and more
        (found,) = await until(lambda: [one for one in self._broker.ready(waiting) if one.correlation_id == cid])
        return int(found.headers["attempt"])

    async def answer(self) -> Any:
        return json.loads((await self._inbox.next()).body)


class Processes:
    """The durable service `handle`, and a target, `sink`, that notes what it is asked for under which CID."""

    def __init__(self, store: Path) -> None:
        self._path = store
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
    async def another(self, handle: Any, retry: Retry | None = None) -> AsyncIterator[Process]:
        durable = type("Durable", (Service,), {"name": self.durable, "durable": True, "handle": handle, "retry": retry})
        broker = MemoryBroker()
        async with running(broker, durable, self._sink, **self._store) as daemon:
            yield Process(broker, daemon, await daemon.inbox(), self.durable)

    def chunks(self) -> int:
        """How many chunks are in the store."""
        with closing(sqlite3.connect(self._path)) as connection:
            count: int = connection.execute("SELECT count(*) FROM journal").fetchone()[0]
            return count


async def sinks_the_same_twice(processes: Processes, handle: Any, signal: str) -> None:
    """The process that has got a signal ends, and the signal comes again, to another."""
    async with processes.another(handle) as first:
        await first.request(processes.cid)
        await first.signal(processes.cid, signal)
        await until(lambda: processes.sunk)
    async with processes.another(handle) as second:
        await second.signal(processes.cid, signal, again=True)
        await until(lambda: len(processes.sunk) == 2)
    assert processes.sunk[0] == processes.sunk[1]


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


def number() -> int:
    return 7


def test_what_the_result_of_a_function_leads_to_is_asked_for_again_with_what_led_to_the_function(
    processes: Processes,
) -> None:
    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        first = await self.step(number)
        self.invoke_async(processes.sink, await self.step(lambda: first + 1))
        await self.wait_for("end")

    run(sinks_the_same_twice(processes, handle, "go"))
    assert processes.sunk[0][0] == 8


def test_the_reply_of_a_run_that_a_function_ends_comes_again_with_what_led_to_the_function(
    processes: Processes,
) -> None:
    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        result = await self.step(number)
        self.invoke_async(processes.sink, "at the end")
        return [result]

    async def test() -> None:
        async with processes.another(handle) as first, processes.another(handle) as second:
            await first.request(processes.cid, to_reply_to=second)
            await first.signal(processes.cid, "go")
            await until(lambda: processes.sunk)
            await second.signal(processes.cid, "go", again=True)
            assert await second.answer() == [7]
            await until(lambda: len(processes.sunk) == 2)
        assert len(set(processes.sunk)) == 1

    run(test())


def test_what_is_done_where_nobody_hosts_a_target_is_done_again_with_what_led_to_the_call(processes: Processes) -> None:
    nobody = unique("nobody")

    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        with pytest.raises(UnroutableError):
            await self.call(nobody, 1)
        self.invoke_async(processes.sink, "instead")
        await self.wait_for("end")

    run(sinks_the_same_twice(processes, handle, "go"))


def test_of_two_processes_that_run_a_function_the_later_does_not_take_what_its_result_leads_to_for_done(
    processes: Processes,
) -> None:
    running_functions, may_return = [], asyncio.Event()

    async def slow() -> int:
        running_functions.append(1)
        if len(running_functions) == 1:
            await may_return.wait()
        return 7

    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        self.invoke_async(processes.sink, await self.step(slow))
        await self.wait_for("end")

    async def test() -> None:
        async with processes.another(handle) as first, processes.another(handle) as second:
            await first.request(processes.cid)
            await first.signal(processes.cid, "go")
            await until(lambda: running_functions)
            await second.signal(processes.cid, "go", again=True)
            await until(lambda: len(processes.sunk) == 1)
            may_return.set()
            await until(lambda: len(processes.sunk) == 2)
        assert len(set(processes.sunk)) == 1

    run(test())


def test_what_a_cancellation_leads_to_is_asked_for_again_with_it(processes: Processes) -> None:
    async def handle(self: Any, _: int) -> Any:
        try:
            await self.wait_for("go")
        finally:
            self.invoke_async(processes.sink, "cleaned")
            await self.wait_for("end")

    run(sinks_the_same_twice(processes, handle, runs.CANCEL))


IN_AN_HOUR = Retry(attempts=2, first=3600, maximum=3600, jitter=0)


def test_the_next_attempt_is_asked_for_again_by_the_request_whose_process_died(processes: Processes) -> None:
    async def handle(self: Any, _: int) -> Any:
        raise ValueError("not yet")

    async def test() -> None:
        async with processes.another(handle, IN_AN_HOUR) as first, processes.another(handle, IN_AN_HOUR) as second:
            await first.request(processes.cid)
            assert await first.next_attempt(processes.cid) == 2
            await second.request(processes.cid, again=True)
            assert await second.next_attempt(processes.cid) == 2

    run(test())


def test_the_next_attempt_is_asked_for_again_though_more_has_come_meanwhile(processes: Processes) -> None:
    async def handle(self: Any, _: int) -> Any:
        await self.wait_for("go")
        raise ValueError("not yet")

    async def test() -> None:
        async with processes.another(handle, IN_AN_HOUR) as first, processes.another(handle, IN_AN_HOUR) as second:
            await first.request(processes.cid)
            await first.signal(processes.cid, "go")
            assert await first.next_attempt(processes.cid) == 2
            before = processes.chunks()
            await first.signal(processes.cid, "kept for the next attempt")
            await until(lambda: processes.chunks() == before + 1)
            await second.signal(processes.cid, "go", again=True)
            assert await second.next_attempt(processes.cid) == 2

    run(test())


def test_what_a_function_returns_after_its_attempt_has_failed_is_there_for_the_next(processes: Processes) -> None:
    running_functions, may_return = [], asyncio.Event()

    async def slow() -> int:
        running_functions.append(1)
        await may_return.wait()
        return 7

    attempts = []

    async def handle(self: Any, _: int) -> Any:
        result = asyncio.ensure_future(self.step(slow))
        await self.wait_for("go")
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("not yet")
        return [await result]

    async def test() -> None:
        async with processes.another(handle, Retry(attempts=2, first=1)) as process:
            await process.request(processes.cid)
            await until(lambda: running_functions)
            await process.signal(processes.cid, "go")
            await until(lambda: attempts)
            may_return.set()
            assert await process.answer() == [7]
        assert len(running_functions) == 1

    run(test())


def test_what_an_attempt_that_began_a_run_anew_has_asked_for_is_asked_for_again_with_it(processes: Processes) -> None:
    async def handle(self: Any, page: int) -> Any:
        if page == 2:
            self.invoke_async(processes.sink, "of page 2")
            raise ValueError("not yet")
        await self.wait_for("go")
        if self.request.attempt == 1:
            raise ValueError("not yet")
        return self.again(2)

    async def test() -> None:
        async with processes.another(handle, IN_AN_HOUR) as first, processes.another(handle, IN_AN_HOUR) as second:
            await first.request(processes.cid)
            await first.signal(processes.cid, "go")
            await first.next_attempt(processes.cid)
            await first.request(processes.cid, attempt=2)
            await until(lambda: processes.sunk)
            await second.request(processes.cid, attempt=2, again=True)
            await until(lambda: len(processes.sunk) == 2)
        assert len(set(processes.sunk)) == 1

    run(test())


def test_a_run_that_is_cancelled_between_two_attempts_is_answered(processes: Processes) -> None:
    async def handle(self: Any, _: int) -> Any:
        raise ValueError("not yet")

    async def test() -> None:
        async with processes.another(handle, IN_AN_HOUR) as process:
            await process.request(processes.cid)
            await process.next_attempt(processes.cid)
            await process.signal(processes.cid, runs.CANCEL)
            assert (await process.answer())["title"] == "Cancelled"

    run(test())
