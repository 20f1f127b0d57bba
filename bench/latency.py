"""How long a call takes, from request to response, one after the other: ackback beside aio-pika and pika by hand.

    python bench/latency.py

Each asks a server of its own kind over a quorum queue and gets the reply on an exclusive queue. By hand nothing is validated or
confirmed. Then once more for ackback while a client keeps the same daemon at about half of what it can do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aio_pika
import pika

from bench.common import delete_queues, process, rabbitmq_for_figures, wait_for_consumers
from bench.contenders.ackback_daemon import settings
from bench.contenders.common import CALLBACK, CALLBACKS, PRICE, order, quote
from bench.contenders.common import Order as OrderType

QUORUM = {"x-queue-type": "quorum"}
WARM_UP = 50


def serve_aio_pika(url: str) -> None:
    async def work() -> None:
        connection = await aio_pika.connect(url)
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(PRICE, durable=True, arguments=QUORUM)

        async def on_request(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            body = quote(OrderType.model_validate_json(message.body)).model_dump_json().encode()
            reply = aio_pika.Message(body, correlation_id=message.correlation_id)
            await channel.default_exchange.publish(reply, message.reply_to or "")
            await message.ack()

        await queue.consume(on_request)
        await asyncio.Event().wait()

    asyncio.run(work())


def serve_pika(url: str) -> None:
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.queue_declare(PRICE, durable=True, arguments=QUORUM)

    def on_request(channel: object, method: object, properties: object, body: bytes) -> None:
        answer = quote(OrderType.model_validate_json(body)).model_dump_json().encode()
        kept = pika.BasicProperties(correlation_id=properties.correlation_id)  # type: ignore[attr-defined]
        channel.basic_publish("", properties.reply_to, answer, kept)  # type: ignore[attr-defined]
        channel.basic_ack(method.delivery_tag)  # type: ignore[attr-defined]

    channel.basic_consume(PRICE, on_request)
    channel.start_consuming()


def body() -> bytes:
    return OrderType.model_validate(order(1)).model_dump_json().encode()


def call_aio_pika(url: str, count: int) -> list[float]:
    async def work() -> list[float]:
        connection = await aio_pika.connect(url)
        channel = await connection.channel(publisher_confirms=False)
        replies = await channel.declare_queue(exclusive=True)
        answer: asyncio.Future[bytes]

        async def on_reply(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            answer.set_result(message.body)

        await replies.consume(on_reply, no_ack=True)
        took = []
        for number in range(count):
            answer = asyncio.get_running_loop().create_future()
            began = time.perf_counter()
            message = aio_pika.Message(body(), correlation_id=str(number), reply_to=replies.name, delivery_mode=2)
            await channel.default_exchange.publish(message, PRICE)
            await answer
            took.append(time.perf_counter() - began)
        await connection.close()
        return took

    return asyncio.run(work())


def call_pika(url: str, count: int) -> list[float]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    replies = channel.queue_declare("", exclusive=True).method.queue
    answers: list[bytes] = []
    channel.basic_consume(replies, lambda _channel, _method, _properties, body: answers.append(body), auto_ack=True)
    took = []
    for number in range(count):
        began = time.perf_counter()
        properties = pika.BasicProperties(correlation_id=str(number), reply_to=replies, delivery_mode=2)
        channel.basic_publish("", PRICE, body(), properties)
        while not answers:
            connection.process_data_events(time_limit=None)
        answers.clear()
        took.append(time.perf_counter() - began)
    connection.close()
    return took


def call_ackback(url: str, count: int, load: int = 0) -> list[float]:
    """`load` is the number of invocations a second that are published beside the calls."""
    from broker import AsyncClient

    async def keep_busy(client: AsyncClient) -> None:
        number = 0
        while True:
            began = time.perf_counter()
            await client.invoke_many(PRICE, (order(number + n) for n in range(load // 50)), callback=CALLBACK)
            number += load // 50
            await asyncio.sleep(max(0.0, 0.02 - (time.perf_counter() - began)))

    async def work() -> list[float]:
        took = []
        async with (
            AsyncClient(settings=settings(url, "lane")) as client,
            AsyncClient(settings=settings(url, "lane")) as other,
        ):
            busy = asyncio.ensure_future(keep_busy(other)) if load else None
            for number in range(count):
                began = time.perf_counter()
                await client.call(PRICE, order(number))
                took.append(time.perf_counter() - began)
            if busy:
                busy.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await busy
        return took

    return asyncio.run(work())


SERVERS: dict[str, Callable[[str], None]] = {"aio-pika": serve_aio_pika, "pika": serve_pika}
CALLS: dict[str, Callable[[str, int], list[float]]] = {
    "ackback": call_ackback,
    "aio-pika": call_aio_pika,
    "pika": call_pika,
}


def measure(url: str, kind: str, count: int, load: int = 0) -> list[float]:
    delete_queues(url, PRICE, CALLBACK, CALLBACKS)
    daemon = ("-m", "bench.contenders.ackback_daemon", "worker", url, "0")
    command = daemon if kind == "ackback" else (__file__, "--serve", kind, "--url", url)
    with process(*command):
        wait_for_consumers(url, PRICE)
        if load:
            return call_ackback(url, count + WARM_UP, load)[WARM_UP:]
        return CALLS[kind](url, count + WARM_UP)[WARM_UP:]


def percentile(figures: list[float], share: float) -> float:
    """In milliseconds."""
    return sorted(figures)[int(len(figures) * share)] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--load", type=int, default=3000, help="invocations a second beside the calls, in the last line"
    )
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        SERVERS[arguments.serve](arguments.url)
        return
    rows: dict[str, list[list[float]]] = {kind: [] for kind in CALLS}
    loaded = f"ackback, {arguments.load} invocations/s beside"
    rows[loaded] = []
    with rabbitmq_for_figures() as (url, broker):
        for _ in range(arguments.rounds):
            for kind in CALLS:
                rows[kind].append(measure(url, kind, arguments.count))
            rows[loaded].append(measure(url, "ackback", arguments.count, arguments.load))
        delete_queues(url, PRICE, CALLBACK, CALLBACKS)
    print(f"{broker}; {arguments.rounds} alternating rounds of {arguments.count} calls; milliseconds\n")
    print("| | p50 | p99 |\n|---|---:|---:|")
    for kind, rounds in rows.items():
        p50, p99 = (statistics.median(percentile(one, share) for one in rounds) for share in (0.5, 0.99))
        print(f"| {kind} | {p50:.2f} | {p99:.2f} |")


if __name__ == "__main__":
    main()
