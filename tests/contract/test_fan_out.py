"""A handler that makes very many invocations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import Service
from broker.handling import unconfirmed
from broker.protocol.message import Message
from broker.transport.interface import Transport
from tests.contract.services import Seen
from tests.support import run, running, unique, until

WINDOW = 500
MANY = WINDOW + 500


def target_of(seen: Seen) -> type[Service]:
    class Target(Service):
        name = unique("target")

        async def handle(self, number: int) -> None:
            seen.add((number, self.cid))

    return Target


@pytest.mark.parametrize("style", ["def", "async def", "async def, asynchronous iterable", "def, invoke_many"])
def test_all_are_sent_under_the_cids_that_were_returned_and_few_are_unconfirmed_at_once(
    transport: Transport, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    expect = unconfirmed.Unconfirmed.expect

    def counting(self: Any, publishing: Any) -> None:
        nonlocal most
        expect(self, publishing)
        most = max(most, self._expected - self._settled)

    monkeypatch.setattr(unconfirmed.Unconfirmed, "expect", counting)
    monkeypatch.setattr(unconfirmed, "WINDOW", WINDOW)

    async def test() -> None:
        seen, cids = Seen(), []
        target = target_of(seen)

        class ByDef(Service):
            name = unique("def")

            def handle(self) -> None:
                if style == "def":
                    cids.extend(self.invoke_async(target, number) for number in range(MANY))
                else:
                    cids.extend(self.invoke_many(target, range(MANY)))

        class ByAsync(Service):
            name = unique("async")

            async def handle(self) -> None:
                if style == "async def":
                    cids.extend(await self.invoke_many(target, range(MANY)))
                else:
                    cids.extend(await self.invoke_many(target, numbers()))

        async def numbers() -> AsyncIterator[int]:
            for number in range(MANY):
                yield number

        sender = ByAsync if style.startswith("async") else ByDef
        async with running(transport, target, sender) as daemon:
            await daemon.publish(sender.name, Message(b""))
            await until(lambda: len(seen.events) == MANY)
            assert dict(seen.events) == dict(enumerate(cids))
            assert most <= WINDOW + 1
            assert daemon.dead == []

    run(test())


def test_cids_are_the_same_at_every_attempt(transport: Transport) -> None:
    async def test() -> None:
        seen, attempts = Seen(), []
        target = target_of(seen)

        class Sender(Service):
            name = unique("sender")

            async def handle(self) -> None:
                cids = await self.invoke_many(target, [1, 2, 3])
                attempts.append([cids[0], *cids[1:]])
                if len(attempts) == 1:
                    raise OSError("once more")

        retrying = {Sender.name: {"retry": {"attempts": 2, "first": 1, "jitter": 0}}}
        async with running(transport, target, Sender, service=retrying) as daemon:
            await daemon.publish(Sender.name, Message(b"", message_id="m"))
            await until(lambda: len(attempts) == 2)
            assert attempts[0] == attempts[1]

    run(test())


@pytest.mark.parametrize("outbox", [False, True])
def test_where_it_cannot_wait_it_fails_and_names_what_does(transport: Transport, outbox: bool) -> None:
    body = b"x" * (4 * 1024 * 1024)
    errors: list[str] = []

    class ByAsync(Service):
        name = unique("async")

        async def handle(self) -> None:
            for _ in range(20):
                self.invoke_async(target, body)

    class ByDef(Service):
        name = unique("def")
        outbox = True

        def handle(self) -> None:
            self.invoke_many(target, [body] * 20)

    class Target(Service):
        name = unique("target")

        async def handle(self) -> None:
            await asyncio.sleep(0)

    target = Target
    sender = ByDef if outbox else ByAsync

    async def test() -> None:
        async with running(transport, Target, sender) as daemon:
            reply = await daemon.ask(sender.name, Message(b"", correlation_id=unique("cid")))
            errors.append(reply.body.decode())
            assert "await self.invoke_many" in errors[0]

    run(test())


def test_a_target_that_is_not_there_fails_the_attempt_however_many_follow(transport: Transport) -> None:
    class Sender(Service):
        name = unique("sender")

        async def handle(self) -> None:
            await self.invoke_many("nobody.at-all", range(unconfirmed.WINDOW + 500))

    async def test() -> None:
        async with running(transport, Sender) as daemon:
            reply = await daemon.ask(Sender.name, Message(b""))
            assert b"nothing is listening at 'nobody.at-all'" in reply.body

    run(test())
