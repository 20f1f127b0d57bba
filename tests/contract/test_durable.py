"""Durable services: their runs go on where they were, whatever comes twice, early, late, or not at all."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from broker import RemoteError, Service
from broker.errors import ConfigurationError, ServiceDefinitionError, UnroutableError
from broker.hosting import registry
from broker.process.daemon import Daemon
from broker.protocol.message import Message, Publishing
from broker.protocol.outcomes import DEAD_ERROR, DEAD_REASON
from broker.protocol.queues import own_queue
from broker.protocol.runs import run_id
from broker.settings import Settings
from broker.stores.factory import open_store
from broker.stores.interface import Head
from broker.transport.interface import Transport
from broker.transport.lane import LaneTransport
from broker.transport.memory import MemoryBroker
from tests.support import Running, run, running, unique, until


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Those that outlive a process."""
    if request.param == "sqlite":
        return {"store": {"url": f"sqlite://{tmp_path}/runs.db"}}
    return {"store": {"url": request.getfixturevalue(f"{request.param}_url")}}


@pytest.fixture
def sqlite(tmp_path: Path) -> dict[str, Any]:
    return {"store": {"url": f"sqlite://{tmp_path}/runs.db"}}


class Shop:
    """Services under names of their own: a target that counts, and durable ones that tests make of a handler."""

    def __init__(self) -> None:
        self.effects: Counter[Any] = Counter()
        self.target = unique("target")
        effects = self.effects

        class Target(Service):
            name = self.target
            idempotent = True

            async def handle(self, value: Any) -> Any:
                effects[json.dumps(value)] += 1
                if value == "fail":
                    raise ValueError("it cannot be had")
                return {"of": value}

        self.services: list[type[Service]] = [Target]

    def durable(self, handle: Any, **attributes: Any) -> str:
        name = unique("durable")
        self.services.append(
            type("Durable", (Service,), {"name": name, "durable": True, "handle": handle, **attributes})
        )
        return name


@pytest.fixture
def shop() -> Shop:
    return Shop()


def request(body: Any = None, cid: str | None = None) -> Message:
    cid = cid or unique("cid")
    return Message(json.dumps(body).encode(), {}, "application/json", correlation_id=cid, message_id=cid)


def signal(cid: str, name: str, body: Any = None, number: str | None = None) -> Message:
    return Message(
        json.dumps(body).encode(), {"signal": name}, "application/json", correlation_id=cid, message_id=number
    )


async def answer(daemon: Running, name: str, body: Any = None) -> Any:
    reply = await daemon.ask(name, request(body))
    told = json.loads(reply.body) if reply.body else None
    return told if reply.headers["status"] == "ok" else told["detail"]


def test_a_store_keeps_a_journal_in_order_and_takes_only_the_next_chunk(store_url: str) -> None:
    async def test() -> None:
        first = open_store(store_url)
        name, cid = unique("run"), unique("cid")
        head = Head(name, "shop.checkout", cid, "running", 1000.0, 1000.5)
        assert await first.read(name) == []
        assert await first.append(name, 0, "[0]", head, None)
        assert not await first.append(name, 0, "[x]", head, None)
        assert not await first.append(name, 2, "[x]", None, None)
        assert await asyncio.gather(*(first.append(name, 1, f"[{n}]", None, None) for n in range(9))) == [True] + 8 * [
            False
        ]
        assert await first.read(name) == ["[0]", "[0]"]
        assert [
            one for one in await first.heads(service="shop.checkout", state="running", cid=cid) if one.run == name
        ] == [head]
        assert await first.append(name, 2, '["\u2028 \\ud800"]', head._replace(state="done"), 60.0)
        assert [one.state for one in await first.heads() if one.run == name] == ["done"]
        assert len(await first.read(name)) == 3
        await first.drop(name, 2)
        assert len(await first.read(name)) == 1
        assert not await first.append(name, 1, "[x]", None, None)
        assert not await first.append(name, 0, "[x]", head, None)
        assert await first.append(name, 3, "[3]", head, None)
        await first.drop(name, 1)
        await first.drop(name, 3)
        assert await first.read(name) == ["[3]"]
        assert await first.append(name, 4, "[4]", None, None)
        await first.close()

    run(test())


