"""Messages through one queue by raw sockets: the client publishes COUNT to it, confirmed; the worker consumes and acknowledges them."""

from __future__ import annotations

import time

from bench.contenders.common import main, tell
from bench.contenders.raw_sockets import NO_CID, Socket, consume, declare, publish_all, request
from broker.transport import frames


def worker(url: str, count: int, queue: str) -> None:
    opened = Socket(url)
    declare(opened, queue)
    consume(opened, queue)
    tell(ready=time.time())
    tag = 0
    for found in opened.frames():
        tag += sum(kind == frames.FRAME_HEADER for kind, _, _ in found)
        if tag:
            opened.send(frames.ack(1, tag, multiple=True))
        if tag == count:
            tell(last=time.time())
            return


def client(url: str, count: int, queue: str) -> None:
    publish_all(url, count, frames.publish(1, queue, request(NO_CID), frames.DEFAULT_FRAME_MAX))


if __name__ == "__main__":
    main(worker, client)
