"""What a service answers when more is asked of it than it can do: callers that wait 2 s, from half to four times its capacity.

    bench/overload.py [--seconds S] [--plot FILE]

Each row is one run. Offered are calls at an even pace, by a process of their own; a caller gives up after 2 s. With a deadline the
request expires with its caller's patience, as `call` has it; without, as it was before, a client of its own asks with no expiration.
Answered a second, and the milliseconds of those answered; the worker's memory; requests in the queue at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import common
from broker import AsyncClient
from broker.protocol.message import Message, Publishing
from broker.protocol.queues import reply_queue
from broker.transport.interface import Delivery
from broker.transport.lane import LaneTransport

PATIENCE = 2.0
LOADS = (0.5, 1.0, 2.0, 4.0)
SERVICES = """
import asyncio, time
from broker import Service

class Waits(Service):
    name = "overload.waits"
    concurrency = 20
    async def handle(self, number: int) -> int:
        await asyncio.sleep(0.05)
        return number

class Computes(Service):
    name = "overload.computes"
    concurrency = 1
    def handle(self, number: int) -> int:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        return number

class Quick(Service):
    name = "overload.quick"
    async def handle(self, number: int) -> int:
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass
        return number
"""
# Calls a second that each can answer. The quick one takes a millisecond: a quicker one outruns a client of one process.
CAPACITIES = {"overload.waits": 400, "overload.computes": 20, "overload.quick": 900}


class Callers:
    """Calls at an even pace, and how long the answered ones took."""

    def __init__(self, client: AsyncClient, url: str, service: str) -> None:
        self._client = client
        self._url = url
        self._service = service
        self._sent: dict[str, float] = {}
        self.took: list[float] = []
        self.counting = True

    async def with_deadline(self, number: int) -> None:
        began = time.monotonic()
        try:
            await self._client.call(self._service, number, timeout=PATIENCE)
        except TimeoutError:
            return
        if self.counting:
            self.took.append(time.monotonic() - began)

    async def open(self) -> None:
        self._connection = await LaneTransport([self._url]).connect()
        self._inbox = reply_queue()
        await self._connection.declare(self._inbox)
        await self._connection.consume(self._inbox.name, 5000, self._on_reply, lambda _: None)

    async def without(self, number: int) -> None:
        cid = str(number)
        self._sent[cid] = time.monotonic()
        message = Message(b"%d" % number, correlation_id=cid, message_id=cid, reply_to=self._inbox.name)
        await self._connection.publish(Publishing(self._service, message))

    def _on_reply(self, delivery: Delivery) -> None:
        took = time.monotonic() - self._sent.pop(delivery.message.correlation_id or "")
        if took <= PATIENCE and self.counting:
            self.took.append(took)
        delivery.ack()

    async def close(self) -> None:
        await self._connection.close()


async def offer(url: str, service: str, rate: float, seconds: float, *, deadline: bool) -> tuple[list[float], int]:
    """The seconds that answered calls took, and how many requests are in the queue at the end."""
    async with AsyncClient(url) as client:
        callers = Callers(client, url, service)
        await callers.open()
        call = callers.with_deadline if deadline else callers.without
        began, made = time.monotonic(), 0
        calls: set[asyncio.Task[None]] = set()
        while (passed := time.monotonic() - began) < seconds:
            while made < passed * rate:
                calls.add(task := asyncio.create_task(call(made)))
                task.add_done_callback(calls.discard)
                made += 1
            await asyncio.sleep(0.005)
        callers.counting = False  # what is answered when no more is offered says nothing of overload
        seen = await callers._connection.look_at(service)
        await asyncio.sleep(PATIENCE)
        if calls:
            await asyncio.wait(calls)
        await callers.close()
        return callers.took, seen.ready if seen else 0


def plot(answered: dict[tuple[str, bool], list[float]]) -> str:
    """The share of its capacity that each service answers, by what is offered; dashed without deadlines. An SVG."""
    width, height, left, right, top = 580, 310, 60, 40, 40
    colours = dict(zip(CAPACITIES, ("#1b7f5c", "#5b7aa6", "#b0632b"), strict=True))

    def at(load: float, share: float) -> str:
        x = left + (width - left - right) * LOADS.index(load) / (len(LOADS) - 1)
        return f"{x:.0f},{top + (height - top - 50) * (1 - min(share, 1.2) / 1.2):.0f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    title = "Calls answered in time, of what the service can do, by what is offered"
    parts.append(f'<text x="12" y="20" font-weight="bold">{title}</text>')
    for share in (0, 0.5, 1):
        x, y = at(LOADS[0], share).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{width - right}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{int(y) + 4}" text-anchor="end">{share:.0%}</text>')
    for load in LOADS:
        x = at(load, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{height - 32}" text-anchor="middle">{load:g} times</text>')
    for (service, deadline), shares in answered.items():
        points = " ".join(at(load, share) for load, share in zip(LOADS, shares, strict=True))
        dashes = "" if deadline else ' stroke-dasharray="5 4"'
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[service]}" stroke-width="2"{dashes}/>')
    for number, (service, colour) in enumerate(colours.items()):
        x = left + 110 * number
        parts.append(f'<rect x="{x}" y="{height - 18}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="{height - 9}">{service.partition(".")[2]}</text>')
    parts.append(f'<text x="{left + 340}" y="{height - 9}">dashed: no deadline</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--plot", type=Path, help="write a plot of it, as SVG, to this file")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    answered: dict[tuple[str, bool], list[float]] = {}
    with common.rabbitmq_for_figures() as (url, version), tempfile.TemporaryDirectory() as folder:
        services = Path(folder) / "overload.py"
        services.write_text(SERVICES)
        print(f"{version}; {seconds:g} s a run, callers wait {PATIENCE:g} s\n")
        print(
            "| service | offered, of capacity | deadline | answered/s | p50, ms | p99, ms | worker, MiB | in the queue |"
        )
        print("|---|---:|---|---:|---:|---:|---:|---:|")
        for service, capacity in CAPACITIES.items():
            for load in LOADS:
                for deadline in (True, False):
                    with common.process("-m", "broker", "run", str(services), ACKBACK_BROKER__URL=url) as daemon:
                        common.wait_for_consumers(url, service)
                        took, left = asyncio.run(offer(url, service, load * capacity, seconds, deadline=deadline))
                        memory = common.resident(daemon.pid, "VmHWM")
                    common.delete_queues(url, service)
                    took.sort()
                    answered.setdefault((service, deadline), []).append(len(took) / seconds / capacity)
                    p50, p99 = (1000 * took[int(part * (len(took) - 1))] if took else 0.0 for part in (0.5, 0.99))
                    print(
                        f"| {service.partition('.')[2]} | {load:g} | {'yes' if deadline else 'no'} | "
                        f"{len(took) / seconds:,.0f} | {p50:,.0f} | {p99:,.0f} | {memory:.0f} | {left:,} |",
                        flush=True,
                    )
    if arguments.plot:
        arguments.plot.write_text(plot(answered))


if __name__ == "__main__":
    main()