def test_a_run_that_is_over_is_forgotten(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("sqlite", "postgresql"):
        monkeypatch.setattr(f"broker.stores.{kind}.PRUNE_EVERY", 0.0)

    async def test() -> None:
        store = open_store(store_url)
        names = [unique("run") for _ in range(200)]
        for number, name in enumerate(names):
            head = Head(name, "shop.checkout", name, "done", 1000.0, 1000.5)
            assert await store.append(name, 0, "[0]", head, 0.001 * (number % 20 + 1))

        async def is_gone() -> bool:
            heads = await store.heads()
            return not any([await store.read(name) for name in names]) and not {one.run for one in heads} & {*names}

        await until(is_gone)
        await store.close()

    run(test())


def test_steps_one_after_the_other_and_at_once(transport: Transport, store: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any, value: Any) -> Any:
        first = await self.call(shop.target, value)
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(self.call(shop.target, n)) for n in range(3)]
        return [first, [one.result() for one in both], await self.step(sum, [1, 2]), await self.step(later, 5)]

    async def later(value: int) -> int:
        await asyncio.sleep(0.01)
        return value + 1

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **store) as daemon:
            assert await answer(daemon, name, "tea") == [{"of": "tea"}, [{"of": n} for n in range(3)], 3, 6]
        assert shop.effects == {'"tea"': 1, "0": 1, "1": 1, "2": 1}

    run(test())


def test_a_failure_is_an_exception_there_and_may_be_compensated(
    transport: Transport, sqlite: dict[str, Any], shop: Shop
) -> None:
    def boom(value: int) -> None:
        raise KeyError(value)

    async def handle(self: Any) -> Any:
        told = []
        for attempt in (self.call(shop.target, "fail"), self.step(boom, 7)):
            try:
                await attempt
            except RemoteError as error:
                told.append([error.problem.title, error.problem.detail])
        try:
            await self.call(shop.target + ".nobody")
        except UnroutableError as error:
            told.append(["unroutable", error.target.removeprefix(shop.target)])
        return told

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            assert await answer(daemon, name) == [
                ["ValueError", "it cannot be had"],
                ["KeyError", "7"],
                ["unroutable", ".nobody"],
            ]

    run(test())


def test_time_passes_in_the_broker(transport: Transport, sqlite: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any) -> Any:
        began = self.now()
        await asyncio.sleep(1)
        try:
            async with asyncio.timeout(1):
                await self.wait_for("never")
        except TimeoutError:
            return (self.now() - began).total_seconds()

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            assert await answer(daemon, name) >= 2

    run(test())


def test_signals_come_early_late_and_twice(transport: Transport, sqlite: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any) -> Any:
        first = await self.wait_for("paid")
        await self.call(shop.target, first)
        return [first, await self.wait_for("approved"), await self.wait_for("paid")]

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            cid, inbox = unique("cid"), await daemon.inbox()
            early = signal(cid, "approved", "early", "a1")
            await daemon.publish(name, early)  # before its run
            begin = request(cid=cid)
            begin.reply_to = inbox.queue
            await daemon.publish(name, begin)
            await daemon.publish(name, early)
            await daemon.publish(name, signal(cid, "paid", 1, "p1"))
            await daemon.publish(name, signal(cid, "paid", 1, "p1"))
            await until(lambda: shop.effects)
            await daemon.publish(name, signal(cid, "paid", 2, "p2"))
            assert json.loads((await inbox.next()).body) == [1, "early", 2]
            await daemon.publish(name, signal(cid, "paid", 3, "p3"))
            assert "is over: done at " in (await daemon.dead_letter(cid)).headers[DEAD_ERROR]

    run(test())


