"""A million events on the stream, written and looked through as `ackback trace` does: python bench/record.py."""

from __future__ import annotations

import argparse
import asyncio
import resource
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import machine, rabbitmq_for_figures
from broker.protocol.entities import Queue
from broker.protocol.events import EVENTS, HANDLED_ROW, SENT_ROW, Row, batch, event_stream
from broker.recording.reading import read
from broker.recording.recorder import BATCH
from broker.recording.trace import story
from broker.transport.factory import create

UNCONFIRMED = 8


def rows(count: int) -> Iterator[Row]:
    """Requests, their handlings, their callbacks."""
    for number in range(count // 3):
        cid, at = secrets.token_hex(16), 1_700_000_000_000_000 + 100 * number
        yield SENT_ROW, at, cid, "orders.price", ["orders.priced"]
        yield HANDLED_ROW, at + 500, cid, "orders.price", 120, None, None, None
        yield HANDLED_ROW, at + 900, cid, "orders.priced", 80, None, None, "ok"


async def measure(url: str, count: int) -> None:
    connection = await create([url]).connect()
    await connection.delete(Queue(EVENTS))
    await connection.declare(event_stream(3600, 2_000_000_000, 50_000_000))
    listed = list(rows(count))
    wanted = str(listed[len(listed) // 2][2])
    began, size, confirms = time.perf_counter(), 0, []
    for number, at in enumerate(range(0, len(listed), BATCH), start=1):
        publishing = batch(listed[at : at + BATCH], "bench", number)
        size += len(publishing.message.body)
        confirms.append(connection.publish(publishing))
        if len(confirms) >= UNCONFIRMED:
            await confirms.pop(0)
    await asyncio.gather(*confirms)
    print(f"{len(listed):,} events written in {time.perf_counter() - began:.2f} s, {size / len(listed):.0f} bytes each")
    del listed
    for cid in (wanted, "no-such-cid"):
        began = time.perf_counter()
        found = await story(read(connection), cid)
        steps = 0 if found.root is None else len(found.root.handlings)
        print(
            f"looked through for {cid}: {time.perf_counter() - began:.2f} s, {found.events:,} events, {steps} handlings found"
        )
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB resident, the writing included")
    await connection.delete(Queue(EVENTS))
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with rabbitmq_for_figures() as (url, broker):
        print(f"{broker}, {machine()}")
        asyncio.run(measure(url, arguments.count))


if __name__ == "__main__":
    main()
