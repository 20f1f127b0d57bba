"""Invocations with callback a second: one worker process, a client beside it, RabbitMQ on the same machine.

    make bench        # starts a RabbitMQ of its own (AMQP_URL: uses that one) and prints a table

A client publishes COUNT persistent, confirmed requests to a typed service; one process validates the body, runs the handler, publishes the
reply (mandatory, confirmed), acknowledges only then; the callback, in the same process, runs and is acknowledged. Quorum queues
throughout. The figure is COUNT / (first publish .. last callback). Rounds alternate between the contenders.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CONCURRENCY = 1000
WORK = Path(__file__).parent / "work"


class Count:
    """Counts callbacks; prints the time of the last one."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, set()

    def add(self, cid: str) -> None:
        self.seen.add(cid)
        if len(self.seen) == self.count:
            print(json.dumps({"last": time.time()}), flush=True)


def worker_ackback(url: str, count: int, style: str, transport: str) -> None:
    """An ackback daemon as `ackback run` makes it."""
    from pydantic import BaseModel

    from broker import Service, registry
    from broker.settings import Settings
    from broker.worker import serve

    counter = Count(count)

    class Order(BaseModel):
        item: str
        quantity: int

    class Quote(BaseModel):
        item: str
        total: float

    class AsyncPrice(Service):
        name = "bench.price"
        concurrency = CONCURRENCY

        async def handle(self, order: Order) -> Quote:
            return Quote(item=order.item, total=2.5 * order.quantity)

    class SyncPrice(Service):
        name = "bench.price"
        concurrency = CONCURRENCY

        def handle(self, order: Order) -> Quote:
            return Quote(item=order.item, total=2.5 * order.quantity)

    class Priced(Service):
        name = "bench.priced"
        concurrency = CONCURRENCY

        async def handle(self, quote: Quote) -> None:
            counter.add(self.cid)

    globals().update(Order=Order, Quote=Quote)  # the annotations are strings: they are resolved in the module
    settings = Settings.model_validate(
        {"broker": {"url": url, "transport": transport}, "callbacks": {"queue": "bench.callbacks"}}
    )
    services = registry.register([("", AsyncPrice if style == "async" else SyncPrice), ("", Priced)], settings)
    print(json.dumps({"ready": True}), flush=True)
    serve(settings, services)


def worker_by_hand(url: str, count: int) -> None:
    """What one writes with aio-pika to get the same: validation, confirmed mandatory reply, acknowledgement last."""
    import aio_pika
    from pydantic import BaseModel

    class Order(BaseModel):
        item: str
        quantity: int

    class Quote(BaseModel):
        item: str
        total: float

    counter = Count(count)

    async def main() -> None:
        publishing, consuming = await aio_pika.connect(url), await aio_pika.connect(url)
        replies = await publishing.channel(on_return_raises=True)
        channel = await consuming.channel()
        await channel.set_qos(CONCURRENCY)
        quorum = {"x-queue-type": "quorum"}
        price = await channel.declare_queue("bench.price", durable=True, arguments=quorum)
        callbacks = await channel.declare_queue("bench.callbacks", durable=True, arguments=quorum)

        async def on_request(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            order = Order.model_validate_json(message.body)
            quote = Quote(item=order.item, total=2.5 * order.quantity)
            reply = aio_pika.Message(
                quote.model_dump_json().encode(),
                content_type="application/json",
                correlation_id=message.correlation_id,
                message_id=f"{message.correlation_id}/reply",
                headers={"callback": message.headers["callback"]},
                delivery_mode=2,
            )
            await replies.default_exchange.publish(reply, message.reply_to or "", mandatory=True)
            await message.ack()

        async def on_reply(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            Quote.model_validate_json(message.body)
            counter.add(message.correlation_id or "")
            await message.ack()

        await price.consume(on_request)
        await callbacks.consume(on_reply)
        print(json.dumps({"ready": True}), flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


async def publish(url: str, count: int) -> float:
    """Publish COUNT requests with `AsyncClient.invoke_many`; return when the first left."""
    from broker import AsyncClient
    from broker.settings import Settings

    settings = Settings.model_validate({"broker": {"url": url}, "callbacks": {"queue": "bench.callbacks"}})
    async with AsyncClient(settings=settings) as client:
        started = time.time()
        payloads = ({"item": "screen", "quantity": 2} for _ in range(count))
        await client.invoke_many("bench.price", payloads, callback="bench.priced")
    return started


CONTENDERS = {
    "ackback, async def": ["ackback", "async", "lane"],
    "ackback, def": ["ackback", "sync", "lane"],
    "ackback on aio-pika": ["ackback", "async", "aio-pika"],
    "aio-pika by hand": ["hand"],
    "raw sockets (ceiling)": ["raw"],
}


def delete_queues(url: str) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for queue in ("bench.price", "bench.priced", "bench.callbacks"):
            channel.queue_delete(queue)


def measure(url: str, contender: list[str], count: int) -> float:
    """One run of one contender: a fresh worker process, its queues made anew."""
    delete_queues(url)
    if contender == ["raw"]:
        return measure_ceiling(url, count)
    command = [sys.executable, __file__, "--worker", *contender, "--url", url, "--count", str(count)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert worker.stdout is not None
        assert "ready" in json.loads(worker.stdout.readline())
        wait_for_consumer(url)
        started = asyncio.run(publish(url, count))
        last = json.loads(worker.stdout.readline())["last"]
        return count / (last - started)
    finally:
        worker.terminate()
        worker.wait()
        worker.stdout.close()


def measure_ceiling(url: str, count: int) -> float:
    from bench import ceiling

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "-m", "bench.ceiling"]
    processes = []
    try:
        for role in ("serve", "receive"):
            arguments = [*command, role, url, str(count)]
            processes.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment))
            assert processes[-1].stdout is not None
            assert "ready" in json.loads(processes[-1].stdout.readline())
        started = ceiling.publish(url, count)
        return count / (json.loads(processes[1].stdout.readline())["last"] - started)  # type: ignore[union-attr]
    finally:
        for process in processes:
            process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()


def wait_for_consumer(url: str) -> None:
    import pika

    deadline = time.monotonic() + 30
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        while time.monotonic() < deadline:
            channel = connection.channel()
            try:
                counts = [
                    channel.queue_declare(queue, passive=True).method.consumer_count
                    for queue in ("bench.price", "bench.callbacks")
                ]
                if all(counts):
                    return
                channel.close()
            except pika.exceptions.ChannelClosedByBroker:
                pass
            time.sleep(0.05)
    raise RuntimeError("the worker did not start to consume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url")
    parser.add_argument("--worker", nargs="+")
    arguments = parser.parse_args()
    if arguments.worker:
        kind, *style = arguments.worker
        (worker_ackback if kind == "ackback" else worker_by_hand)(arguments.url, arguments.count, *style)
        return
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from tests.rabbitmq import rabbitmq

    with rabbitmq() as rabbit:
        print(
            f"RabbitMQ from {rabbit.origin}; {arguments.count} invocations a run, {arguments.rounds} alternating rounds\n"
        )
        results: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(arguments.rounds):
            for name, contender in CONTENDERS.items():
                results[name].append(measure(rabbit.url, contender, arguments.count))
        delete_queues(rabbit.url)
    base = statistics.median(results["aio-pika by hand"])
    print(f"{'':<22}{'median/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name, figures in results.items():
        median = statistics.median(figures)
        print(f"{name:<22}{median:>10.0f}{min(figures):>10.0f}{max(figures):>10.0f}{median / base:>8.2f}")


if __name__ == "__main__":
    main()
