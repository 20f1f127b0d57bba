"""The flight recorder: what happens to invocations is on the stream, and what happens to the stream is of no account to them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import core_schema

from broker import AsyncClient, Retry, Service, UnroutableError
from broker.protocol.entities import Queue
from broker.protocol.events import EVENTS, Event, batch, event_stream
from broker.protocol.message import Message
from broker.recording import connection as record
from broker.recording.reading import NoRecordError, events_of, read
from broker.recording.trace import Step, story
from broker.transport.interface import Connection, Transport
from tests.contract.services import Seen, collecting_callback
from tests.support import Running, run, running, unique, until


async def recorded(connection: Connection) -> list[Event]:
    try:
        return [event async for batch in read(connection) for event in events_of(batch)]
    except NoRecordError:
        return []


async def is_recording(daemon: Running) -> None:
    """Wait for the stream: nothing is recorded of a client that is quicker."""
    await until(lambda: recorded(daemon.connection))


async def story_of(connection: Connection, cid: str, handlings: int, dead: int = 0) -> Step:
    """The tree of an invocation, once so many handlings and dead letters are recorded in it."""

    def steps(step: Step) -> list[Step]:
        return [step, *(one for child in step.children for one in steps(child))]

    async def found() -> Step | None:
        root = (await story(read(connection), cid)).root
        all_steps = [] if root is None else steps(root)
        is_whole = (
            sum(len(one.handlings) for one in all_steps) >= handlings
            and sum(len(one.dead) for one in all_steps) >= dead
        )
        return root if is_whole else None

    root = await until(found)
    assert isinstance(root, Step)
    return root


def order_and_price() -> tuple[type[Service], type[Service]]:
    class Price(Service):
        name = unique("price")
        retry = Retry(attempts=2, first=1, jitter=0)

        async def handle(self) -> None:
            raise LookupError(f"no price in attempt {self.request.attempt}")

    class Order(Service):
        name = unique("order")
        callback = unique("nobody")

        async def handle(self) -> str:
            self.invoke_async(Price, delay=1)
            return "ordered"

    return Order, Price


def test_the_whole_story_of_an_order(transport: Transport) -> None:
    order, price = order_and_price()
    seen = Seen()
    told = collecting_callback(seen)

    async def test() -> None:
        async with (
            running(transport, order, price, told) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            await is_recording(daemon)
            cid = await client.invoke_async(order, "a book", callback=told)
            await client.close()
            root = await story_of(daemon.connection, cid, 4, dead=2)
            assert (root.cid, root.target, root.callbacks) == (cid, order.name, (told.name,))
            assert root.requested is not None
            assert [(one["service"], one.get("reply")) for one in root.handlings] == [
                (order.name, None),
                (told.name, "ok"),
            ]
            (child,) = root.children
            assert (child.target, child.source, child.delay) == (price.name, order.name, 1)
            assert [(one.get("attempt", 1), one["outcome"], one["error"]) for one in child.handlings[:2]] == [
                (1, "retried", ["LookupError", "no price in attempt 1"]),
                (2, "error", ["LookupError", "no price in attempt 2"]),
            ]
            assert child.handlings[0]["retry_in"] == 1
            assert sorted(one["reason"] for one in child.dead) == ["error", "no-callback"]
            assert (await story_of(daemon.connection, child.cid, 4)).cid == cid

    run(test())


def test_calls_and_many_requests_of_a_client(transport: Transport) -> None:
    class Echo(Service):
        name = unique("echo")

        async def handle(self) -> Any:
            return self.request.payload

    async def test() -> None:
        async with running(transport, Echo) as daemon:
            await is_recording(daemon)
            async with AsyncClient(settings=daemon.settings, transport=transport) as client:
                assert await client.call(Echo, "x") == "x"
                cids = await client.invoke_many(Echo, map(str, range(700)))

            async def all_recorded() -> list[Event]:
                events = await recorded(daemon.connection)
                mine = [one for one in events if Echo.name in (one.get("service"), one.get("target"))]
                return mine if len(mine) == 2 * 701 else []

            events = await until(all_recorded)
            sent = [one for one in events if one["event"] == "sent"]
            assert [one["cid"] for one in sent if "call" not in one] == cids
            assert len([one for one in sent if "call" in one]) == 1
            assert {one["cid"] for one in events if one["event"] == "handled"} == {one["cid"] for one in sent}

    run(test())


def test_a_handler_that_invokes_very_much(transport: Transport) -> None:
    class Target(Service):
        name = unique("target")

        async def handle(self) -> None:
            pass

    class Source(Service):
        name = unique("source")

        def handle(self) -> None:
            for number in range(450):
                self.invoke_async(Target, number)

    async def test() -> None:
        async with running(transport, Source, Target) as daemon:
            cid = unique("cid")
            await daemon.publish(Source.name, Message(b"", correlation_id=cid))
            root = await story_of(daemon.connection, cid, 451)
            assert len(root.children) == 450
            assert all(child.requested is not None for child in root.children)

    run(test())


def test_what_was_not_sent_is_not_recorded_as_sent(transport: Transport) -> None:
    class Target(Service):
        name = unique("target")

        async def handle(self) -> str:
            return "called"

    class Source(Service):
        name = unique("source")
        outbox = True

        async def handle(self) -> None:
            await self.call(Target)
            self.invoke_async(Target)
            if self.request.text == "fails":
                raise LookupError("no")

    async def test() -> None:
        async with (
            running(transport, Source, Target) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            with pytest.raises(UnroutableError):
                await client.call(nobody)
            works, fails = [await client.invoke_async(Source, text) for text in ("works", "fails")]
            await client.close()
            assert len((await story_of(daemon.connection, works, 3)).children) == 2
            assert len((await story_of(daemon.connection, fails, 2)).children) == 1
            assert not [one for one in await recorded(daemon.connection) if one.get("target") == nobody]

    nobody = unique("nobody")
    run(test())


def test_what_has_just_been_written_is_read(transport: Transport) -> None:
    async def test() -> None:
        connection = await transport.connect()
        await connection.delete(Queue(EVENTS))
        await connection.declare(event_stream(3600, 1_000_000, 100_000))
        assert await recorded(connection) == []
        written = {"event": "dead", "t": 1, "cid": "c"}
        await connection.publish(batch([written], "w", 1))
        assert await recorded(connection) == [written]
        await connection.delete(Queue(EVENTS))
        await connection.close()

    run(test())


def test_nothing_is_recorded_where_that_is_off(transport: Transport) -> None:
    order, price = order_and_price()

    async def test() -> None:
        async with running(transport, order, price, events={"enabled": False}) as daemon:
            async with AsyncClient(settings=daemon.settings, transport=transport) as client:
                cid = await client.invoke_async(order)
            await until(lambda: daemon.dead)
            assert not [one for one in await recorded(daemon.connection) if one.get("cid") == cid]

    run(test())


async def handled_by(daemon: Running, service: type[Service]) -> None:
    """An invocation is handled, and its record is there."""
    cid = unique("cid").replace(".", "-")
    reply = await daemon.ask(service.name, Message(b"", correlation_id=cid))
    assert reply.headers["status"] == "ok"
    await until(lambda: _is_recorded(daemon.connection, cid))


async def _is_recorded(connection: Connection, cid: str) -> bool:
    return any(one.get("cid") == cid and one["event"] == "handled" for one in await recorded(connection))


def test_a_stream_that_is_deleted_is_declared_again_and_holds_up_nobody(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "DECLARE_EVERY", 0.1)

    class Quick(Service):
        name = unique("quick")

        async def handle(self) -> str:
            return "done"

    async def test() -> None:
        async with running(transport, Quick) as daemon:
            await handled_by(daemon, Quick)
            await daemon.connection.delete(Queue(EVENTS))
            for _ in range(20):
                assert (await daemon.ask(Quick.name, Message(b""))).body == b"done"

            cid = unique("again")

            async def again() -> bool:
                await daemon.ask(Quick.name, Message(b"", correlation_id=cid))
                return await _is_recorded(daemon.connection, cid)

            await until(again)

    run(test())


def test_a_daemon_says_what_it_hosts_and_that_it_stops(transport: Transport) -> None:
    order, price = order_and_price()

    async def test() -> None:
        connection = await transport.connect()

        async def signs_until(state: str) -> list[Event]:
            events = await recorded(connection)
            signs = [one for one in events if one["event"] == "daemon" and order.name in one["services"]]
            return signs if any(one["state"] == state for one in signs) else []

        async with running(transport, order, price) as daemon:
            await until(lambda: signs_until("started"))
            daemon.daemon.stop()
            assert await daemon.serving == 0
        signs = await until(lambda: signs_until("stopped"))
        assert [one["state"] for one in signs] == ["started", "drains", "stopped"]
        running_, waiting, concurrency, code = signs[0]["services"][order.name]
        assert (running_, waiting, concurrency, len(code)) == (0, 0, 50, 8)
        assert signs[0]["resident"] > 1 << 20
        await connection.close()

    run(test())


class Unschooled:
    """A type that pydantic can validate, and whose JSON Schema its author has got wrong."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.any_schema()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        raise RuntimeError("not written yet")


def test_a_type_whose_schema_cannot_be_told_ends_no_daemon(transport: Transport) -> None:
    class Takes(Service):
        name = unique("takes")

        async def handle(self, it: Unschooled) -> str:
            return "handled"

    async def test() -> None:
        connection = await transport.connect()

        async def started() -> list[Event]:
            events = await recorded(connection)
            return [one for one in events if one["event"] == "daemon" and Takes.name in one["services"]]

        async with running(transport, Takes) as daemon, AsyncClient(transport=transport) as client:
            (sign, *_) = await until(started)
            assert len(sign["services"][Takes.name][3]) == 8
            assert "takes" not in sign["about"][Takes.name]
            assert await client.call(Takes) == "handled"
            assert not daemon.serving.done()
        await connection.close()

    run(test())
