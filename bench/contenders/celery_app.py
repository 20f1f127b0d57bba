"""Celery with quorum queues, late acknowledgement and publisher confirms; the callback is the task's `link`.

https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html#using-quorum-queues
"""

from __future__ import annotations

import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from celery.platforms import SecurityWarning
from kombu import Queue

from bench.contenders.common import CALLBACKS, PREFETCH, PRICE, Count, Order, Quote, main, order, quote, tell

warnings.simplefilter("ignore", SecurityWarning)  # that root runs it here does not matter

THREADS = 4
QUORUM = {"x-queue-type": "quorum"}


def app(url: str, counter: Count) -> tuple[Celery, Any, Any]:
    celery = Celery("bench", broker=url)
    if "BENCH_CELERY_DEFAULTS" in os.environ:
        return celery, *tasks(celery, counter)
    celery.conf.update(
        task_queues=[Queue(name, routing_key=name, queue_arguments=QUORUM) for name in (PRICE, CALLBACKS)],
        task_default_queue=PRICE,
        task_default_queue_type="quorum",
        task_default_exchange="bench",
        task_routes={"price": {"queue": PRICE}, "priced": {"queue": CALLBACKS}},
        broker_transport_options={"confirm_publish": True},
        broker_pool_limit=THREADS,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_redirect_stdouts=False,
    )

    return celery, *tasks(celery, counter)


def tasks(celery: Celery, counter: Count) -> tuple[Any, Any]:
    @celery.task(name="price")
    def price(body: dict[str, Any]) -> dict[str, Any]:
        return quote(Order.model_validate(body)).model_dump()

    @celery.task(name="priced")
    def priced(body: dict[str, Any]) -> None:
        counter.add(Quote.model_validate(body).number)

    return price, priced


def worker(url: str, count: int) -> None:
    celery, _, _ = app(url, Count(count))
    if "BENCH_CELERY_DEFAULTS" in os.environ:
        celery.worker_main(["worker", "--loglevel=ERROR"])
    celery.worker_main(
        ["worker", "--pool=solo", "--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    )


def client(url: str, count: int) -> None:
    _, price, priced = app(url, Count(count))
    link = priced.s()
    tell(started=time.time())
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda number: price.apply_async((order(number),), link=link), range(count)):
            pass
    tell(ended=time.time())


if __name__ == "__main__":
    main(worker, client)
