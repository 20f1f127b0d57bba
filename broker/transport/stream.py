"""Takes the frames that carry messages out of a connection's stream, and writes what the lanes send, once a loop turn.

    socket ─ data_received ─ frames ─┬─ Deliver, Return, Ack, Nack with their content, on a lane's channel ─→ Lane
                                     └─ every other frame ─→ StreamReader ─→ aiormq

A message is three frames or more (see `frames.py`), and any of them may end in the middle of what a socket gives at once. So
there are two ways: a message that is there in whole is taken at one go, which is what nearly all are; of any other, each
frame as it comes is put into a `_Content` until the last one is there.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Protocol

from broker.transport import frames

# aiormq gives a connection up on which it sees no frame for a while, and it sees none of the hot ones.
SHOW_HEARTBEAT_EVERY = 1.0

# Bytes after which a long loop turn does not wait for its end: RabbitMQ may as well begin.
FLUSH_AT = 65_536

_FRAME = struct.Struct(">BHI")
_LONG = struct.Struct(">I")
_BODY_SIZE = struct.Struct(">Q")
_HEADER = struct.Struct(">BHIIQ")
_OPEN_OK = _LONG.pack(frames.CHANNEL_OPEN_OK)
# More than Channel.OpenOk has, the only frame that may come on a channel that is not open yet.
_OPEN_OK_SIZE = 64
_WITH_CONTENT = (_LONG.pack(frames.BASIC_DELIVER), _LONG.pack(frames.BASIC_RETURN))


class Lane(Protocol):
    """Takes the hot frames of one channel."""

    def on_method(self, method: int, payload: bytes) -> bool:
        """A method without content; False if it is not for the lane."""

    def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
        """A method with its content header and its whole body."""


class _Content:
    """A message whose frames are still coming."""

    __slots__ = ("header", "method", "missing", "parts", "payload")

    def __init__(self, method: int, payload: bytes) -> None:
        self.method = method
        self.payload = payload
        self.header = b""
        self.missing = -1
        self.parts: list[bytes] = []


class LaneProtocol(asyncio.StreamReaderProtocol):
    """Splits what arrives into frames for the lanes and bytes for aiormq, and writes what the lanes send."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._event_loop = loop
        self._transport: asyncio.Transport | None = None
        self._lanes: dict[int, Lane] = {}
        self._contents: dict[int, _Content] = {}
        self._opened = {0}
        self._rest = b""
        self._out: list[bytes] = []
        self._before_flush: list[Callable[[], None]] = []
        self._flushing = False
        self._out_size = 0
        self._socket_full = False
        self._last_shown = loop.time()
        self.failed: Callable[[str], None] | None = None
        self.frame_max = frames.DEFAULT_FRAME_MAX

    def attach(self, channel: int, lane: Lane) -> None:
        """From now on the hot frames of this channel go to the lane."""
        self._lanes[channel] = lane
        self._opened.add(channel)

    def detach(self, channel: int) -> None:
        self._lanes.pop(channel, None)
        self._contents.pop(channel, None)

    # From the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lanes.clear()
        self._out.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        if not self._lanes and data[:4] == b"AMQP":
            # Not frames: the server's way of saying that it speaks another version. aiormq explains it.
            super().data_received(data)
            return
        try:
            self._rest = self._split(data)
        except frames.MalformedFrameError as error:
            self._fail(str(error))

    def _split(self, data: bytes) -> bytes:
        """Handle every whole frame; return the beginning of the one that is not whole yet."""
        at, end = 0, len(data)
        cold: list[bytes] = []
        while end - at >= _FRAME.size:
            kind, channel, size = _FRAME.unpack_from(data, at)
            stop = at + size + frames.FRAME_OVERHEAD
            if stop > end:
                self._check(kind, channel, size)
                break
            if data[stop - 1] != frames.FRAME_END:
                raise frames.MalformedFrameError(f"a frame on channel {channel} does not end where its size says")
            lane = self._lanes.get(channel)
            if lane is None:
                cold.append(data[at:stop])
                if data[at + 7 : at + 11] == _OPEN_OK:
                    self._opened.add(channel)
            elif kind == frames.FRAME_METHOD and (past := self._take_whole(lane, channel, data, at, stop)):
                stop = past
            elif not self._take(lane, kind, channel, data[at + 7 : stop - 1]):
                cold.append(data[at:stop])
            at = stop
        if cold:
            self._last_shown = self._event_loop.time()
            super().data_received(b"".join(cold))
        elif at and self._event_loop.time() - self._last_shown > SHOW_HEARTBEAT_EVERY:
            self._last_shown = self._event_loop.time()
            super().data_received(frames.HEARTBEAT)
        return data[at:]

    def _check(self, kind: int, channel: int, size: int) -> None:
        """Of a frame that is not whole yet: fail if it can be none, rather than wait for the rest."""
        if size > self.frame_max:
            raise frames.MalformedFrameError(f"a frame of {size} bytes; at most {self.frame_max} were agreed on")
        if kind not in frames.KINDS:
            raise frames.MalformedFrameError(f"a frame of the unknown type {kind}")
        if channel not in self._opened and size > _OPEN_OK_SIZE:
            raise frames.MalformedFrameError(f"a frame on channel {channel}, which was never opened")

    def _take_whole(self, lane: Lane, channel: int, data: bytes, at: int, header_at: int) -> int:
        """Give a message to its lane if it is there in whole, its body in one frame, and return where it ends; else 0."""
        if (
            len(data) - header_at < frames.HEADER_FRAME_OVERHEAD
            or channel in self._contents
            or data[at + 7 : at + 11] not in _WITH_CONTENT
        ):
            return 0
        kind, of_channel, size, _, body_size = _HEADER.unpack_from(data, header_at)
        body_at = past = header_at + size + frames.FRAME_OVERHEAD
        if (
            (kind, of_channel) != (frames.FRAME_HEADER, channel)
            or past > len(data)
            or data[past - 1] != frames.FRAME_END
        ):
            return 0
        body = b""
        if body_size:
            past = body_at + body_size + frames.FRAME_OVERHEAD
            if past > len(data) or data[past - 1] != frames.FRAME_END:
                return 0
            if _FRAME.unpack_from(data, body_at) != (frames.FRAME_BODY, channel, body_size):
                return 0
            body = data[body_at + 7 : past - 1]
        method: int = _LONG.unpack_from(data, at + 7)[0]
        lane.on_content(method, data[at + 7 : header_at - 1], data[header_at + 7 : body_at - 1], body)
        return int(past)

    def _take(self, lane: Lane, kind: int, channel: int, payload: bytes) -> bool:
        """Give a frame to its lane; False if it is aiormq's."""
        content = self._contents.get(channel)
        if kind == frames.FRAME_METHOD:
            if content is not None:
                raise frames.MalformedFrameError(f"a method came on channel {channel} in the middle of a message")
            if len(payload) < 4:
                raise frames.MalformedFrameError(f"a method on channel {channel} has no number")
            method = _LONG.unpack_from(payload)[0]
            if payload[:4] in _WITH_CONTENT:
                self._contents[channel] = _Content(method, payload)
                return True
            return lane.on_method(method, payload)
        if content is None:
            if kind == frames.FRAME_HEARTBEAT:
                return False
            raise frames.MalformedFrameError(f"content came on channel {channel} without a method before it")
        if kind == frames.FRAME_HEADER and content.missing < 0:
            if len(payload) < 14:
                raise frames.MalformedFrameError(f"a content header on channel {channel} is cut off")
            content.header = payload
            content.missing = _BODY_SIZE.unpack_from(payload, 4)[0]
        elif kind == frames.FRAME_BODY and content.missing >= 0 and len(payload) <= content.missing:
            content.parts.append(payload)
            content.missing -= len(payload)
        else:
            raise frames.MalformedFrameError(
                f"a frame of type {kind} came on channel {channel} where it does not belong"
            )
        if content.missing == 0:
            del self._contents[channel]
            body = content.parts[0] if len(content.parts) == 1 else b"".join(content.parts)
            lane.on_content(content.method, content.payload, content.header, body)
        return True

    def _fail(self, reason: str) -> None:
        self._rest = b""
        self._lanes.clear()
        if self.failed is not None:
            self.failed(f"malformed AMQP from the broker: {reason}")
        if self._transport is not None:
            self._transport.abort()

    # To the socket

    def send(self, data: bytes) -> None:
        """Send with everything else of this loop turn, in one write."""
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size > FLUSH_AT:
            self._write()
        self._schedule()

    def flush_with(self, collect: Callable[[], None]) -> None:
        """Call `collect` just before this loop turn's write, to `send` what it has gathered."""
        self._before_flush.append(collect)
        self._schedule()

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._event_loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what there is to write now."""
        collecting, self._before_flush = self._before_flush, []
        for collect in collecting:
            collect()
        self._flushing = False
        self._write()

    def _write(self) -> None:
        if self._out and not self._socket_full and self._transport is not None:
            out, self._out, self._out_size = self._out, [], 0
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def pause_writing(self) -> None:
        # The socket is full: RabbitMQ is slow, or holds us back in an alarm. What is sent from now on waits here.
        self._socket_full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self._socket_full = False
        super().resume_writing()
        self._schedule()
