"""What is scheduled is fired, by one daemon, at its time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from broker import Service, every
from broker.errors import RemoteError
from broker.handling.schedules import NobodyFiresError, ScheduleCommands
from broker.protocol import schedules
from broker.protocol.message import Message, Publishing
from broker.protocol.names import SCHEDULES
from broker.protocol.queues import own_queue
from broker.transport.interface import Connection, Transport
from tests.support import Inbox, delete_queues, named, run, running, running_daemon, unique, until


class Tick(Service):
    schedule = every(seconds=1)
    payload: ClassVar[Any] = {"full": True}
    seen: ClassVar[list[tuple[str, Any]]] = []

    async def handle(self, what: dict[str, bool]) -> None:
        self.seen.append((self.cid, what))


def ticking(**attributes: Any) -> type[Tick]:
    cls = named(unique("tick"), Tick)
    for name, value in {"seen": [], **attributes}.items():
        setattr(cls, name, value)
    return cls


@asynccontextmanager
async def office(transport: Transport) -> AsyncIterator[Connection]:
    """A connection beside; what is scheduled in a test is forgotten with it."""
    await delete_queues(transport, [SCHEDULES])
    connection = await transport.connect()
    try:
        yield connection
    finally:
        await connection.close()
        await delete_queues(transport, [SCHEDULES])


async def listed(connection: Connection) -> Any:
    """What is scheduled; None while nobody is there who could say: that a daemon is ready says that its services are."""
    try:
        return await ScheduleCommands(connection).tell("list")
    except NobodyFiresError:
        return None


def second_of(cid: str) -> datetime:
    return datetime.fromisoformat(cid.rpartition("/")[2])


def test_a_schedule_is_fired_every_second(transport: Transport) -> None:
    async def test() -> None:
        cls = ticking()
        async with office(transport), running(transport, cls):
            await until(lambda: len(cls.seen) >= 3)
        cids, payloads = zip(*cls.seen, strict=True)
        assert all(payload == {"full": True} for payload in payloads)
        assert all(cid.startswith(f"{cls.name}/") for cid in cids)
        first = second_of(cids[0])
        assert [second_of(cid) for cid in cids] == [first + timedelta(seconds=one) for one in range(len(cids))]

    run(test())


def test_one_daemon_fires_and_the_next_goes_on(transport: Transport) -> None:
    async def test() -> None:
        cls = ticking()
        async with office(transport), running(transport, cls), running(transport, cls) as second:
            async with running_daemon(transport, cls):
                await until(lambda: len(cls.seen) >= 2)
                second.daemon.stop()
                await second.serving
                await until(lambda: len(cls.seen) >= 4)
            await until(lambda: len(cls.seen) >= 6)
        cids = [cid for cid, _ in cls.seen]
        first = second_of(min(cids))
        assert sorted(cids) == [schedules.cid_of(cls.name, first + timedelta(seconds=one)) for one in range(len(cids))]

    run(test())


@pytest.mark.parametrize(("missed", "made_up_for"), [("once", 1), ("all", 30), ("skip", 0)])
def test_what_was_missed_in_an_outage(transport: Transport, missed: schedules.Missed, made_up_for: int) -> None:
    async def test() -> None:
        cls = ticking(schedule="every 1 hour", missed=missed)
        now = datetime.now(UTC)
        plan = schedules.Plan(schedule="every 1 hour", payload={"full": True}, missed=missed)
        outage = timedelta(hours=30) if now.minute or now.second else timedelta(hours=29, minutes=30)
        entry = schedules.Entry(plan=plan, since=1.0, until=now - outage)
        async with office(transport) as connection:
            await connection.declare(own_queue(SCHEDULES))
            await connection.publish(schedules.state(schedules.State(number=7, entries={cls.name: entry})))
            async with running(transport, cls):
                line = await until(lambda: fired_up_to_now(connection))
                assert line["problem"] is None
                await until(lambda: len(cls.seen) >= made_up_for)
        cids = sorted(cid for cid, _ in cls.seen)
        last = now.replace(minute=0, second=0, microsecond=0)
        assert cids == sorted(schedules.cid_of(cls.name, last - timedelta(hours=one)) for one in range(made_up_for))

    async def fired_up_to_now(connection: Connection) -> Any:
        lines = await listed(connection)
        done = lines and (made_up_for == 0 or lines[0]["last"] is not None)
        return lines[0] if done else None

    run(test())


def test_a_person_pauses_resumes_fires_and_drops(transport: Transport) -> None:
    async def test() -> None:
        cls = ticking(schedule="0 3 * * mon-fri Europe/Amsterdam")
        async with office(transport) as connection, running(transport, cls):
            (line,) = await until(lambda: listed(connection))
            assert line["service"] == cls.name
            assert line["schedule"] == "0 3 * * mon-fri Europe/Amsterdam"
            assert line["last"] is None
            assert len(line["next"]) == 3
            (line,) = await ScheduleCommands(connection).tell("pause", str(cls.name))
            assert line["paused"] and line["next"] == []
            fired = await ScheduleCommands(connection).tell("fire", str(cls.name))
            await until(lambda: cls.seen)
            assert cls.seen == [(fired["cid"], {"full": True})]
            (line,) = await ScheduleCommands(connection).tell("resume", str(cls.name))
            assert not line["paused"] and len(line["next"]) == 3
            with pytest.raises(RemoteError, match="'nobody' has no schedule"):
                await ScheduleCommands(connection).tell("fire", "nobody")
            assert await ScheduleCommands(connection).tell("drop", str(cls.name)) == []

    run(test())


def test_what_was_paused_is_paused_for_the_next_daemon(transport: Transport) -> None:
    async def test() -> None:
        cls = ticking()
        async with office(transport) as connection:
            async with running(transport, cls):
                await until(lambda: listed(connection))
                await ScheduleCommands(connection).tell("pause", str(cls.name))
            before = len(cls.seen)
            async with running(transport, cls):
                (line,) = await until(lambda: listed(connection))
                assert line["paused"]
                await ScheduleCommands(connection).tell("resume", str(cls.name))
                await until(lambda: len(cls.seen) > before)

    run(test())


def test_a_schedule_that_is_taken_away_goes(transport: Transport) -> None:
    async def test() -> None:
        cls = ticking()
        async with office(transport) as connection:
            async with running(transport, cls):
                await until(lambda: listed(connection))
            async with running(transport, named(str(cls.name), type("Tick", (cls,), {"schedule": None}))):
                await until(lambda: is_empty(connection))

    async def is_empty(connection: Connection) -> bool:
        return await listed(connection) == []

    run(test())


def test_a_queue_that_is_deleted_is_made_again_with_what_was_known(transport: Transport) -> None:
    async def test() -> None:
        cls = ticking()
        async with office(transport) as connection, running(transport, cls):
            await until(lambda: cls.seen)
            await connection.publish(schedules.announcement(1.0, {"of.another": schedules.Plan(schedule="0 3 * * *")}))
            await ScheduleCommands(connection).tell("pause", "of.another")
            await connection.delete(own_queue(SCHEDULES))
            seen = len(cls.seen)
            await until(lambda: len(cls.seen) > seen + 1)
            lines = await ScheduleCommands(connection).tell("list")
            assert {one["service"]: one["paused"] for one in lines} == {cls.name: False, "of.another": True}

    run(test())


def test_what_cannot_be_fired_is_told_and_tried_again(transport: Transport) -> None:
    async def test() -> None:
        cls, elsewhere = ticking(schedule=None), unique("elsewhere")
        plan = schedules.Plan(schedule="every 1 second")
        async with office(transport) as connection:
            await connection.declare(own_queue(SCHEDULES))
            await connection.publish(schedules.announcement(time.time(), {elsewhere: plan}))
            async with running(transport, cls) as test:
                (line,) = await until(lambda: problem_of(connection))
                assert elsewhere in line["problem"]
                await test.connection.declare(own_queue(elsewhere))
                inbox = Inbox(elsewhere)
                await test.connection.consume(elsewhere, 10, inbox.take, lambda _: None)
                first = await inbox.next()
                assert first.correlation_id and first.correlation_id.startswith(elsewhere)
                await until(lambda: solved(connection))
            await delete_queues(transport, [elsewhere])

    async def problem_of(connection: Connection) -> Any:
        lines = await listed(connection)
        return lines if lines and lines[0]["problem"] else None

    async def solved(connection: Connection) -> bool:
        return await problem_of(connection) is None

    run(test())


def test_nonsense_becomes_a_dead_letter(transport: Transport) -> None:
    async def test() -> None:
        cls = ticking()
        async with office(transport) as connection, running(transport, cls) as test:
            await until(lambda: cls.seen)
            for number, body in enumerate((b"", b"nonsense", b'{"command": "explode"}', b"[]")):
                await connection.publish(Publishing(SCHEDULES, Message(body, correlation_id=f"bad{number}")))
                dead = await test.dead_letter(f"bad{number}")
                assert json.loads(dead.headers["dead-error"])["title"] == "Invalid command"
            seen = len(cls.seen)
            await until(lambda: len(cls.seen) > seen)

    run(test())


def test_who_has_a_newer_state_before_it_fires_nothing(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        cls = ticking()
        async with office(transport) as connection:
            await connection.declare(own_queue(SCHEDULES))
            await connection.publish(schedules.state(schedules.State(version=99, number=1)))
            async with running(transport, cls):
                await until(lambda: "a newer version of ackback has written to 'ackback.schedules'" in caplog.text)
                await asyncio.sleep(0)
                assert cls.seen == []

    run(test())