def test_what_comes_again_changes_nothing(transport: Transport, sqlite: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any) -> Any:
        first = await self.call(foreign)
        return [first, await self.wait_for("go")]

    foreign = unique("foreign")
    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            asked: asyncio.Queue[Message] = asyncio.Queue()
            await daemon.connection.declare(own_queue(foreign))

            def replier(delivery: Any) -> None:
                asked.put_nowait(delivery.message)
                delivery.ack()

            await daemon.connection.consume(foreign, 10, replier, lambda _: None)
            cid, inbox = unique("cid"), await daemon.inbox()
            begin = request(cid=cid)
            begin.reply_to = inbox.queue
            for _ in range(3):
                await daemon.publish(name, begin)
            question = await asked.get()
            assert question.reply_to is not None
            for value in ("first", "second", "third"):  # all a foreign server need echo is the correlation ID
                reply = Message(json.dumps(value).encode(), correlation_id=question.correlation_id)
                await daemon.publish(question.reply_to, reply)
            await daemon.publish(name, signal(cid, "go", "went"))
            assert json.loads((await inbox.next()).body) == ["first", "went"]
            assert asked.empty()
            await daemon.publish(name, begin)
            assert json.loads((await inbox.next()).body) == ["first", "went"]

    run(test())


def test_what_comes_together_with_the_end_ends_it_once(
    transport: Transport, sqlite: dict[str, Any], shop: Shop
) -> None:
    foreign = unique("foreign")

    async def handle(self: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(self.call(foreign, n))

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            await daemon.connection.declare(own_queue(foreign))
            asked: list[Message] = []

            def replier(delivery: Any) -> None:
                asked.append(delivery.message)
                delivery.ack()
                for one in asked if len(asked) == 3 else ():
                    failed = Message(b"{}", {"status": "error"}, correlation_id=one.correlation_id)
                    daemon.connection.publish(Publishing(str(one.reply_to), failed))

            await daemon.connection.consume(foreign, 10, replier, lambda _: None)
            begin = request()
            await daemon.ask(name, begin)
            store = open_store(sqlite["store"]["url"])
            chunks = await store.read(run_id(name, str(begin.correlation_id)))
            await store.close()
            entries = [entry for chunk in chunks for entry in json.loads(chunk)]
            assert [entry[0] for entry in entries].count("failed") == 1
            await daemon.dead_letter(str(begin.correlation_id))

    run(test())


def test_another_daemon_goes_on_with_a_run(transport: Transport, store: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any, value: Any) -> Any:
        first = await self.call(shop.target, value)
        return [first, await self.wait_for("go"), await self.call(shop.target, "last")]

    name = shop.durable(handle)

    async def test() -> None:
        cid = unique("cid")
        async with running(transport, *shop.services, **store) as first:
            await first.publish(name, request("tea", cid))
            await until(lambda: shop.effects)
            first.daemon.stop()
            await first.serving
            async with running(transport, *shop.services, **store) as daemon:
                await daemon.publish(name, signal(cid, "go", 1))
                reply = await daemon.ask(name, request("tea", cid))
                assert json.loads(reply.body) == [{"of": "tea"}, 1, {"of": "last"}]
        assert shop.effects == {'"tea"': 1, '"last"': 1}

    run(test())


def test_two_daemons_share_a_fan_in(transport: Transport, store: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any) -> Any:
        return sum(one["of"] for one in await asyncio.gather(*(self.call(shop.target, n) for n in range(100))))

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **store) as daemon, running(transport, *shop.services, **store):
            assert await answer(daemon, name) == sum(range(100))
        assert set(shop.effects.values()) == {1}

    run(test())


def test_a_run_that_fails_is_tried_again_and_then_a_dead_letter_that_can_be_replayed(
    transport: Transport, sqlite: dict[str, Any], shop: Shop
) -> None:
    from broker import Retry

    broken = [True]

    async def handle(self: Any, value: Any) -> Any:
        await self.call(shop.target, value)
        if broken[0]:
            raise ValueError("not yet")
        return await self.call(shop.target, "mended")

    name = shop.durable(handle, retry=Retry(attempts=2, first=1, jitter=0))

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            begin = request("tea")
            reply = await daemon.ask(name, begin)
            assert json.loads(reply.body)["attempts"] == 2
            dead = await daemon.dead_letter(str(begin.correlation_id))
            assert dead.headers[DEAD_REASON] == "error"
            broken[0] = False
            assert json.loads((await daemon.ask(name, begin)).body) == {"of": "mended"}
        assert shop.effects == {'"tea"': 1, '"mended"': 1}

    run(test())


