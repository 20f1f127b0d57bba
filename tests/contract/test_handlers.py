"""What ackback does around a handler: how many at once, for how long, what it may raise, what is never given to it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest
from pydantic import BaseModel

from broker import Service
from broker.protocol.message import Message
from broker.transport.interface import Transport
from tests.contract.services import echo
from tests.support import TIMEOUT, named, run, running, unique, until


class Order(BaseModel):
    item: str
    quantity: int = 1


class Quote(BaseModel):
    item: str
    total: float


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
