"""What a service author and a foreign client can count on, on every transport."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from broker import AsyncClient, Reject, RemoteError, Reply, Service, UnroutableError
from broker.protocol.message import Message
from broker.transport.interface import Transport
from broker.transport.memory import MemoryBroker
from tests.support import TIMEOUT, named, run, running, unique, until


class Seen:
    """What handlers leave for the test to look at."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def add(self, event: Any) -> None:
        self.events.append(event)

    async def wait(self, count: int = 1) -> list[Any]:
        await until(lambda: len(self.events) >= count)
        return self.events


class Order(BaseModel):
    item: str
    quantity: int = 1


class Quote(BaseModel):
    item: str
    total: float


class Echo(Service):
    async def handle(self) -> Any:
        return self.request.payload


class ClassicEcho(Service):
    def handle(self) -> None:
        self.response.payload = self.request.payload


class Failing(Service):
    async def handle(self) -> None:
        raise KeyError("no such thing")


def echo(stem: str = "echo") -> type[Service]:
    return named(unique(stem), Echo)


def collecting_callback(seen: Seen, name: str | None = None) -> type[Service]:
    class Collecting(Service):
        async def handle(self) -> None:
            seen.add(("ok", self.cid, self.request.payload))

        async def handle_error(self, error: Any) -> None:
            seen.add(("error", self.cid, error))

    return named(name or unique("callback"), Collecting)


# The main job: invoke, target, callback.


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


# Inside a handler.


def test_what_a_handler_sees_of_its_request(transport: Transport) -> None:
    seen = Seen()

    class Target(Service):
        name = unique("target")

        async def handle(self) -> None:
            request = self.request
            seen.add((self.cid, request.payload, request.raw, request.text, request.content_type, request.source))
            seen.add(
                (
                    request.reply_to,
                    request.attempt,
                    request.redelivered,
                    request.headers["mine"],
                    request.headers["parent"],
                )
            )
            seen.add(request.expires_at is not None)

    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            seen.add(self.invoke_async(Target, [1, "ä"], headers={"mine": True}, expiration=60, priority=5))

    async def test() -> None:
        async with running(transport, Source, Target) as daemon:
            await daemon.publish(Source.name, Message(correlation_id="the parent"))
            cid, first, second, expires = await seen.wait(4)
            assert first == (cid, [1, "ä"], '[1,"ä"]'.encode(), '[1,"ä"]', "application/json", Source.name)
            assert second == (None, 1, False, True, "the parent")
            assert expires is True

    run(test())


def test_derived_cids_are_the_same_for_every_attempt(transport: Transport) -> None:
    seen = Seen()
    target = echo("target")

    class Source(Service):
        name = unique("source")

        def handle(self) -> None:
            seen.add([self.invoke_async(target, n) for n in range(3)])

    async def test() -> None:
        async with running(transport, Source, target) as daemon:
            for message_id in ("m1", "m1", "m2"):
                await daemon.publish(Source.name, Message(correlation_id="c", message_id=message_id))
            for body in (b"x", b"x", b"y"):
                await daemon.publish(Source.name, Message(body, correlation_id="c"))
            events = await seen.wait(6)
            tuples = [tuple(one) for one in events]
            assert all(len(set(one)) == 3 for one in tuples)
            assert len(set(tuples)) >= 3  # m1 twice is one
            assert sorted(tuples.count(one) for one in set(tuples))[-1] == 2

    run(test())


def test_invoke_waits_in_a_thread_and_call_waits_on_the_loop(transport: Transport) -> None:
    seen = Seen()
    target, failing = echo("target"), named(unique("failing"), Failing)

    class Sync(Service):
        name = unique("sync")

        def handle(self) -> None:
            seen.add(self.invoke(target, {"a": 1}))
            try:
                self.invoke(failing)
            except RemoteError as error:
                seen.add(error.problem.title)

    class Async(Service):
        name = unique("async")

        async def handle(self) -> None:
            seen.add(await self.call(target, "text"))
            try:
                await self.call(unique("nobody"))
            except UnroutableError as error:
                seen.add(type(error).__name__)
            try:
                self.invoke(target)
            except RuntimeError as error:
                seen.add(str(error))

    async def test() -> None:
        async with running(transport, Sync, Async, target, failing) as daemon:
            await daemon.publish(Sync.name, Message())
            assert await seen.wait(2) == [{"a": 1}, "KeyError"]
            await daemon.publish(Async.name, Message())
            events = await seen.wait(5)
            assert events[2:4] == ["text", "UnroutableError"]
            assert "await self.call" in events[4]

    run(test())