def test_a_run_that_died_of_a_step_asks_for_it_again_when_it_is_replayed(
    transport: Transport, sqlite: dict[str, Any], shop: Shop
) -> None:
    state = {"works": False}

    class Shaky(Service):
        name = unique("shaky")

        async def handle(self) -> str:
            if not state["works"]:
                raise ValueError("out of order")
            return "works"

    async def handle(self: Any) -> Any:
        return [await self.call(shop.target, "tea"), await self.call(Shaky.name)]

    shop.services.append(Shaky)
    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            begin = request()
            assert "out of order" in json.loads((await daemon.ask(name, begin)).body)["detail"]
            state["works"] = True
            assert json.loads((await daemon.ask(name, begin)).body) == [{"of": "tea"}, "works"]
        assert shop.effects == {'"tea"': 1}

    run(test())


def test_a_cancelled_run_may_clean_up(transport: Transport, sqlite: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any) -> Any:
        try:
            await self.wait_for("never")
        finally:
            await self.call(shop.target, "undo")

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            cid, inbox = unique("cid"), await daemon.inbox()
            begin = request(cid=cid)
            begin.reply_to = inbox.queue
            await daemon.publish(name, begin)
            await daemon.publish(name, signal(cid, "ackback.cancel"))
            assert json.loads((await inbox.next()).body)["title"] == "Cancelled"
        assert shop.effects == {'"undo"': 1}

    run(test())


def test_a_run_begins_again_with_an_empty_journal(transport: Transport, sqlite: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any, count: int) -> Any:
        value = await self.wait_for("next")
        return ["ended", value] if count == 3 else self.again(count + 1)

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            cid, inbox = unique("cid"), await daemon.inbox()
            begin = request(1, cid)
            begin.reply_to = inbox.queue
            await daemon.publish(name, begin)
            for n in range(3):
                await daemon.publish(name, signal(cid, "next", n, f"n{n}"))
            assert json.loads((await inbox.next()).body) == ["ended", 2]

    run(test())


def test_a_run_without_end_has_a_short_journal(transport: Transport, store: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any, page: int) -> Any:
        for item in await self.step(lambda: [3 * page, 3 * page + 1, 3 * page + 2]):
            self.invoke_async(shop.target, item)
        return ["read"] if page == 60 else self.again(page + 1)

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **store) as daemon:
            assert await answer(daemon, name, 1) == ["read"]
            await until(lambda: shop.effects.total() == 180)
            found = open_store(store["store"]["url"])
            (head,) = await found.heads(service=name)
            assert len(await found.read(head.run)) <= 3
            await found.close()
        assert shop.effects == Counter(str(item) for item in range(3, 183))

    run(test())


def test_a_durable_service_may_be_a_step_of_itself(transport: Transport, sqlite: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any, depth: int) -> Any:
        return 1 if depth == 0 else 1 + await self.call(name, depth - 1)

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            assert await answer(daemon, name, 4) == 5

    run(test())


def test_what_it_invokes_is_sent_once_and_answers_as_ever(
    transport: Transport, sqlite: dict[str, Any], shop: Shop
) -> None:
    got: list[Any] = []

    class Callback(Service):
        name = unique("callback")

        async def handle(self, value: Any) -> None:
            got.append((self.cid, value))

    async def handle(self: Any) -> Any:
        cid = self.invoke_async(shop.target, "sent", callback=Callback)
        many = await self.invoke_many(shop.target, range(3))
        await self.call(shop.target, "tea")
        return [cid, many]

    shop.services.append(Callback)
    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            cid, many = await answer(daemon, name)
            await until(lambda: got and shop.effects.total() == 5)
            assert (got, len(set(many))) == ([(cid, {"of": "sent"})], 3)
        assert set(shop.effects.values()) == {1}

    run(test())


