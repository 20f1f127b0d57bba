"""A checkout of ten steps, and its targets. Each target notes what it was asked for, under which CID, in a file of its own process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from broker import RemoteError, Service

LEDGER = "LEDGER_OF_DURABLE_SERVICES"


def note(*words: object) -> None:
    with (Path(os.environ[LEDGER]) / str(os.getpid())).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class Target(Service):
    retry = None

    async def handle(self, value: Any) -> Any:
        note(self.name, value, self.cid)
        if self.name == "attack.charge" and value % 7 == 0:
            raise ValueError("no money")
        return f"{self.name} {value}"


class Price(Target):
    """Replies three times, two of them before its question is acknowledged."""

    name = "attack.price"

    async def handle(self, value: Any) -> Any:
        answer = await super().handle(value)
        for _ in range(2):
            self.invoke_async("attack.checkout", answer, cid=self.cid)
        return answer


class Reserve(Target):
    name = "attack.reserve"


class Release(Target):
    name = "attack.release"


class Charge(Target):
    name = "attack.charge"


class Ship(Target):
    name = "attack.ship"


class Page(Target):
    name = "attack.page"

    async def handle(self, value: Any) -> Any:
        return [f"{value}.{item}" for item in range(3)]


class Sink(Target):
    name = "attack.sink"


PAGES = 25


class Reader(Service):
    """Goes on without end, nearly: page after page, what is on each sent on."""

    name = "attack.reader"
    durable = True

    async def handle(self, where: list[int]) -> Any:
        reader, page = where
        for item in await self.call(Page, f"{reader}.{page}"):
            self.invoke_async(Sink, item)
        return ["read"] if page == PAGES else self.again([reader, page + 1])


def number_of(order: int) -> int:
    return 1000 + order


class Checkout(Service):
    name = "attack.checkout"
    durable = True

    async def handle(self, order: int) -> Any:
        price = await self.call(Price, order)
        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(self.call(Reserve, 10 * order + part)) for part in range(5)]
        try:
            charge = await self.call(Charge, order)
        except RemoteError as error:
            await asyncio.gather(*(self.call(Release, 10 * order + part) for part in range(5)))
            return [order, error.problem.detail]
        await asyncio.sleep(1)
        async with asyncio.timeout(3600):
            approval = await self.wait_for("approved")
        number = await self.step(number_of, order)
        ship = await self.call(Ship, order)
        return [order, price, [part.result() for part in parts], charge, approval, number, ship]


def expected(order: int) -> Any:
    if order % 7 == 0:
        return [order, "no money"]
    reserved = [f"attack.reserve {10 * order + part}" for part in range(5)]
    return [
        order,
        f"attack.price {order}",
        reserved,
        f"attack.charge {order}",
        f"by {order}",
        1000 + order,
        f"attack.ship {order}",
    ]