def test_a_call_that_gets_no_answer_in_time_raises_timeout_error(transport: Transport) -> None:
    release = asyncio.Event()

    class Slow(Service):
        name = unique("slow")

        async def handle(self) -> None:
            await release.wait()

    async def test() -> None:
        async with (
            running(transport, Slow) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            with pytest.raises(TimeoutError, match=f"no reply from '{Slow.name}' within 0.05 s"):
                await client.call(Slow, timeout=0.05)
            release.set()

    run(test())


@pytest.mark.parametrize("style", ["def", "async def"])
def test_an_unroutable_target_fails_the_attempt_and_names_the_target(transport: Transport, style: str) -> None:
    nobody = unique("nobody")

    class Async(Service):
        async def handle(self) -> None:
            self.invoke_async(nobody, "x")

    class Sync(Service):
        def handle(self) -> None:
            self.invoke_async(nobody, "x")

    source = named(unique("source"), Sync if style == "def" else Async)

    async def test() -> None:
        async with running(transport, source) as daemon:
            reply = await daemon.ask(source.name, Message(correlation_id="c"))
            problem = json.loads(reply.body)
            assert reply.headers["status"] == "error"
            assert problem["title"] == "UnroutableError"
            assert nobody in problem["detail"]
            assert "no daemon hosts" in problem["detail"]
            assert (await daemon.dead_letter("c")).headers["dead-reason"] == "error"

    run(test())


def test_the_default_sends_at_once_and_an_outbox_only_after_success(transport: Transport) -> None:
    seen = Seen()
    release = threading.Event()

    class Target(Service):
        name = unique("target")

        async def handle(self) -> None:
            seen.add(self.request.payload)
            if self.request.payload == "at once":
                release.set()

    class AtOnce(Service):
        name = unique("at-once")

        def handle(self) -> None:
            self.invoke_async(Target, "at once")
            assert release.wait(TIMEOUT)  # the target runs while the source goes on
            raise Reject("after sending")

    class Outbox(Service):
        name = unique("outbox")
        outbox = True

        async def handle(self, fail: bool) -> None:
            self.invoke_async(Target, f"from the outbox, fail={fail}")
            if fail:
                raise Reject("nothing may be sent")

    async def test() -> None:
        async with running(transport, Target, AtOnce, Outbox) as daemon:
            await daemon.ask(AtOnce.name, Message())
            await daemon.ask(Outbox.name, Message(b"true"))
            await daemon.ask(Outbox.name, Message(b"false"))
            assert await seen.wait(2) == ["at once", "from the outbox, fail=False"]

    run(test())


def test_a_response_may_carry_its_own_content_type_and_headers(transport: Transport) -> None:
    class Xml(Service):
        name = unique("xml")

        async def handle(self) -> Reply:
            return Reply("<a/>", content_type="application/xml", headers={"schema": "v2", "status": "mine"})

    async def test() -> None:
        async with running(transport, Xml) as daemon:
            reply = await daemon.ask(Xml.name, Message(correlation_id="c"))
            assert (reply.body, reply.content_type) == (b"<a/>", "application/xml")
            assert reply.headers["schema"] == "v2"
            assert reply.headers["status"] == "ok"  # the protocol's own headers win

    run(test())


def test_no_more_are_handled_at_once_than_concurrency_says(transport: Transport) -> None:
    now, most, handled = 0, 0, 0
    release = asyncio.Event()

    class Narrow(Service):
        name = unique("narrow")
        concurrency = 3

        async def handle(self) -> None:
            nonlocal now, most, handled
            now += 1
            most = max(most, now)
            await release.wait()
            now -= 1
            handled += 1

    async def test() -> None:
        async with running(transport, Narrow) as daemon:
            for number in range(40):
                # By its own queue and as a callback, which share the slots.
                await daemon.publish(Narrow.name, Message())
                await daemon.publish(
                    daemon.callback_queue, Message(correlation_id=str(number), headers={"callback": Narrow.name})
                )
            await until(lambda: now == 3)
            release.set()
            await until(lambda: handled == 80)
            assert most == 3

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


def test_a_handler_that_takes_too_long_fails(transport: Transport) -> None:
    release = threading.Event()
    late: list[str] = []

    class Async(Service):
        name = unique("async")
        timeout = 0.05

        async def handle(self) -> None:
            await asyncio.Event().wait()

    class Sync(Service):
        name = unique("sync")
        timeout = 0.05

        def handle(self) -> None:
            release.wait(TIMEOUT)
            try:
                self.invoke_async(Async, "too late")
            except RuntimeError as error:
                late.append(str(error))

    async def test() -> None:
        async with running(transport, Async, Sync) as daemon:
            for service in (Async, Sync):
                reply = await daemon.ask(service.name, Message(correlation_id=service.name))
                problem = json.loads(reply.body)
                assert (problem["type"], problem["title"]) == ("urn:ackback:problem:timeout", "Timeout")
                assert (await daemon.dead_letter(service.name)).headers["dead-reason"] == "error"
            release.set()
            await until(lambda: late)
            assert "nothing was sent" in late[0]

    run(test())


def test_a_handler_may_raise_anything_and_the_daemon_lives_on(transport: Transport) -> None:
    class Wild(Service):
        name = unique("wild")

        async def handle(self, what: str) -> str:
            if what == "exit":
                raise SystemExit(3)
            if what == "cancel":
                raise asyncio.CancelledError
            if what == "timeout":
                raise TimeoutError("its own")
            return "fine"

    class WildThread(Service):
        name = unique("wild-thread")

        def handle(self, what: str) -> str:
            if what == "exit":
                raise SystemExit(3)
            if what == "cancel":
                raise asyncio.CancelledError
            if what == "timeout":
                raise StopIteration
            return "fine"

    async def test() -> None:
        async with running(transport, Wild, WildThread) as daemon:
            for service in (Wild, WildThread):
                for what in ("exit", "cancel", "timeout"):
                    reply = await daemon.ask(service.name, Message(what.encode()))
                    assert reply.headers["status"] == "error", (service, what)
                assert (await daemon.ask(service.name, Message(b"x"))).body == b"fine"

    run(test())


def test_every_line_that_a_handler_logs_carries_its_cid(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    class Talking(Service):
        name = unique("talking")

        def handle(self) -> None:
            self.logger.warning("from the service")

    async def test() -> None:
        async with running(transport, Talking) as daemon:
            await daemon.ask(Talking.name, Message(correlation_id="c7", headers={"attempt": 3}))
            (record,) = [one for one in caplog.records if one.message == "from the service"]
            marks = vars(record)
            assert (record.name, marks["cid"], marks["service"], marks["attempt"]) == (
                Talking.name,
                "c7",
                Talking.name,
                3,
            )

    with caplog.at_level(logging.WARNING):
        run(test())


# Bad input, and what it gets.


class Price(Service):
    async def handle(self, order: Order) -> Quote:
        return Quote(item=order.item, total=2.5 * order.quantity)


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (Message(b'{"quantity": 1}', content_type="application/json"), "invalid", "item: Field required"),
        (Message(b'{"item": "x", "quantity": "secret"}'), "invalid", "quantity: Input should be a valid integer"),
        (Message(b"{broken", content_type="application/json"), "invalid", "Invalid JSON"),
        (Message(b"\xff\xfe", content_type="text/plain"), "invalid", "not text in utf-8"),
        (Message(b"{}", content_encoding="gzip"), "invalid", "'gzip' is not supported"),
        (Message(b'{"item": "x"}', headers={"callback": 42}), "invalid", "header 'callback'"),
        (Message(b'{"item": "x"}', headers={"callback": ["ok", 1.5]}), "invalid", "header 'callback'"),
        (Message(b'{"item": "x"}', headers={"callback": ["a"] * 65}), "invalid", "65 names; 64 are allowed"),
        (Message(b'{"item": "x"}', headers={"source": b"\xff"}), "invalid", "header 'source'"),
        (Message(b'{"item": "x"}', headers={"attempt": "two"}), "invalid", "header 'attempt'"),
        (Message(b'{"item": "x"}', headers={"traceparent": 1}), "invalid", "header 'traceparent'"),
        (Message(b'{"item": "' + b"x" * 2000 + b'"}'), "too-large", "2012 bytes; at most 1000"),
    ],
)
def test_what_cannot_be_handled_is_a_dead_letter_and_an_error_reply_at_once(
    transport: Transport, message: Message, reason: str, words: str
) -> None:
    service = named(unique("price"), Price)
    body = message.body

    async def test() -> None:
        async with running(transport, service, worker={"max_body": 1000}) as daemon:
            message.correlation_id = unique("cid")
            reply = await daemon.ask(service.name, message)
            problem = json.loads(reply.body)
            assert reply.content_type == "application/problem+json"
            assert reply.headers["status"] == "error"
            assert problem["type"] == f"urn:ackback:problem:{reason}"
            assert words in problem["detail"]
            assert "secret" not in reply.body.decode()
            dead = await daemon.dead_letter(message.correlation_id)
            assert dead.headers["dead-reason"] == reason
            assert dead.body == body

    run(test())


