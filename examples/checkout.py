"""A checkout of several steps that survives crashes, deploys and weeks of waiting."""

import asyncio
import itertools

from pydantic import BaseModel, PositiveInt

from broker import Reject, Service

numbers = itertools.count(4711)


class Order(BaseModel):
    item: str
    quantity: PositiveInt = 1


class Receipt(BaseModel):
    number: int
    total: float
    shelf: str
    approved_by: str


class Price(Service):
    async def handle(self, order: Order) -> float:
        return 2.5 * order.quantity


class Reserve(Service):
    async def handle(self, order: Order) -> str:
        if order.item == "boat":
            raise Reject("there are no boats")
        return "shelf 7"


class Release(Service):
    async def handle(self, order: Order) -> None:
        self.logger.info("%s goes back to its shelf", order.item)


class Credit(Service):
    async def handle(self, order: Order) -> bool:
        return order.quantity < 100


class Checkout(Service):  # its name is checkout.checkout
    durable = True  # survives crashes, deploys, and weeks of waiting

    async def handle(self, order: Order) -> Receipt:
        price = await self.call(Price, order)
        async with asyncio.TaskGroup() as both:  # fan-out, fan-in: plain asyncio
            shelf = both.create_task(self.call(Reserve, order))
            credit = both.create_task(self.call(Credit, order))
        await asyncio.sleep(1)  # 3 * 86_400 would cost as little: nothing is held while it waits
        self.logger.info("waits for approval, credit: %s", credit.result())
        try:
            async with asyncio.timeout(86_400):
                by = await self.wait_for("approved")  # a signal, from any AMQP client
        except TimeoutError:
            await self.call(Release, order)  # compensation
            raise
        number = await self.step(next, numbers)  # a function, run once, its result kept
        return Receipt(number=number, total=price, shelf=shelf.result(), approved_by=by)
