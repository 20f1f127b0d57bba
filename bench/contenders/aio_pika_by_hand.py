"""What one writes with aio-pika to get the same: validation, a confirmed mandatory reply, the acknowledgement last."""

from __future__ import annotations

import asyncio
import time

import aio_pika

from bench.contenders.common import (
    CALLBACK,
    CALLBACKS,
    PREFETCH,
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

QUORUM = {"x-queue-type": "quorum"}
IN_FLIGHT = 1000
IN_FLIGHT_BYTES = 16 * 1024 * 1024


def priced(body: bytes) -> bytes:
    return quote(Order.model_validate_json(body)).model_dump_json().encode()


def ordered(number: int) -> bytes:
    return Order.model_validate(order(number)).model_dump_json().encode()


def worker(url: str, count: int, size: str = "") -> None:
    counter = Count(count)

    async def work() -> None:
        publishing, consuming = await aio_pika.connect(url), await aio_pika.connect(url)
        replies = await publishing.channel(on_return_raises=True)
        channel = await consuming.channel()
        await channel.set_qos(PREFETCH)
        price = await channel.declare_queue(PRICE, durable=True, arguments=QUORUM)
        callbacks = await channel.declare_queue(CALLBACKS, durable=True, arguments=QUORUM)

        async def on_request(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            answer = message.body[:10] if size else priced(message.body)
            reply = aio_pika.Message(
                answer,
                content_type="application/json",
                correlation_id=message.correlation_id,
                message_id=f"{message.correlation_id}/reply",
                headers={"callback": message.headers["callback"]},
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await replies.default_exchange.publish(reply, message.reply_to or "", mandatory=True)
            await message.ack()

        async def on_reply(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            counter.add(int(message.body) if size else Quote.model_validate_json(message.body).number)
            await message.ack()

        await price.consume(on_request)
        await callbacks.consume(on_reply)
        await asyncio.Event().wait()

    asyncio.run(work())


def client(url: str, count: int, size: str = "") -> None:
    async def publish() -> None:
        connection = await aio_pika.connect(url)
        channel = await connection.channel(on_return_raises=True)
        room = asyncio.Semaphore(IN_FLIGHT if not size else max(1, min(IN_FLIGHT, IN_FLIGHT_BYTES // int(size))))

        async def one(number: int) -> None:
            cid = f"{number:032x}"
            body = sized(number, int(size)) if size else ordered(number)
            message = aio_pika.Message(
                body,
                content_type="application/json",
                correlation_id=cid,
                message_id=cid,
                reply_to=CALLBACKS,
                headers={"callback": CALLBACK},
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            try:
                await channel.default_exchange.publish(message, PRICE, mandatory=True)
            finally:
                room.release()

        tell(started=time.time())
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await room.acquire()
                group.create_task(one(number))
        tell(ended=time.time())
        await connection.close()

    asyncio.run(publish())


if __name__ == "__main__":
    main(worker, client)