def test_an_untyped_handler_that_looks_at_a_broken_body_ends_as_invalid(transport: Transport) -> None:
    service = echo()

    async def test() -> None:
        async with running(transport, service) as daemon:
            reply = await daemon.ask(service.name, Message(b"{", content_type="application/json", correlation_id="c"))
            assert json.loads(reply.body)["type"] == "urn:ackback:problem:invalid"
            assert (await daemon.dead_letter("c")).headers["dead-reason"] == "invalid"

    run(test())


def test_a_response_or_payload_that_cannot_be_serialised_names_the_type_and_the_service(transport: Transport) -> None:
    class Thing:
        pass

    class Response(Service):
        name = unique("response")

        async def handle(self) -> Any:
            return {"a": Thing()}

    class Payload(Service):
        name = unique("payload")

        async def handle(self) -> None:
            self.invoke_async(Response, Thing())

    async def test() -> None:
        async with running(transport, Response, Payload) as daemon:
            detail = json.loads((await daemon.ask(Response.name, Message())).body)["detail"]
            assert f"the response of '{Response.name}' cannot be serialised" in detail
            assert "Thing" in detail
            detail = json.loads((await daemon.ask(Payload.name, Message())).body)["detail"]
            assert f"the payload for '{Response.name}' cannot be serialised: a " in detail
            assert "Thing" in detail

    run(test())


