"""An RPC server that echoes nothing but the correlation ID: it doubles numbers."""

from __future__ import annotations

import os
from typing import Any

import pika

channel = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).channel()
channel.queue_declare("rpc_queue", durable=True, arguments={"x-queue-type": "quorum"})


def on_request(_: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
    channel.basic_publish(
        exchange="",
        routing_key=properties.reply_to,
        properties=pika.BasicProperties(correlation_id=properties.correlation_id),
        body=str(2 * int(body)),
    )
    channel.basic_ack(method.delivery_tag)


channel.basic_qos(prefetch_count=1)
channel.basic_consume("rpc_queue", on_request)
print("serving", flush=True)
channel.start_consuming()
