"""Retries and delays: the wait is in the broker, the attempts are counted, and whoever asked hears of the end once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker import Reject, Retry, RetryAfter, Service
from broker.client import AsyncClient
from broker.protocol.delays import level_name
from broker.protocol.message import Message
from broker.protocol.queues import DUE
from broker.transport.interface import Transport
from tests.support import delete_queues, named, run, running, unique, until

AT_ONCE = Retry(attempts=3, first=0.0, jitter=0.0)


def fails(times: int, error: Exception, **attributes: Any) -> Any:
    """A service that raises `error` so often and then answers; `seen` has each attempt."""
    seen: list[tuple[int, str, float]] = []

    class Fails(Service):
        async def handle(self) -> str:
            seen.append((self.request.attempt, self.cid, time.monotonic()))
            if len(seen) <= times:
                raise error
            return "at last"

    return type("Fails", (Fails,), {"name": unique("fails"), "seen": seen, **attributes})


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_failing_service_is_tried_again_and_its_callback_hears_of_the_success_alone(
    transport: Transport, kind: str
) -> None:
    attempts: list[int] = []
    heard: list[tuple[str, str]] = []

    class Flaky(Service):
        retry = AT_ONCE
        name = unique("flaky")

        def handle(self) -> str:
            attempts.append(self.request.attempt)
            if self.request.attempt < 3:
                raise OSError("not yet")
            return "done"

    class AsyncFlaky(Flaky):
        name = unique("flaky")

        async def handle(self) -> str:  # type: ignore[override]
            return Flaky.handle(self)

    service = Flaky if kind == "def" else AsyncFlaky

    class Heard(Service):
        name = unique("heard")

        async def handle(self) -> None:
            heard.append((self.cid, self.request.payload))

        async def handle_error(self, error: Any) -> None:
            heard.append((self.cid, error.title))

    async def test() -> None:
        async with (
            running(transport, service, Heard) as daemon,
            AsyncClient(transport=transport, settings=daemon.settings) as client,
        ):
            cid = await client.invoke_async(service, "x", callback=Heard)
            await until(lambda: heard)
            assert attempts == [1, 2, 3]
            assert heard == [(cid, "done")]
            assert daemon.dead == []

    run(test())


def test_the_last_attempts_failure_is_told_once_and_kept_with_the_number_of_attempts(transport: Transport) -> None:
    service = fails(9, ValueError("no good"), retry=AT_ONCE)

    async def test() -> None:
        async with running(transport, service) as daemon:
            sent = Message(b"x", {"mine": 1}, correlation_id=unique("cid"), message_id="m", content_type="text/plain")
            answer = await daemon.ask(service.name, sent)
            dead = await daemon.dead_letter(str(sent.correlation_id))
            assert (answer.headers["status"], dead.headers["dead-attempts"]) == ("error", 3)
            assert b'"attempts": 3' in answer.body
            assert (dead.body, dead.headers["mine"], dead.message_id) == (b"x", 1, "m")
            assert [attempt for attempt, _, _ in service.seen] == [1, 2, 3]
            assert len({cid for _, cid, _ in service.seen}) == 1

    run(test())


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (Reject("never"), AT_ONCE),
        (KeyError("x"), Retry(first=0, on=OSError)),
        (FileNotFoundError("x"), Retry(first=0, on=OSError, never=[FileNotFoundError])),
        (OSError("x"), None),
        (RetryAfter(0), Retry(attempts=1)),
    ],
    ids=["Reject", "not in on", "in never", "no retry", "no attempt left"],
)
def test_what_is_not_to_be_tried_again_ends_at_its_first_attempt(
    transport: Transport, error: Exception, retry: Retry | None
) -> None:
    service = fails(9, error, retry=retry)

    async def test() -> None:
        async with running(transport, service) as daemon:
            cid = unique("cid")
            await daemon.ask(service.name, Message(b"x", correlation_id=cid))
            assert (await daemon.dead_letter(cid)).headers["dead-attempts"] == 1
            assert len(service.seen) == 1

    run(test())


def test_the_wait_is_as_long_as_the_policy_or_the_handler_says(transport: Transport) -> None:
    by_policy = fails(2, OSError("x"), retry=Retry(first=1, factor=2, jitter=0))
    by_handler = fails(1, RetryAfter(1.2), retry=Retry(first=60))

    async def test() -> None:
        async with running(transport, by_policy, by_handler) as daemon:
            await asyncio.gather(daemon.ask(by_policy.name, Message(b"x")), daemon.ask(by_handler.name, Message(b"x")))
            (_, _, first), (_, _, second), (_, _, third) = by_policy.seen
            assert second - first >= 1
            assert third - second >= 2
            (_, _, first), (_, _, second) = by_handler.seen
            assert 2 <= second - first < 30

    run(test())


def test_a_callback_is_tried_again_by_its_own_policy(transport: Transport) -> None:
    callback = fails(2, OSError("x"), retry=AT_ONCE)

    class Answers(Service):
        name = unique("answers")

        async def handle(self) -> str:
            return "the answer"

    async def test() -> None:
        async with (
            running(transport, Answers, callback) as daemon,
            AsyncClient(transport=transport, settings=daemon.settings) as client,
        ):
            cid = await client.invoke_async(Answers, callback=callback)
            await until(lambda: len(callback.seen) == 3)
            assert [(attempt, one) for attempt, one, _ in callback.seen] == [(1, cid), (2, cid), (3, cid)]
            assert daemon.dead == []

    run(test())


def test_what_waits_for_its_next_attempt_survives_the_daemon(transport: Transport) -> None:
    service = fails(1, OSError("x"), retry=Retry(first=2, jitter=0))
    queue = unique("callbacks")

    async def test() -> None:
        async with running(transport, service, callbacks={"queue": queue}) as daemon:
            inbox = await daemon.inbox()
            reply_to, connection = inbox.queue, daemon.connection
            await daemon.publish(service.name, Message(b"x", correlation_id="c", reply_to=reply_to))
            await until(lambda: service.seen)
            daemon.daemon.stop()
            await daemon.serving
            async with running(transport, service, callbacks={"queue": queue}):
                assert (await inbox.next()).body == b"at last"
            assert [attempt for attempt, _, _ in service.seen] == [1, 2]
            assert not connection.lost.done()

    run(test())


def test_a_delayed_request_arrives_after_its_delay_and_is_otherwise_like_any_other(transport: Transport) -> None:
    seen: list[tuple[Any, ...]] = []

    class Later(Service):
        name = unique("later")

        async def handle(self) -> str:
            seen.append((time.monotonic(), self.cid, dict(self.request.headers), self.request.expires_at))
            return "later"

    class Heard(Service):
        name = unique("heard")

        async def handle(self) -> None:
            seen.append((time.monotonic(), self.cid, self.request.payload))

    async def test() -> None:
        async with (
            running(transport, Later, Heard) as daemon,
            AsyncClient(transport=transport, settings=daemon.settings) as client,
        ):
            begun = time.monotonic()
            cid = await client.invoke_async(
                Later, "x", callback=Heard, delay=2.1, expiration=0.9, headers={"mine": [1, None]}
            )
            assert time.monotonic() - begun < 2
            await until(lambda: len(seen) == 2)
            (at, of, headers, expires_at), (_, replied, payload) = seen
            assert (of, replied, payload) == (cid, cid, "later")
            assert headers == {"mine": [1, None], "callback": Heard.name}
            assert at - begun >= 3
            assert abs(expires_at.timestamp() - time.time()) < 10

    run(test())


def test_a_handler_delays_what_it_invokes_and_bulk_may_be_delayed(transport: Transport) -> None:
    seen: list[tuple[float, Any]] = []

    class Later(Service):
        name = unique("later")

        async def handle(self) -> None:
            seen.append((time.monotonic(), self.request.payload))

    class Source(Service):
        name = unique("source")

        def handle(self) -> None:
            self.invoke_async(Later, "delayed", delay=1)
            self.invoke_async(Later, "at once", delay=0)

    async def test() -> None:
        async with (
            running(transport, Source, Later) as daemon,
            AsyncClient(transport=transport, settings=daemon.settings) as client,
        ):
            begun = time.monotonic()
            await client.invoke_async(Source)
            await client.invoke_many(Later, range(20), delay=1)
            await until(lambda: len(seen) == 22)
            assert seen[0][1] == "at once"
            assert {payload for _, payload in seen} == {"at once", "delayed", *range(20)}
            assert min(at for at, payload in seen if payload != "at once") - begun >= 1

    run(test())


@pytest.mark.parametrize("delay", [-1, 366 * 86400 + 1, float("nan"), "5", True])
def test_a_delay_that_cannot_be_is_refused_at_once(transport: Transport, delay: Any) -> None:
    async def test() -> None:
        async with AsyncClient(transport=transport) as client:
            with pytest.raises(ValueError, match="delay is in seconds, from 0 to a year"):
                await client.invoke_async("anything", delay=delay)

    run(test())


def test_a_year_is_taken(transport: Transport) -> None:
    async def test() -> None:
        async with AsyncClient(transport=transport) as client:
            await client.invoke_async(unique("next-year"), delay=365 * 86400)
        await delete_queues(transport, [level_name(24)])

    run(test())


def test_a_delayed_request_whose_service_nobody_hosts_is_a_dead_letter_and_an_error_reply(transport: Transport) -> None:
    class Other(Service):
        name = unique("other")

        async def handle(self) -> None:
            pass

    async def test() -> None:
        async with (
            running(transport, Other) as daemon,
            AsyncClient(transport=transport, settings=daemon.settings) as client,
        ):
            nobody = unique("nobody")
            cid = await client.invoke_async(nobody, "x", delay=1)
            dead = await daemon.dead_letter(cid)
            assert (dead.headers["dead-reason"], dead.headers["dead-service"]) == ("unroutable", nobody)
            assert "delayed" not in dead.headers
            assert dead.body == b"x"

    run(test())


@pytest.mark.parametrize("missing", [level_name(0), DUE], ids=["a level", "due"])
def test_delay_queues_that_were_deleted_are_made_again(transport: Transport, missing: str) -> None:
    service = named(unique("later"), fails(0, OSError()))

    async def test() -> None:
        async with (
            running(transport, service) as daemon,
            AsyncClient(transport=transport, settings=daemon.settings) as client,
        ):
            await client.invoke_async(service, delay=1)
            await until(lambda: len(service.seen) == 1)
            begun = time.monotonic()
            if missing == DUE:
                await delete(transport, missing)
                await client.invoke_async(service, delay=1)
            else:
                await client.invoke_async(service, delay=3)  # waits 2 s before it comes to what is missing
                await delete(transport, missing)
            await until(lambda: len(service.seen) == 2)
            assert service.seen[1][2] - begun >= (1 if missing == DUE else 3)

    run(test())


async def delete(transport: Transport, name: str) -> None:
    from broker.transport.memory import MemoryBroker

    if isinstance(transport, MemoryBroker):
        transport.delete(name)
    else:
        await delete_queues(transport, [name])


def test_what_would_expire_before_its_next_attempt_expires_now(transport: Transport) -> None:
    service = fails(9, OSError("x"), retry=Retry(first=30))

    async def test() -> None:
        async with running(transport, service) as daemon:
            cid = unique("cid")
            answer = await daemon.ask(service.name, Message(b"x", correlation_id=cid, expiration=20_000))
            assert b"urn:ackback:problem:expired" in answer.body
            dead = await daemon.dead_letter(cid)
            assert (dead.headers["dead-reason"], dead.headers["dead-original"]) == ("expired", {"expiration": "20000"})

    run(test())


def test_the_configuration_sets_the_policys_numbers(transport: Transport) -> None:
    service = fails(9, OSError("x"), retry=Retry(first=0, on=OSError))
    never = fails(9, OSError("x"))

    async def test() -> None:
        configured = {service.name: {"retry": {"attempts": 2}}, never.name: {"retry": False}}
        async with running(transport, service, never, service=configured, defaults={"retry": {"first": 50}}) as daemon:
            for one, attempts in ((service, 2), (never, 1)):
                cid = unique("cid")
                await daemon.ask(one.name, Message(b"x", correlation_id=cid))
                assert (await daemon.dead_letter(cid)).headers["dead-attempts"] == attempts

    run(test())


@pytest.mark.parametrize(
    "note",
    ["text", {}, {"to": "x"}, {"to": "", "seconds": 1}, {"to": "x", "seconds": -1}, {"to": "x", "seconds": True}],
)
def test_nonsense_on_the_due_queue_is_a_dead_letter(transport: Transport, note: Any) -> None:
    service = fails(0, OSError())

    async def test() -> None:
        async with running(transport, service) as daemon:
            cid = unique("cid")
            await daemon.publish(DUE, Message(b"x", {"delayed": note}, correlation_id=cid))
            assert (await daemon.dead_letter(cid)).headers["dead-reason"] == "invalid"

    run(test())
