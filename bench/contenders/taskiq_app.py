"""Taskiq with taskiq-aio-pika: quorum queues (its default), acknowledged after the task, which itself kicks the callback."""

from __future__ import annotations

import asyncio
import time

from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Queue

from bench.contenders.common import CALLBACKS, PREFETCH, PRICE, Count, Order, Quote, main, order, quote, tell

IN_FLIGHT = 1000


def app(url: str, counter: Count) -> tuple[AioPikaBroker, object]:
    broker = AioPikaBroker(
        url,
        qos=PREFETCH,
        task_queues=[Queue(name=PRICE), Queue(name=CALLBACKS)],
        dead_letter_queue=Queue(name="bench.dead"),
    )

    @broker.task(queue_name=CALLBACKS)
    async def priced(body: Quote) -> None:
        counter.add(body.number)

    @broker.task(queue_name=PRICE)
    async def price(body: Order) -> None:
        await priced.kiq(quote(body))

    return broker, price


def worker(url: str, count: int) -> None:
    async def work() -> None:
        broker, _ = app(url, Count(count))
        broker.is_worker_process = True
        await run_receiver_task(
            broker, max_async_tasks=PREFETCH, run_startup=True, ack_time=AcknowledgeType.WHEN_EXECUTED
        )

    asyncio.run(work())


def client(url: str, count: int) -> None:
    async def publish() -> None:
        broker, price = app(url, Count(count))
        await broker.startup()
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int) -> None:
            try:
                await price.kiq(Order.model_validate(order(number)))  # type: ignore[attr-defined]
            finally:
                room.release()

        tell(started=time.time())
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await room.acquire()
                group.create_task(one(number))
        tell(ended=time.time())
        await broker.shutdown()

    asyncio.run(publish())


if __name__ == "__main__":
    main(worker, client)
