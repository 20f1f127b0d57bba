"""What a foreign client or replier, in whatever language, can count on."""

from __future__ import annotations

import asyncio
import json

import pytest

from broker import Service
from broker.protocol.message import Message
from broker.transport.interface import Transport
from broker.transport.memory import MemoryBroker
from tests.contract.services import Failing, Seen, collecting_callback, echo
from tests.support import named, run, running, unique, until


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


def test_a_value_of_an_amqp_1_0_client_is_the_payload_and_a_malformed_one_invalid(transport: Transport) -> None:
    class Shows(Service):
        name = unique("shows")

        async def handle(self) -> str:
            return repr(self.request.payload)

    async def test() -> None:
        async with running(transport, Shows) as daemon:
            good = Message(b"\0\x53\x77\xa1\x03tea", type="amqp-1.0", correlation_id="good")
            assert (await daemon.ask(Shows.name, good)).body == b"'tea'"
            bad = Message(b"\0\x53\x77\xa1\x09tea", type="amqp-1.0", correlation_id="bad")
            reply = await daemon.ask(Shows.name, bad)
            assert b"the body is no AMQP 1.0 value: it ends too early" in reply.body
            dead = await daemon.dead_letter("bad")
            assert dead.headers["dead-reason"] == "invalid"
            assert dead.type == "amqp-1.0"

    run(test())