def test_a_message_for_no_run_is_looked_for_and_then_a_dead_letter(
    transport: Transport, sqlite: dict[str, Any], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.handling.actor.MOST_NO_RUN_TRIES", 1)

    async def handle(self: Any) -> None: ...

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            cid = unique("cid")
            await daemon.publish(name, signal(cid, "approved"))
            dead = await daemon.dead_letter(cid)
            assert dead.headers[DEAD_REASON] == "no-run"
            assert "share one store" in dead.headers[DEAD_ERROR]

    run(test())


def test_a_run_whose_code_has_changed_stops_and_says_where(
    transport: Transport, sqlite: dict[str, Any], shop: Shop
) -> None:
    code = {"asks": "tea"}

    async def handle(self: Any) -> Any:
        await self.call(shop.target, code["asks"])
        return await self.wait_for("go")

    name = shop.durable(handle)

    async def test() -> None:
        cid = unique("cid")
        async with running(transport, *shop.services, **sqlite) as first:
            await first.publish(name, request(cid=cid))
            await until(lambda: shop.effects)
            first.daemon.stop()
            await first.serving
            code["asks"] = "coffee"
            async with running(transport, *shop.services, **sqlite) as daemon:
                await daemon.publish(name, signal(cid, "go", "went", "g1"))
                [dead] = await until(lambda: [one for one in first.dead + daemon.dead if one.correlation_id == cid])
                assert dead.headers[DEAD_REASON] == "changed"
                told = json.loads(dead.headers[DEAD_ERROR])["detail"]
                place = r"\(.*test_durable.py:\d+\)"
                asked = rf"step 1 was call {shop.target} tea {place}, and is call {shop.target} coffee now {place}"
                assert re.fullmatch(asked, told)
                code["asks"] = "tea"
                assert (await daemon.ask(name, request(cid=cid))).body == b"went"

    run(test())


def test_a_result_that_is_no_json_fails_its_step(transport: Transport, sqlite: dict[str, Any], shop: Shop) -> None:
    async def handle(self: Any) -> Any:
        return await self.step(object)

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            assert "the result of step object has no JSON form" in await answer(daemon, name)

    run(test())


def test_what_cannot_be_durable_is_refused_at_the_start(tmp_path: Path) -> None:
    class Plain(Service):
        name = "shop.plain"
        durable = True

        def handle(self) -> None: ...

    class Timed(Service):
        name = "shop.timed"
        durable = True
        timeout = 3.0

        async def handle(self) -> None: ...

    class Good(Service):
        name = "shop.good"
        durable = True

        async def handle(self) -> None: ...

    with pytest.raises(ServiceDefinitionError, match=r"durable service is an `async def`"):
        registry.register([("", Plain)], Settings())
    with pytest.raises(ServiceDefinitionError, match=r"has no `timeout`.*asyncio\.timeout"):
        registry.register([("", Timed)], Settings())

    async def start(url: str) -> None:
        settings = Settings.model_validate({"store": {"url": url}})
        Daemon(settings, registry.register([("", Good)], settings), MemoryBroker())

    with pytest.raises(ConfigurationError, match=r"store.url is memory.*\(shop.good\).*postgresql://"):
        asyncio.run(start("memory"))
    with pytest.raises(ConfigurationError, match=r"store.url: .* cannot be used: unable to open database file"):
        asyncio.run(start(f"sqlite://{tmp_path}/nowhere/at.all"))


def test_a_cid_that_is_no_text_is_a_runs_too(rabbitmq_url: str, store: dict[str, Any], shop: Shop) -> None:
    transport = LaneTransport([rabbitmq_url])  # aio-pika cannot send one

    async def handle(self: Any) -> Any:
        return await self.step(functools.partial(sum, [1, 2]))

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **store) as daemon:
            cid = unique("cid") + "\udce9"  # Latin-1, as a foreign client may send it
            others = [asyncio.ensure_future(daemon.ask(name, request())) for _ in range(5)]
            assert (await daemon.ask(name, request(cid=cid))).body == b"3"
            assert [(await other).body for other in others] == [b"3"] * 5
            found = open_store(store["store"]["url"])
            heads = await found.heads(service=name, most=10)
            await found.close()
            assert len(heads) == 6
            assert cid.replace("\udce9", "\\udce9") in [head.cid for head in heads]

    run(test())


