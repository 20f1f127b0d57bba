"""A bad network: a TCP proxy that cuts, delays, stutters, or lets nothing through, in a thread of its own."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress

from tests.proxy import Proxy


class BadNetwork(Proxy):
    """`url` is as good as the broker's until it is made worse."""

    def __init__(self, url: str, rng: random.Random) -> None:
        super().__init__(url)
        self._rng = rng
        self._latency = 0.0
        self._piece = 65536
        self._deaf: set[str] = set()
        self._cut_after: int | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self.start())

    def _call(self, coroutine) -> None:  # type: ignore[no-untyped-def]
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def cut_in_a_frame(self) -> None:
        """Cut all connections after a few bytes more."""
        self._cut_after = self._rng.randrange(1, 50)

    def slow(self, latency: float, piece: int = 65536) -> None:
        """Hold each piece of so many bytes for up to so many seconds."""
        self._latency, self._piece = latency, piece

    def swallow(self, *directions: str) -> None:
        """Keep the connections open and let nothing through, `up` or `down` or both."""
        self._deaf = set(directions)

    def mend(self) -> None:
        self._latency, self._piece, self._cut_after = 0.0, 65536, None
        self._deaf = set()

    def close(self) -> None:
        self.mend()
        self._call(self.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        peer = sink.transport.get_extra_info("peername")
        direction = "up" if peer and tuple(peer[:2]) == self._target else "down"
        swallowed = False
        with suppress(OSError):
            while data := await source.read(self._piece):
                swallowed = swallowed or direction in self._deaf
                if swallowed:
                    continue  # what follows a gap would be nonsense: this connection stays deaf
                if self._latency:
                    await asyncio.sleep(self._rng.uniform(0, self._latency))
                if self._cut_after is not None:
                    sink.write(data[: self._cut_after])
                    await sink.drain()
                    self._cut_after = None
                    self.cut()
                    break
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._open.discard(sink)
