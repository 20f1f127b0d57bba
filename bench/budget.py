"""What one invocation costs this process, part by part, in microseconds of one core with nothing else to do: `python bench/budget.py`.

No broker: deliveries are made up, confirms come at once. The least of several runs, as what disturbs only adds.
"""

from __future__ import annotations

import asyncio
import importlib
import struct
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pamqp.frame
from pamqp.commands import Basic
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker import Service
from broker.handling.arrivals import Arrivals
from broker.handling.intakes import Intake
from broker.handling.invoker import Invoker
from broker.hosting import registry
from broker.protocol import bodies, outcomes
from broker.protocol import headers as h
from broker.protocol.message import Message
from broker.recording.recorder import Recorder
from broker.settings import Settings
from broker.transport import frames
from broker.transport.stream import LaneProtocol

CID = "0" * 32
BATCH = 100


class Order(BaseModel):
    item: str
    quantity: int


class Quote(BaseModel):
    item: str
    total: float


class Price(Service):
    name = "bench.price"
    concurrency = BATCH

    async def handle(self, order: Order) -> Quote:
        return Quote(item=order.item, total=2.5 * order.quantity)


class Priced(Service):
    name = "bench.priced"
    concurrency = BATCH

    async def handle(self, quote: Quote) -> None:
        pass


class Confirmed:
    """A connection that writes the frames of what is published, and confirms in the next turn of the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reply: Message

    def publish(self, publishing: tuple[str, Message, str]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        if h.STATUS in publishing[1].headers:
            self.reply = publishing[1]
        frames.publish(1, publishing[0], publishing[1], frames.DEFAULT_FRAME_MAX)
        self._loop.call_soon(future.set_result, None)
        return future


class MadeUp:
    """A delivery of the lane's, without the lane."""

    redelivered = False
    live = True

    def __init__(self, header: bytes, body: bytes) -> None:
        self.message = frames.decode_properties(header, body)

    def ack(self) -> None:
        pass


def content_header(message: Message) -> bytes:
    flags, properties = frames.encode_properties(message)
    return struct.pack(">HHQH", frames.CLASS_BASIC, 0, len(message.body), flags) + properties


def show(name: str, microseconds: float) -> None:
    print(f"{name:<101}{microseconds:>7.1f}")


def timed(name: str, function: Callable[[], Any], number: int = 20_000) -> None:
    show(name, min(timeit.repeat(function, number=number, repeat=5)) / number * 1e6)


async def handled(arrivals: Arrivals, queue: str, message: Message) -> float:
    header, body = content_header(message), message.body
    take = arrivals.intakes[queue].take
    best = float("inf")
    for _ in range(30):
        started = time.perf_counter()
        for _ in range(BATCH):
            take(MadeUp(header, body))  # type: ignore[arg-type]
        while len(arrivals):
            await asyncio.sleep(0)
        best = min(best, time.perf_counter() - started)
    return best / BATCH * 1e6


def received(loop: asyncio.AbstractEventLoop, message: Message) -> float:
    """Splitting a delivery's three frames from the stream."""

    class Nothing:
        def on_method(self, method: int, payload: bytes) -> bool:
            return True

        def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
            frames.deliver_arguments(payload)

    protocol = LaneProtocol(asyncio.StreamReader(loop=loop), loop)
    protocol.attach(1, Nothing())
    deliver = Basic.Deliver(
        consumer_tag="c" * 32, delivery_tag=1, redelivered=False, exchange="", routing_key="bench.price"
    )
    published = frames.publish(1, "x", message, frames.DEFAULT_FRAME_MAX)
    method_end = 7 + struct.unpack_from(">I", published, 3)[0] + 1
    data = (pamqp.frame.marshal(deliver, 1) + published[method_end:]) * BATCH
    return min(timeit.repeat(lambda: protocol.data_received(data), number=1, repeat=50)) / BATCH * 1e6


async def never(_: Intake) -> None:
    """Windows stay as they are."""


def absent() -> None:
    """OpenTelemetry is not installed."""
    sys.modules["opentelemetry"] = None  # type: ignore[assignment]


def present() -> None:
    """OpenTelemetry is installed, and nobody has set a provider."""
    del sys.modules["opentelemetry"]
    importlib.import_module("opentelemetry.trace")


def provided() -> None:
    """Spans are made, and go nowhere."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())


async def main() -> None:
    settings = Settings.model_validate({"callbacks": {"queue": "bench.callbacks"}})
    services = registry.register([("", Price), ("", Priced)], settings)
    connection = Confirmed()
    recorder = Recorder()
    recorder.connection = connection  # type: ignore[assignment]
    headers = {h.CALLBACK: "bench.priced"}
    body = b'{"item": "screen", "quantity": 2}'
    request = Message(body, headers, "application/json", correlation_id=CID, message_id=CID, reply_to="bench.callbacks")
    header = content_header(request)
    price = services.get("bench.price")
    assert price is not None
    assert price.takes is not None
    takes, returns, quote = price.takes, price.returns, Quote(item="screen", total=5.0)
    show("a delivery's frames, split from the stream", received(asyncio.get_running_loop(), request))
    timed("its properties, decoded", lambda: frames.decode_properties(header, body))
    timed("the protocol's headers, read and checked", lambda: h.read(request))
    timed("the body, validated (pydantic alone is most of it)", lambda: bodies.validate(request, takes))
    timed("the response, serialised", lambda: bodies.encode(quote, returns))
    timed("the reply, made", lambda: outcomes.reply(request, "bench.price", body, "application/json"))
    timed("its frames", lambda: frames.publish(1, "bench.callbacks", request, frames.DEFAULT_FRAME_MAX))
    for variant, observer, opentelemetry in (
        (", recorded", recorder, absent),
        (", events off", None, absent),
        (", events off, OpenTelemetry without a provider", None, present),
        (", events off, spans", None, provided),
    ):
        opentelemetry()
        invoker = Invoker(services, "bench.callbacks", 1 << 24, frozenset(), observer)
        arrivals = Arrivals(invoker, None, never)
        invoker.connection = connection  # type: ignore[assignment]
        in_all = await handled(arrivals, "bench.price", request)
        show(f"a request in all: decode, handler, reply, confirm, ack{variant}", in_all)
        in_all = await handled(arrivals, "bench.callbacks", connection.reply)
        show(f"a callback in all: decode, handler, ack{variant}", in_all)


if __name__ == "__main__":
    asyncio.run(main())
