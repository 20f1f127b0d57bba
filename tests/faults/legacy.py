"""An RPC server as they are everywhere: `python -m tests.faults.legacy URL`. It echoes nothing but the correlation ID.

It replies twice to every third, and hands back what it cannot reply to, as the queue for the reply is gone.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pika
from pika.exceptions import AMQPError, UnroutableError

from tests.faults.load import AGAIN_AFTER, LEGACY


def on_request(channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
    number = json.loads(body)["number"]
    reply = pika.BasicProperties(correlation_id=properties.correlation_id, delivery_mode=2)
    try:
        for _ in range(2 if number % 3 == 0 else 1):
            channel.basic_publish("", properties.reply_to, str(number), reply, mandatory=True)
    except UnroutableError:
        time.sleep(AGAIN_AFTER)
        channel.basic_nack(method.delivery_tag)
    else:
        channel.basic_ack(method.delivery_tag)


def main() -> None:
    while True:
        try:
            channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
            channel.confirm_delivery()
            channel.queue_declare(
                LEGACY, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
            )
            channel.basic_qos(prefetch_count=1)
            channel.basic_consume(LEGACY, on_request)
            channel.start_consuming()
        except (AMQPError, OSError):
            time.sleep(AGAIN_AFTER)


if __name__ == "__main__":
    main()
