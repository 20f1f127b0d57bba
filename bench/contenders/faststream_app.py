"""FastStream on RabbitMQ: quorum queues, the reply by its publisher decorator, acknowledged after that."""

from __future__ import annotations

import asyncio
import time

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from bench.contenders.common import CALLBACKS, PREFETCH, PRICE, Count, Order, Quote, main, order, quote, tell

IN_FLIGHT = 1000


def queue(name: str) -> RabbitQueue:
    return RabbitQueue(name, queue_type=QueueType.QUORUM, durable=True)


def worker(url: str, count: int) -> None:
    counter = Count(count)
    broker = RabbitBroker(url, default_channel=Channel(prefetch_count=PREFETCH), log_level=30)

    @broker.subscriber(queue(PRICE), ack_policy=AckPolicy.NACK_ON_ERROR)
    @broker.publisher(queue(CALLBACKS), persist=True, mandatory=True)
    async def price(body: Order) -> Quote:
        return quote(body)

    @broker.subscriber(queue(CALLBACKS), ack_policy=AckPolicy.NACK_ON_ERROR)
    async def priced(body: Quote) -> None:
        counter.add(body.number)

    asyncio.run(FastStream(broker, logger=None).run())


def client(url: str, count: int) -> None:
    async def publish() -> None:
        async with RabbitBroker(url, log_level=30) as broker:
            room = asyncio.Semaphore(IN_FLIGHT)

            async def one(number: int) -> None:
                try:
                    await broker.publish(order(number), PRICE, persist=True, mandatory=True)
                finally:
                    room.release()

            tell(started=time.time())
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    await room.acquire()
                    group.create_task(one(number))
            tell(ended=time.time())

    asyncio.run(publish())


if __name__ == "__main__":
    main(worker, client)
