"""A client that invokes numbered jobs until each is confirmed: `python -m tests.faults.load KIND URL FIRST COUNT RATE PLAN`.

KIND is client, async or pika. PLAN says what every so many-th does: `raise:10,kill:100`, or `-`. It notes a number as accepted when it has been told so.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.ledger import ACCEPTED, Ledger, cid_of

AGAIN_AFTER = 0.2
NAMES = ("faults.work", "faults.work-in-thread")
CALLBACK = "faults.told"
NOBODY = "faults.nobody"
LEGACY = "faults.legacy"
"""Served by `tests.faults.legacy`, which echoes nothing but the correlation ID."""
TARGETS = {"once": "faults.once", "legacy": LEGACY, "unheard": LEGACY}


def plan(text: str) -> Callable[[int], dict[str, object]]:
    """What job each number is."""
    parts = [] if text == "-" else [part.split(":") for part in text.split(",")]

    def job(number: int) -> dict[str, object]:
        for what, every in parts:
            if number % int(every) == int(every) - 1:
                return {"number": number, "do": what}
        return {"number": number}

    return job


def target(number: int, job: Callable[[int], dict[str, object]]) -> str:
    return TARGETS.get(str(job(number).get("do")), NAMES[number % 2])


def invocation(number: int, job: Callable[[int], dict[str, object]]) -> dict[str, Any]:
    """How a number's target is invoked."""
    what = job(number).get("do")
    callback = NOBODY if what == "unheard" else CALLBACK
    return {"callback": callback, "cid": cid_of(number), "echo": target(number, job) != LEGACY}


def paced(first: int, count: int, rate: float) -> Iterator[int]:
    begun = time.monotonic()
    for number in range(first, first + count):
        wait = begun + (number - first) / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield number


def by_client(url: str, numbers: Iterator[int], job: Callable[[int], dict[str, object]], ledger: Ledger) -> None:
    from broker import AckbackError, Client

    with Client(url) as client:
        for number in numbers:
            while True:
                try:
                    client.invoke_async(target(number, job), job(number), **invocation(number, job))
                    break
                except AckbackError:
                    time.sleep(AGAIN_AFTER)
            ledger.note(ACCEPTED, number)


def by_async_client(url: str, numbers: Iterator[int], job: Callable[[int], dict[str, object]], ledger: Ledger) -> None:
    from broker import AckbackError, AsyncClient

    async def invoke(client: AsyncClient, number: int, slots: asyncio.Semaphore) -> None:
        while True:
            try:
                await client.invoke_async(target(number, job), job(number), **invocation(number, job))
                break
            except AckbackError:
                await asyncio.sleep(AGAIN_AFTER)
        ledger.note(ACCEPTED, number)
        slots.release()

    async def main() -> None:
        slots = asyncio.Semaphore(20)
        async with AsyncClient(url) as client, asyncio.TaskGroup() as group:
            for number in numbers:
                await slots.acquire()
                group.create_task(invoke(client, number, slots))

    asyncio.run(main())


def by_pika(url: str, numbers: Iterator[int], job: Callable[[int], dict[str, object]], ledger: Ledger) -> None:
    import pika
    from pika.exceptions import AMQPError

    channel = None
    for number in numbers:
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            correlation_id=cid_of(number),
            message_id=cid_of(number),
            reply_to="callbacks",
            headers={"callback": CALLBACK},
        )
        while True:
            try:
                if channel is None:
                    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
                    channel.confirm_delivery()
                body = json.dumps(job(number)).encode()
                channel.basic_publish("", target(number, job), body, properties, mandatory=True)
                break
            except (AMQPError, OSError):
                channel = None
                time.sleep(AGAIN_AFTER)
        ledger.note(ACCEPTED, number)


KINDS = {"client": by_client, "async": by_async_client, "pika": by_pika}


def main() -> None:
    from broker.errors import BrokerUnavailableError

    kind, url, first, count, rate, jobs = sys.argv[1:]
    numbers, ledger = paced(int(first), int(count), float(rate)), Ledger.of_environment()
    while True:
        try:
            KINDS[kind](url, numbers, plan(jobs), ledger)
            return
        except BrokerUnavailableError:  # when it first connects: later ones are met where they happen
            time.sleep(AGAIN_AFTER)


if __name__ == "__main__":
    main()
