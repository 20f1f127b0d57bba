"""What all contenders share: the work's types, counting callbacks, and the command line by which the benchmark runs them.

    python -m bench.contenders.NAME worker|client URL COUNT [OPTION…]

The worker consumes `bench.price` and `bench.callbacks` until it is stopped, and prints the time of the last of COUNT different callbacks.
The client publishes COUNT requests, numbered, and prints when it began and, once all are confirmed, when it ended.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

PRICE = "bench.price"
CALLBACKS = "bench.callbacks"
CALLBACK = "bench.priced"
# Messages in flight, for those who can say so: one figure for all.
PREFETCH = 1000


class Order(BaseModel):
    number: int
    item: str
    quantity: int


class Quote(BaseModel):
    number: int
    item: str
    total: float


def order(number: int) -> dict[str, object]:
    return {"number": number, "item": "screen", "quantity": 2}


# How long the work itself takes, where a test wants it to take time.
SECONDS = float(os.environ.get("BENCH_SECONDS", "0"))


def quote(order: Order) -> Quote:
    if SECONDS:
        time.sleep(SECONDS)
    return Quote(number=order.number, item=order.item, total=2.5 * order.quantity)


def tell(**what: float) -> None:
    print(json.dumps(what), flush=True)


def sized(number: int, size: int) -> bytes:
    """A body of `size` bytes that begins with its number."""
    return b"%010d" % number + bytes(size - 10)


class Count:
    """Counts the different orders whose callback was handled; tells when the last one was, and on demand the first.

    Several workers count together in the file that `BENCH_SEEN` names, a byte an order; who reads it finds out about the last.
    """

    def __init__(self, count: int, *, tell_first: bool = False) -> None:
        self._seen: bytearray | mmap.mmap = bytearray(count)
        if shared := os.environ.get("BENCH_SEEN"):
            with Path(shared).open("r+b") as file:
                self._seen = mmap.mmap(file.fileno(), count)
        self._missing = count
        self._tell_first = tell_first

    def add(self, number: int) -> None:
        if self._tell_first:
            self._tell_first = False
            tell(first=time.time())
        if number < len(self._seen) and not self._seen[number]:
            self._seen[number] = 1
            self._missing -= 1
            if not self._missing:
                tell(last=time.time())


def main(worker: Callable[..., None], client: Callable[..., None]) -> None:
    role, url, count, *options = sys.argv[1:]
    {"worker": worker, "client": client}[role](url, int(count), *options)
