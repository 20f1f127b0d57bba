"""A stream of the broker inside the process: the newest messages, which any number of readers read without taking them off."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy

from broker.protocol.message import Message
from broker.transport.interface import Delivery, Offset

KEPT = 4096
"""Messages. What is older goes."""


class MemoryStream:
    def __init__(self) -> None:
        self.messages: deque[Message] = deque(maxlen=KEPT)
        self.next_offset = 0
        self.readers: list[StreamReader] = []

    @property
    def first_offset(self) -> int:
        return self.next_offset - len(self.messages)

    def append(self, message: Message) -> None:
        kept = copy(message)
        kept.headers = {**message.headers, "x-stream-offset": self.next_offset}
        self.messages.append(kept)
        self.next_offset += 1
        for reader in self.readers:
            reader.pump_soon()

    def start(self, offset: Offset | None) -> int:
        """The offset of the first message that a reader gets."""
        if isinstance(offset, int):
            return max(offset, self.first_offset)
        if offset == "last":
            return max(self.next_offset - 1, self.first_offset)
        return self.next_offset if offset in (None, "next") else self.first_offset


class StreamReader:
    """A consumer of a stream: at most `prefetch` messages are unacknowledged."""

    def __init__(
        self, stream: MemoryStream, offset: Offset | None, prefetch: int, on_delivery: Callable[[Delivery], None]
    ) -> None:
        self._stream = stream
        self._position = stream.start(offset)
        self._room = prefetch
        self._on_delivery = on_delivery
        self._loop = asyncio.get_running_loop()
        self._active = True
        stream.readers.append(self)
        self.pump_soon()

    def pump_soon(self) -> None:
        self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        stream = self._stream
        while self._active and self._room > 0 and self._position < stream.next_offset:
            self._position = max(self._position, stream.first_offset)
            message = stream.messages[self._position - stream.first_offset]
            self._position += 1
            self._room -= 1
            self._on_delivery(StreamDelivery(self, message))

    def settle(self) -> None:
        self._room += 1
        self.pump_soon()

    async def pause(self) -> None:
        self._active = False

    async def resume(self, prefetch: int) -> None:
        self._active, self._room = True, prefetch
        self.pump_soon()

    async def cancel(self) -> None:
        self.stop()

    def stop(self) -> None:
        self._active = False
        if self in self._stream.readers:
            self._stream.readers.remove(self)


class StreamDelivery:
    redelivered = False

    def __init__(self, reader: StreamReader, message: Message) -> None:
        self._reader = reader
        self.message = message
        self.live = True

    def ack(self) -> None:
        self._reader.settle()

    def requeue(self) -> None:
        self._reader.settle()
