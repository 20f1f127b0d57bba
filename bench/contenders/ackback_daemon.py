"""ackback: a daemon as `ackback run` makes it, and its client. Options: a style, and the transport."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.contenders.common import (
    CALLBACK,
    CALLBACKS,
    PRICE,
    Count,
    Order,
    Quote,
    main,
    order,
    quote,
    sized,
    tell,
)
from broker import AsyncClient, Service
from broker.hosting import registry
from broker.process.worker import serve
from broker.settings import Settings

EVENTS_OFF = "events-off"


def settings(url: str, transport: str, *more: str) -> Settings:
    return Settings.model_validate(
        {
            "broker": {"url": url.split(","), "transport": transport},
            "callbacks": {"queue": CALLBACKS},
            "log": {"level": "info"},
            **({"events": {"enabled": False}} if EVENTS_OFF in more else {}),
        }
    )


class AsyncPrice(Service):
    name = PRICE

    async def handle(self, order: Order) -> Quote:
        return quote(order)


class Price(Service):
    name = PRICE

    def handle(self, order: Order) -> Quote:
        return quote(order)


class SizedPrice(Service):
    name = PRICE

    async def handle(self) -> int:
        return int(self.request.raw[:10])


class Target(Service):
    name = "bench.target"

    async def handle(self, order: Order) -> Quote:
        return quote(order)


class Source(Service):
    name = PRICE

    async def handle(self, order: Order) -> None:
        self.invoke_async(Target, order, callback=CALLBACK)


STYLES: dict[str, list[type[Service]]] = {
    "async": [AsyncPrice],
    "def": [Price],
    "chained": [Source, Target],
    "sized": [SizedPrice],
}


def worker(url: str, count: int, style: str = "async", transport: str = "lane", *more: str) -> None:
    counter = Count(count, tell_first="first" in more)

    class Priced(Service):
        name = CALLBACK

        async def handle(self, quote: Quote) -> None:
            counter.add(quote.number)

    class SizedPriced(Service):
        name = CALLBACK

        async def handle(self, number: int) -> None:
            counter.add(number)

    chosen = settings(url, transport, *more)
    classes = [*STYLES[style], SizedPriced if style == "sized" else Priced]
    serve(chosen, registry.register([("", cls) for cls in classes], chosen))


def client(url: str, count: int, style: str = "async", transport: str = "lane", *more: str) -> None:
    async def publish() -> None:
        async with AsyncClient(settings=settings(url, transport, *more)) as ackback:
            payloads: Any
            if style == "sized":
                payloads = (sized(number, int(more[0])) for number in range(count))
            else:
                payloads = (order(number) for number in range(count))
            callback = None if style == "chained" else CALLBACK
            tell(started=time.time())
            await ackback.invoke_many(PRICE, payloads, callback=callback)
            tell(ended=time.time())

    asyncio.run(publish())


if __name__ == "__main__":
    main(worker, client)