def test_a_reply_to_a_client_that_is_gone_is_dropped_with_a_word_in_the_log(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    service = echo()
    gone = unique("gone")

    async def test() -> None:
        async with running(transport, service) as daemon:
            await daemon.publish(service.name, Message(b"x", correlation_id="c", reply_to=gone))
            await until(
                lambda: f"the reply to '{gone}' is dropped: there is no such queue (any more)" in caplog.messages
            )
            # One that asks for a callback is kept.
            await daemon.publish(
                service.name, Message(b"y", correlation_id="d", reply_to=gone, headers={"callback": "x"})
            )
            dead = await daemon.dead_letter("d")
            assert (dead.headers["dead-reason"], dead.body) == ("unroutable", b"y")
            assert not [one for one in daemon.dead if one.correlation_id == "c"]

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


def test_foreign_headers_that_leave_no_room_for_a_dead_letters_own_are_left_out(transport: Transport) -> None:
    service = named(unique("failing"), Failing)
    # Nearly a whole frame of RabbitMQ's 128 KiB.
    headers = {"big": "x" * 130_500}

    async def test() -> None:
        async with running(transport, service) as daemon:
            await daemon.publish(service.name, Message(b"kept", correlation_id="c", headers=headers))
            dead = await daemon.dead_letter("c")
            assert (dead.body, dead.headers["dead-reason"]) == (b"kept", "error")
            assert ("big" in dead.headers) == isinstance(transport, MemoryBroker)

    run(test())


# The wire.


def test_a_reply_echoes_what_the_protocol_says_and_nothing_else(transport: Transport) -> None:
    service = echo()
    headers = {
        "callback": ["a", "b"],
        "source": "me",
        "parent": "p",
        "traceparent": "00-1-2-01",
        "tracestate": "k=v",
        "mine": "not echoed",
    }

    async def test() -> None:
        async with running(transport, service) as daemon:
            reply = await daemon.ask(service.name, Message(b"[1]", correlation_id="c", headers=headers))
            del headers["mine"]
            assert reply.headers == {**headers, "service": service.name, "status": "ok"}
            assert (reply.body, reply.content_type) == (b"[1]", "application/json")
            assert (reply.correlation_id, reply.message_id, reply.reply_to) == ("c", "c/reply", None)

    run(test())


def test_a_request_with_nothing_but_a_body_gets_a_new_cid(transport: Transport) -> None:
    service = echo()

    async def test() -> None:
        async with running(transport, service) as daemon:
            reply = await daemon.ask(service.name, Message(b"plain"))
            assert reply.body == b"plain"
            assert reply.correlation_id is not None
            assert len(reply.correlation_id) == 32
            assert (await daemon.ask(service.name, Message())).body == b""

    run(test())


def test_the_longest_cid_and_the_longest_name_fit(transport: Transport) -> None:
    seen = Seen()
    service, callback = echo(), collecting_callback(seen, ("callback." + unique("x") + "." + "y" * 200)[:200])
    cid = "c" * 255

    async def test() -> None:
        async with running(transport, service, callback) as daemon:
            reply = await daemon.ask(service.name, Message(b"x", correlation_id=cid))
            assert reply.correlation_id == cid
            assert reply.message_id is not None
            assert reply.message_id.endswith("/reply")
            headers = {"callback": [callback.name, callback.name[:-1]]}  # two, so that it is forwarded
            await daemon.publish(daemon.callback_queue, Message(b"y", correlation_id=cid, headers=headers))
            assert await seen.wait() == [("ok", cid, "y")]
            assert (await daemon.dead_letter(cid)).headers["dead-reason"] == "no-callback"

    run(test())


def test_a_foreign_replier_need_only_echo(transport: Transport) -> None:
    """A reply without header `status` on the callback queue is a success; with `source` alone the convention finds it."""
    seen = Seen()
    source = unique("source")
    callback = collecting_callback(seen, source + "-async-callback")
    other = collecting_callback(seen)

    async def test() -> None:
        async with running(transport, callback, other) as daemon:
            queue = daemon.callback_queue
            await daemon.publish(queue, Message(b'{"a":1}', correlation_id="c", headers={"source": source}))
            assert await seen.wait() == [("ok", "c", '{"a":1}')]
            names = [callback.name, other.name]
            await daemon.publish(queue, Message(b"x", correlation_id="d", headers={"callback": names, "CC": ["z"]}))
            assert (await seen.wait(3))[1:] == [("ok", "d", "x")] * 2

    run(test())


def test_trace_context_is_passed_on(transport: Transport) -> None:
    seen = Seen()

    class Target(Service):
        name = unique("target")

        async def handle(self) -> None:
            seen.add((self.request.headers.get("traceparent"), self.request.headers.get("tracestate")))

    class Source(Service):
        name = unique("source")

        async def handle(self) -> None:
            self.invoke_async(Target)

    async def test() -> None:
        async with running(transport, Source, Target) as daemon:
            await daemon.publish(Source.name, Message(headers={"traceparent": "00-a-b-01", "tracestate": "x=y"}))
            assert await seen.wait() == [("00-a-b-01", "x=y")]

    run(test())


def test_an_expired_request_gets_an_error_reply_and_a_dead_letter(transport: Transport) -> None:
    release = asyncio.Event()

    class Busy(Service):
        name = unique("busy")
        concurrency = 1

        async def handle(self) -> None:
            await release.wait()

    async def test() -> None:
        async with running(transport, Busy) as daemon:
            await daemon.publish(Busy.name, Message())
            reply = await daemon.ask(
                Busy.name, Message(b"late", correlation_id="c", expiration=30, headers={"source": "me"})
            )
            assert json.loads(reply.body)["type"] == "urn:ackback:problem:expired"
            assert (reply.headers["service"], reply.headers["source"]) == (Busy.name, "me")
            dead = await daemon.dead_letter("c")
            assert (dead.headers["dead-reason"], dead.headers["dead-service"]) == ("expired", Busy.name)
            assert dead.headers["dead-original"] == {"expiration": "30"}
            assert dead.expiration is None
            release.set()

    run(test())
