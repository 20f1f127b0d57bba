"""Dramatiq with publisher confirms; the callback is the message's `on_success`. Quorum queues by a subclass, as it has no setting."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from bench.contenders.common import CALLBACKS, PREFETCH, PRICE, Count, Order, Quote, main, order, quote, tell

THREADS = 4
WORKER_THREADS = 8


class QuorumBroker(RabbitmqBroker):
    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


def app(url: str, counter: Count) -> Any:
    logging.disable(logging.WARNING)
    dramatiq.set_broker(QuorumBroker(url=url, confirm_delivery=True))

    @dramatiq.actor(queue_name=CALLBACKS)
    def priced(message: dict[str, Any], body: dict[str, Any]) -> None:
        counter.add(Quote.model_validate(body).number)

    @dramatiq.actor(queue_name=PRICE)
    def price(body: dict[str, Any]) -> dict[str, Any]:
        return quote(Order.model_validate(body)).model_dump()

    return price


def worker(url: str, count: int) -> None:
    os.environ["dramatiq_queue_prefetch"] = str(PREFETCH)  # noqa: SIM112
    app(url, Count(count))
    worker = dramatiq.Worker(dramatiq.get_broker(), worker_threads=WORKER_THREADS)
    worker.start()
    while True:
        time.sleep(60)


def client(url: str, count: int) -> None:
    price = app(url, Count(count))
    tell(started=time.time())
    with ThreadPoolExecutor(THREADS) as threads:
        send = price.send_with_options
        for _ in threads.map(lambda number: send(args=(order(number),), on_success="priced"), range(count)):
            pass
    tell(ended=time.time())


if __name__ == "__main__":
    main(worker, client)
