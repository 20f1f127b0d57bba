"""Where replies go: the callback that is named, by convention or on the class, and what becomes of failures."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from broker import Service
from broker.process import daemon as daemon_module
from broker.protocol.entities import Queue
from broker.protocol.message import Message
from broker.transport.interface import Transport
from tests.contract.services import ClassicEcho, Echo, Failing, Seen, collecting_callback, echo
from tests.support import Running, named, run, running, unique, until


@pytest.mark.parametrize("style", ["def", "async def"])
def test_the_reply_reaches_the_callback_under_the_cid_that_invoke_async_returned(
    transport: Transport, style: str
) -> None:
    seen = Seen()
    target = named(unique("target"), ClassicEcho if style == "def" else Echo)
    callback = collecting_callback(seen)
    cids: list[str] = []

    class Source(Service):
        name = unique("source")

        if style == "def":

            def handle(self) -> None:
                cids.append(self.invoke_async(target, {"n": 1}, callback=callback))
        else:

            async def handle(self) -> None:
                cids.append(self.invoke_async(target, {"n": 1}, callback=callback))

    async def test() -> None:
        async with running(transport, Source, target, callback) as daemon:
            await daemon.publish(Source.name, Message())
            assert await seen.wait() == [("ok", cids[0], '{"n":1}')]

    run(test())


def test_every_form_of_callback(transport: Transport) -> None:
    seen = Seen()
    target = echo("target")
    first, second = collecting_callback(seen), collecting_callback(seen)

    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            if self.request.is_reply:
                seen.add(("self", self.cid, self.request.payload))
                return
            self.invoke_async(target, "by name", callback=first.name)
            self.invoke_async(target.name, "by class", callback=second)
            self.invoke_async(target, "by instance", callback=self)
            self.invoke_async(target, "list", callback=[first, second.name, self, first])

    async def test() -> None:
        async with running(transport, Source, target, first, second) as daemon:
            await daemon.publish(Source.name, Message())
            events = await seen.wait(6)
            assert sorted((kind, payload) for kind, _, payload in events) == [
                ("ok", "by class"),
                ("ok", "by name"),
                ("ok", "list"),
                ("ok", "list"),
                ("self", "by instance"),
                ("self", "list"),
            ]
            assert len({cid for _, cid, payload in events if payload == "list"}) == 1

    run(test())


def test_without_a_callback_the_convention_finds_one_and_else_no_reply_is_asked_for(transport: Transport) -> None:
    seen = Seen()
    requests: list[tuple[str, str | None]] = []

    class Target(Service):
        name = unique("target")

        async def handle(self) -> str:
            requests.append((self.request.payload, self.request.reply_to))
            return "done"

    class Lonely(Service):
        name = unique("lonely")

        async def handle(self) -> None:
            self.invoke_async(Target, "lonely")

    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            self.invoke_async(Target, "source")

    callback = collecting_callback(seen, Source.name + "-async-callback")

    async def test() -> None:
        async with running(transport, Lonely, Source, Target, callback) as daemon:
            await daemon.publish(Lonely.name, Message())
            await until(lambda: requests)
            await daemon.publish(Source.name, Message())
            assert [(kind, text) for kind, _, text in await seen.wait()] == [("ok", "done")]
            assert requests == [("lonely", None), ("source", daemon.callback_queue)]

    run(test())


def test_the_convention_finds_a_callback_that_another_daemon_hosts_in_both_orders_of_starting(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "LOOK_FOR_CALLBACKS", 0.1)
    seen = Seen()
    asked: list[str | None] = []

    class Target(Service):
        name = unique("target")

        async def handle(self) -> str:
            asked.append(self.request.reply_to)
            return "done"

    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            self.invoke_async(Target)

    callback = collecting_callback(seen, Source.name + "-async-callback")

    async def until_asked(daemon: Running, reply_to: str | None) -> None:
        async with asyncio.timeout(30):
            while not asked or asked[-1] != reply_to:
                count = len(asked)
                await daemon.publish(Source.name, Message())
                await until(lambda count=count: len(asked) > count)

    async def test() -> None:
        async with running(transport, Source, Target) as daemon:
            await until_asked(daemon, None)
            async with running(transport, callback):
                await until_asked(daemon, daemon.callback_queue)
                assert (await seen.wait())[0][2] == "done"
            await daemon.connection.delete(Queue(callback.name))
            await until_asked(daemon, None)
        asked.clear()
        async with running(transport, callback), running(transport, Source, Target) as daemon:
            await daemon.publish(Source.name, Message())
            await until(lambda: asked)
            assert asked == [daemon.callback_queue]

    run(test())


def test_a_callback_of_none_written_out_means_nobody(transport: Transport) -> None:
    requests: list[str | None] = []

    class Target(Service):
        name = unique("target")

        async def handle(self) -> None:
            requests.append(self.request.reply_to)

    class Source(Service):
        name = unique("source")
        callback = None

        async def handle(self) -> None:
            self.invoke_async(Target)

    callback = collecting_callback(Seen(), Source.name + "-async-callback")

    async def test() -> None:
        async with running(transport, Source, Target, callback) as daemon:
            await daemon.publish(Source.name, Message())
            await until(lambda: requests)
            assert requests == [None]

    run(test())


def test_a_class_attribute_names_the_callback_in_another_process(transport: Transport) -> None:
    seen = Seen()
    target = echo("target")
    elsewhere = collecting_callback(seen)

    class Source(Service):
        name = unique("source")
        callback = elsewhere.name

        async def handle(self) -> None:
            self.invoke_async(target, "hello")

    async def test() -> None:
        async with running(transport, elsewhere) as other:
            queue = {"queue": other.callback_queue}
            async with running(transport, Source, target, callbacks=queue) as daemon:
                await daemon.publish(Source.name, Message())
                assert [(kind, text) for kind, _, text in await seen.wait()] == [("ok", "hello")]

    run(test())


def test_two_daemons_share_the_work_and_any_of_them_forwards_replies(transport: Transport) -> None:
    seen = Seen()
    target, callback = echo("target"), collecting_callback(seen)

    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            for number in range(20):
                self.invoke_async(target, str(number), callback=callback.name)

    async def test() -> None:
        async with running(transport, callback) as second:
            queue = {"queue": second.callback_queue}
            async with running(transport, Source, target, callbacks=queue) as first:
                await first.publish(Source.name, Message())
                events = await seen.wait(20)
                assert sorted(int(text) for _, _, text in events) == list(range(20))

    run(test())


def test_a_failure_reaches_handle_error_and_a_dead_letter_keeps_the_request(transport: Transport) -> None:
    seen = Seen()
    target, callback = named(unique("failing"), Failing), collecting_callback(seen)

    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            self.invoke_async(target, {"order": 7}, callback=callback, headers={"tenant": "a"})

    async def test() -> None:
        async with running(transport, Source, target, callback) as daemon:
            await daemon.publish(Source.name, Message())
            ((kind, cid, error),) = await seen.wait()
            assert kind == "error"
            assert (error.reason, error.title, error.detail) == ("error", "KeyError", "'no such thing'")
            assert (error.service, error.attempts) == (target.name, 1)
            dead = await daemon.dead_letter(cid)
            assert json.loads(dead.body) == {"order": 7}
            assert dead.reply_to == daemon.callback_queue
            assert dead.headers["tenant"] == "a"
            assert dead.headers["callback"] == callback.name
            assert dead.headers["dead-reason"] == "error"
            assert dead.headers["dead-service"] == target.name
            assert dead.headers["dead-attempts"] == 1
            assert dead.headers["dead-at"].endswith("Z")
            problem = json.loads(dead.headers["dead-error"])
            assert problem["title"] == "KeyError"
            assert "in handle" in problem["traceback"]

    run(test())


@pytest.mark.parametrize("queue", ["callback queue", "own queue"])
@pytest.mark.parametrize(("allowed", "heard"), [(["good.*"], True), (["good"], False), ([], False)])
def test_a_callback_may_say_whose_replies_it_takes(
    transport: Transport, queue: str, allowed: list[str], heard: bool
) -> None:
    seen: list[str] = []

    class Careful(Service):
        name = unique("careful")
        callback_from = allowed

        async def handle(self) -> None:
            seen.append(self.cid)

        async def handle_error(self, error: Any) -> None:
            seen.append(self.cid)

    async def test() -> None:
        async with running(transport, Careful) as daemon:
            to = Careful.name if queue == "own queue" else daemon.callback_queue
            for status in ("ok", "error"):
                headers = {"callback": Careful.name, "service": "good.one", "status": status}
                await daemon.publish(to, Message(b"{}", headers, correlation_id=f"{Careful.name} {status}"))
                if not heard:
                    dead = await daemon.dead_letter(f"{Careful.name} {status}")
                    assert dead.headers["dead-reason"] == "rejected"
            if heard:
                await until(lambda: len(seen) == 2)
            await daemon.publish(Careful.name, Message(b"a request", correlation_id="request"))
            await until(lambda: "request" in seen)
            assert len(seen) == (3 if heard else 1)

    run(test())


def test_a_callback_without_handle_error_logs_the_failure(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    class Plain(Service):
        name = unique("plain")

        async def handle(self) -> None:
            raise AssertionError("a failure is not a response")

    target = named(unique("failing"), Failing)

    async def test() -> None:
        async with running(transport, Plain, target) as daemon:
            message = Message(correlation_id="c1", reply_to=daemon.callback_queue, headers={"callback": Plain.name})
            await daemon.publish(target.name, message)
            text = f"{target.name} failed and {Plain.name} has no handle_error: KeyError: 'no such thing'"
            await until(lambda: text in caplog.messages)
            assert (await daemon.dead_letter("c1")).headers["dead-service"] == target.name

    run(test())


def test_a_slow_callback_holds_up_no_other(transport: Transport) -> None:
    release = asyncio.Event()
    seen = Seen()

    class Slow(Service):
        name = unique("slow")
        concurrency = 1

        async def handle(self) -> None:
            await release.wait()
            seen.add("slow")

    quick = collecting_callback(seen)

    async def test() -> None:
        async with running(transport, Slow, quick) as daemon:
            for number in range(300):
                await daemon.publish(
                    daemon.callback_queue, Message(correlation_id=f"s{number}", headers={"callback": Slow.name})
                )
            await daemon.publish(
                daemon.callback_queue, Message(b"hi", correlation_id="q", headers={"callback": quick.name})
            )
            assert await seen.wait() == [("ok", "q", "hi")]
            release.set()
            assert (await seen.wait(301)).count("slow") == 300

    run(test())


def test_a_callback_that_nobody_hosts_makes_a_dead_letter_of_the_reply(transport: Transport) -> None:
    service = named("demo.callback-" + unique("x"), Echo)
    missing = service.name[:-1] + "Z"

    async def test() -> None:
        async with running(transport, service) as daemon:
            request = Message(b"x", correlation_id="c", reply_to=daemon.callback_queue, headers={"callback": missing})
            await daemon.publish(service.name, request)
            dead = await daemon.dead_letter("c")
            assert dead.headers["dead-reason"] == "no-callback"
            assert dead.headers["dead-service"] == missing
            detail = json.loads(dead.headers["dead-error"])["detail"]
            assert f"no daemon hosts the callback service '{missing}'" in detail
            assert f"did you mean '{service.name}'?" in detail
            # Neither does a reply that names nobody get lost.
            await daemon.publish(daemon.callback_queue, Message(b"y", correlation_id="d"))
            assert "names no callback" in (await daemon.dead_letter("d")).headers["dead-error"]
            # Nor one whose headers are nonsense.
            await daemon.publish(daemon.callback_queue, Message(b"y", correlation_id="e", headers={"callback": 5}))
            assert (await daemon.dead_letter("e")).headers["dead-reason"] == "invalid"

    run(test())
