"""An order's way: placed, priced by another service, and the price, or the failure, received by a callback."""

from decimal import Decimal

from pydantic import BaseModel, PositiveInt

from broker import Reject, Service

PRICES = {"keyboard": Decimal("49.90"), "screen": Decimal("219.00")}


class Order(BaseModel):
    item: str
    quantity: PositiveInt = 1


class Quote(BaseModel):
    item: str
    total: Decimal


class Place(Service):
    """Takes an order and has it priced in the background."""

    async def handle(self, order: Order) -> str:
        return self.invoke_async(Price, order)


class PlaceAsyncCallback(Service):
    """Receives the price by convention: it is named after Place."""

    async def handle(self, quote: Quote) -> None:
        self.logger.info("%s costs %s", quote.item, quote.total)

    async def handle_error(self, error) -> None:
        self.logger.warning("No price (%s): %s", error.title, error.detail)


class Price(Service):
    """Prices an order; what is not in the list cannot be priced."""

    async def handle(self, order: Order) -> Quote:
        if order.item not in PRICES:
            raise Reject(f"there is no price for {order.item!r}")
        return Quote(item=order.item, total=PRICES[order.item] * order.quantity)
