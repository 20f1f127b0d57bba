"""Services that run once for each message, on every store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker import Service
from broker.errors import ConfigurationError
from broker.handling.idempotency import identity
from broker.protocol.message import Message
from broker.stores.factory import open_store
from broker.stores.interface import Claim, StoreError
from broker.transport.interface import Transport
from tests.support import Running, run, running, unique, until


def shared(store_url: str) -> dict[str, Any]:
    return {"store": {"url": store_url}}


def counting(body: Callable[[Service], Any] | None = None, **attributes: Any) -> Any:
    """An idempotent service that counts how often each CID is handled, and answers with a text of its own."""
    effects: Counter[str] = Counter()

    class Counting(Service):
        idempotent = True

        async def handle(self) -> Any:
            effects[self.cid] += 1
            await asyncio.sleep(0.05)
            if body is not None:
                return body(self)
            return f"done by {effects.total()}"

    return type("Counting", (Counting,), {"name": unique("counting"), "effects": effects, **attributes})


def test_a_claim_is_one_owners_until_it_is_kept_released_or_over(store_url: str) -> None:
    async def test() -> None:
        store = open_store(store_url)
        key, other = unique("key"), unique("key")
        assert await store.claim(key, "a" * 16, 60) is Claim.OURS
        assert await store.claim(key, "b" * 16, 60) is Claim.BUSY
        assert await store.claim(key, "a" * 16, 60) is Claim.OURS  # renewed
        assert await store.claim(other, "b" * 16, 60) is Claim.OURS
        assert not await store.keep(key, "b" * 16, "stolen", 60)
        await store.release(key, "b" * 16)
        assert await store.claim(key, "b" * 16, 60) is Claim.BUSY
        await store.release(key, "a" * 16)
        assert await store.claim(key, "b" * 16, 60) is Claim.OURS
        assert await store.keep(key, "b" * 16, '{"=": "ü"}', 60)
        assert await store.claim(key, "c" * 16, 60) == '{"=": "ü"}'
        await store.release(key, "b" * 16)  # too late: it is kept
        assert await store.claim(key, "c" * 16, 60) == '{"=": "ü"}'
        await store.close()

    run(test())


def test_a_claim_whose_owner_died_is_over_after_its_lease(store_url: str) -> None:
    async def test() -> None:
        store = open_store(store_url)
        key = unique("key")
        assert await store.claim(key, "a" * 16, 0.2) is Claim.OURS

        async def claimed() -> bool:
            return await store.claim(key, "b" * 16, 60) is Claim.OURS

        async with asyncio.timeout(10):
            while not await claimed():
                await asyncio.sleep(0.02)
        assert not await store.keep(key, "a" * 16, "too late", 60)
        assert await store.keep(key, "b" * 16, "kept", 0.1)
        async with asyncio.timeout(10):
            while await store.claim(key, "c" * 16, 60) is not Claim.OURS:
                await asyncio.sleep(0.02)
        await store.close()

    run(test())


def test_many_who_claim_at_once_are_one(store_url: str) -> None:
    async def test() -> None:
        stores = [open_store(store_url) for _ in range(1 if store_url == "memory" else 3)]
        for _ in range(20):
            key = unique("key")
            claims = await asyncio.gather(*(stores[n % len(stores)].claim(key, f"{n:016}", 60) for n in range(9)))
            assert claims.count(Claim.OURS) == 1
        for store in stores:
            await store.close()

    run(test())


async def repeats(daemon: Running, service: Any, cid: str, times: int) -> list[bytes]:
    inbox = await daemon.inbox()
    for _ in range(times):
        message = Message(b"x", {"callback": "a"}, correlation_id=cid, message_id=cid, reply_to=inbox.queue)
        await daemon.publish(service.name, message)
    answers = [await inbox.next() for _ in range(times)]
    assert {(one.correlation_id, one.headers["callback"], one.message_id) for one in answers} == {
        (cid, "a", f"{cid}/reply")
    }
    return [one.body for one in answers]


def test_repeats_are_answered_alike_and_handled_once(transport: Transport, store_url: str) -> None:
    service = counting()

    async def test() -> None:
        async with running(transport, service, **shared(store_url)) as daemon:
            first, second = unique("cid"), unique("cid")
            assert await repeats(daemon, service, first, 3) == [b"done by 1"] * 3
            assert await repeats(daemon, service, second, 1) == [b"done by 2"]
            assert await repeats(daemon, service, first, 1) == [b"done by 1"]
            assert service.effects == {first: 1, second: 1}

    run(test())


def test_two_daemons_that_share_a_store_handle_a_message_once(transport: Transport, tmp_path: Path) -> None:
    service = counting()
    store = shared(f"sqlite://{tmp_path}/outcomes.db")

    async def test() -> None:
        async with running(transport, service, **store) as daemon, running(transport, service, **store):
            cids = [unique("cid") for _ in range(5)]
            await asyncio.gather(*(repeats(daemon, service, cid, 4) for cid in cids))
            assert service.effects == dict.fromkeys(cids, 1)

    run(test())


def test_a_failure_is_not_kept(transport: Transport, store_url: str) -> None:
    def fail_first(service: Service) -> str:
        if service.effects[service.cid] == 1:  # type: ignore[attr-defined]
            raise ValueError("not yet")
        return "better"

    service = counting(fail_first)

    async def test() -> None:
        async with running(transport, service, **shared(store_url)) as daemon:
            cid = unique("cid")
            [failed] = await repeats(daemon, service, cid, 1)
            assert b"not yet" in failed
            assert await repeats(daemon, service, cid, 2) == [b"better"] * 2
            assert service.effects == {cid: 2}

    run(test())


def test_while_the_store_is_down_messages_wait(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    service = counting()

    async def test() -> None:
        async with running(transport, service, **shared("memory")) as daemon:
            once = daemon.daemon._arrivals._once
            assert once is not None
            store, once._store = once._store, Down()
            answering = asyncio.ensure_future(repeats(daemon, service, unique("cid"), 3))
            await until(lambda: "is down; messages of idempotent services wait" in caplog.text)
            once._store = store
            assert await answering == [b"done by 1"] * 3
            assert caplog.text.count("is down; messages of idempotent services wait") == 1

    run(test())


class Down:
    async def claim(self, key: str, owner: str, lease: float) -> Claim | str:
        raise StoreError("the store is down")

    async def keep(self, key: str, owner: str, outcome: str, seconds: float) -> bool:
        raise StoreError("the store is down")

    async def release(self, key: str, owner: str) -> None:
        raise StoreError("the store is down")

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "url", ["postgres", "mysql://x/", "postgresql://a b c", "redis://host:port/", "sqlite:///no/such/folder/file.db"]
)
def test_a_store_that_cannot_be_is_explained(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"store\.url"):
        open_store(url)


def test_a_reply_that_was_passed_on_is_the_same_reply() -> None:
    there = Message(b"x", {"status": "ok"}, message_id="c/reply")
    passed_on = Message(b"x", {"status": "ok"}, message_id="c/reply/orders.told")
    assert identity("orders.told", there) == identity("orders.told", passed_on)
    assert identity("orders.told", there) != identity("orders.other", there)