def test_a_service_that_is_not_durable_has_no_steps() -> None:
    class Plain(Service):
        name = unique("plain")

        async def handle(self) -> Any:
            return await self.step(len, "")

    async def test() -> None:
        async with running(MemoryBroker(), Plain) as daemon:
            assert "is not durable, and this is for services that are" in await answer(daemon, Plain.name)

    run(test())


def test_a_journal_that_is_too_long_ends_its_run_and_says_what_to_do(
    transport: Transport, sqlite: dict[str, Any], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.durable.journal.MAX_STEPS", 5)

    async def handle(self: Any) -> None:
        for number in range(100):
            await self.call(shop.target, number)

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            told = await answer(daemon, name)
            assert "at most 5 steps" in told
            assert "`return self.again(payload)` begins with an empty one" in told
        assert shop.effects.total() <= 5

    run(test())


def test_a_handler_that_waits_for_nothing_is_reported_and_holds_up_nobody_for_long(
    transport: Transport, sqlite: dict[str, Any], shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.durable.loop.LONGEST_TURN", 0.2)

    async def handle(self: Any) -> None:
        while True:
            await asyncio.sleep(0)

    name = shop.durable(handle)

    async def test() -> None:
        async with running(transport, *shop.services, **sqlite) as daemon:
            assert "it has run for 0.2 s without waiting for anything" in await answer(daemon, name)
            assert json.loads((await daemon.ask(shop.target, request("tea"))).body) == {"of": "tea"}

    run(test())


def test_daemons_that_do_not_share_a_store_are_told_so(
    transport: Transport, tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.handling.actor.MOST_NO_RUN_TRIES", 1)

    async def handle(self: Any) -> Any:
        return await self.wait_for("go")

    name = shop.durable(handle)
    one, other = ({"store": {"url": f"sqlite://{tmp_path}/{file}.db"}} for file in ("one", "other"))

    async def test() -> None:
        cid = unique("cid")
        async with running(transport, *shop.services, **one) as first:
            await first.publish(name, request(cid=cid))
            await until(lambda: heads_of(one))
            first.daemon.stop()
            await first.serving
            async with running(transport, *shop.services, **other) as second:
                await second.publish(name, signal(cid, "go", "went"))
                [dead] = await until(
                    lambda: [found for found in first.dead + second.dead if found.correlation_id == cid]
                )
                assert dead.headers[DEAD_REASON] == "no-run"
                assert "do all daemons that host the service share one store ([store] url)?" in dead.headers[DEAD_ERROR]

    async def heads_of(section: dict[str, Any]) -> list[Head]:
        store = open_store(section["store"]["url"])
        try:
            return await store.heads(service=name)
        finally:
            await store.close()

    run(test())


def test_a_file_that_is_removed_under_its_daemon_is_said_and_made_anew(
    tmp_path: Path, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(self: Any) -> Any:
        return await self.step(sum, [1, 2])

    name = shop.durable(handle)
    file = tmp_path / "data" / "runs.db"
    file.parent.mkdir()

    async def test() -> None:
        async with running(MemoryBroker(), *shop.services, store={"url": f"sqlite://{file}"}) as daemon:
            assert await answer(daemon, name) == 3
            file.unlink()
            assert await answer(daemon, name) == 3
            assert file.exists()
            shutil.rmtree(file.parent)
            waiting = asyncio.ensure_future(answer(daemon, name))
            await until(lambda: "unable to open database file" in caplog.text)
            file.parent.mkdir()
            assert await waiting == 3

    with caplog.at_level(logging.INFO):
        run(test())
    assert f"the SQLite store failed: {file} was removed or replaced" in caplog.text
    assert "the store of durable services works again" in caplog.text
