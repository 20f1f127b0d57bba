"""The benchmark's ceiling: what RabbitMQ itself can do of this work, by raw sockets and pre-built frames in three processes.

Client, service and callback each know the byte layout of the messages that they get: nothing is parsed but frame heads, nothing
validated. Quorum queues, persistent mandatory publishes with confirms, acknowledgements only after the reply's confirm: all as
everywhere else here.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import struct
import time
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import pamqp.frame
from pamqp import commands
from pamqp.header import ProtocolHeader

from bench.contenders.common import CALLBACK, CALLBACKS, PREFETCH, PRICE, main, tell
from broker.protocol.message import Message
from broker.transport import frames

WINDOW = 1000
_FRAME = struct.Struct(">BHI")
_LONG = struct.Struct(">I")
_TAG = struct.Struct(">QB")
NO_CID = "0" * 32
BODY = b'{"number":12345,"item":"screen","quantity":2}'
REPLY_BODY = b'{"number":12345,"item":"screen","total":5.0}'


def request(cid: str) -> Message:
    headers = {"callback": CALLBACK}
    return Message(BODY, headers, "application/json", correlation_id=cid, reply_to=CALLBACKS, message_id=cid)


def reply(cid: str) -> Message:
    headers = {"callback": CALLBACK, "service": PRICE, "status": "ok"}
    return Message(REPLY_BODY, headers, "application/json", correlation_id=cid, message_id=cid)


class Socket:
    """A blocking socket on one channel."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self.send(ProtocolHeader().marshal())
        self._expect(commands.Connection.Start)
        response = f"\0{parts.username}\0{parts.password}"
        self._method(commands.Connection.StartOk(client_properties={}, mechanism="PLAIN", response=response), 0)
        self._expect(commands.Connection.Tune)
        self._method(commands.Connection.TuneOk(channel_max=2047, frame_max=131072, heartbeat=0), 0)
        self._method(commands.Connection.Open(virtual_host=unquote(parts.path[1:]) or "/"), 0)
        self._expect(commands.Connection.OpenOk)
        self.call(commands.Channel.Open(), commands.Channel.OpenOk)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def call(self, method: pamqp.base.Frame, answer: type[pamqp.base.Frame]) -> None:
        self._method(method, 1)
        self._expect(answer)

    def frames(self) -> Iterator[list[tuple[int, int, bytes]]]:
        """The frames of each read, as type, where the payload begins in it, and the read itself."""
        while True:
            data = self._rest + self._socket.recv(262_144)
            at, found = 0, []
            while len(data) - at >= 8:
                kind, _, size = _FRAME.unpack_from(data, at)
                if at + size + 8 > len(data):
                    break
                found.append((kind, at + 7, data))
                at += size + 8
            self._rest = data[at:]
            yield found

    def _method(self, method: pamqp.base.Frame, channel: int) -> None:
        self.send(pamqp.frame.marshal(method, channel))

    def _expect(self, answer: type[pamqp.base.Frame]) -> None:
        for found in self.frames():
            for _, at, data in found:
                _, _, frame = pamqp.frame.unmarshal(data[at - 7 :])
                if not isinstance(frame, answer):
                    raise RuntimeError(f"{frame!r} instead of {answer.name}")
                return


def declare(opened: Socket, *queues: str) -> None:
    for queue in queues:
        arguments = {"x-queue-type": "quorum"}
        opened.call(commands.Queue.Declare(queue=queue, durable=True, arguments=arguments), commands.Queue.DeclareOk)


def consume(opened: Socket, queue: str) -> None:
    opened.call(commands.Basic.Qos(prefetch_count=PREFETCH), commands.Basic.QosOk)
    opened.call(commands.Basic.Consume(queue=queue, consumer_tag="c"), commands.Basic.ConsumeOk)


def cid_offset(message: Message) -> int:
    """Where in the content header's payload the CID begins, past its length."""
    _, properties = frames.encode_properties(message)
    return 14 + properties.index(NO_CID.encode())


def serve(url: str, count: int) -> None:
    """The service: a reply for each request, the request acknowledged once that is confirmed."""
    opened = Socket(url)
    declare(opened, PRICE, CALLBACKS)
    opened.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    offset = cid_offset(request(NO_CID))
    before, between, after = frames.publish(1, CALLBACKS, reply(NO_CID), 131_072).split(NO_CID.encode())
    consume(opened, PRICE)
    acknowledged = confirmed = 0
    for found in opened.frames():
        out = []
        for kind, at, data in found:
            if kind == frames.FRAME_HEADER:
                cid = data[at + offset : at + offset + 32]
                out += (before, cid, between, cid, after)
            elif kind == frames.FRAME_METHOD and _LONG.unpack_from(data, at)[0] == frames.BASIC_ACK:
                confirmed = max(confirmed, _TAG.unpack_from(data, at + 4)[0])
        if confirmed > acknowledged:
            # One reply for each request, in order: the n-th confirm is for the n-th delivery, if none before it is open.
            acknowledged = confirmed
            out.append(frames.ack(1, acknowledged, multiple=True))
        if out:
            opened.send(b"".join(out))


def receive(url: str, count: int) -> None:
    """The callback: counts and acknowledges."""
    opened = Socket(url)
    declare(opened, CALLBACKS)
    offset = cid_offset(reply(NO_CID))
    consume(opened, CALLBACKS)
    seen: set[bytes] = set()
    tag = 0
    for found in opened.frames():
        for kind, at, data in found:
            if kind == frames.FRAME_HEADER:
                seen.add(data[at + offset : at + offset + 32])
                tag += 1
        if tag:
            opened.send(frames.ack(1, tag, multiple=True))
        if len(seen) == count:
            tell(last=time.time())
            return


def worker(url: str, count: int) -> None:
    multiprocessing.Process(target=serve, args=(url, count), daemon=True).start()
    receive(url, count)
    signal.pause()


def client(url: str, count: int) -> None:
    publish_all(url, count, frames.publish(1, PRICE, request(NO_CID), 131_072))


def publish_all(url: str, count: int, template: bytes) -> None:
    """COUNT confirmed publishes of a message in which the CID stands twice, a window at a time."""
    opened = Socket(url)
    opened.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    before, between, after = template.split(NO_CID.encode())
    tell(started=time.time())
    sent, acked, beyond = 0, 0, set[int]()
    reads = opened.frames()
    while acked < count:
        out = []
        while sent < count and sent - acked < WINDOW:
            cid = b"%032x" % sent
            out += (before, cid, between, cid, after)
            sent += 1
        if out:
            opened.send(b"".join(out))
        for _, at, data in next(reads):
            tag, multiple = _TAG.unpack_from(data, at + 4)
            if multiple:
                acked = max(acked, tag)
            else:
                beyond.add(tag)
        while acked + 1 in beyond:
            acked += 1
            beyond.remove(acked)
    tell(ended=time.time())


if __name__ == "__main__":
    main(worker, client)
