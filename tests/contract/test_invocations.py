"""What a handler can do while it handles: look at its request, invoke, call, answer."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from broker import AsyncClient, Reject, RemoteError, Reply, Service, UnroutableError
from broker.protocol.message import Message
from broker.transport.interface import Transport
from tests.contract.services import Failing, Seen, echo
from tests.support import TIMEOUT, named, run, running, unique


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
