"""AMQP 0-9-1 on the wire: bytes to frames and back, for the few frames that carry messages. No I/O.

The layout, as of section 2.3.5 of the specification (https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf):

    octet    short      long      size octets     octet
    +------+---------+---------+ +-------------+ +-----------+
    | type | channel |  size   | |   payload   | | frame-end |
    +------+---------+---------+ +-------------+ +-----------+

A message is a method frame (Basic.Publish, .Deliver or .Return), a content header frame with the body's size and the
properties, and as many body frames as the size and the negotiated frame-max ask for: none for an empty body.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from broker.protocol.message import Message
from broker.transport.fields import cached_shortstr, encode_table, read_shortstr, read_table, shortstr

FRAME_METHOD = 1
FRAME_HEADER = 2
FRAME_BODY = 3
FRAME_HEARTBEAT = 8
KINDS = (FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_HEARTBEAT)
FRAME_END = 0xCE
FRAME_OVERHEAD = 8
HEADER_FRAME_OVERHEAD = FRAME_OVERHEAD + 14
DEFAULT_FRAME_MAX = 131_072

CLASS_BASIC = 60
CHANNEL_OPEN_OK = 20 << 16 | 11
BASIC_PUBLISH = CLASS_BASIC << 16 | 40
BASIC_RETURN = CLASS_BASIC << 16 | 50
BASIC_DELIVER = CLASS_BASIC << 16 | 60
BASIC_ACK = CLASS_BASIC << 16 | 80
BASIC_NACK = CLASS_BASIC << 16 | 120
CHANNEL_CLOSE = 20 << 16 | 40

HEARTBEAT = struct.pack(">BHIB", FRAME_HEARTBEAT, 0, 0, FRAME_END)
PERSISTENT = 2
MANDATORY = 1

CONTENT_TYPE = 1 << 15
CONTENT_ENCODING = 1 << 14
HEADERS = 1 << 13
DELIVERY_MODE = 1 << 12
PRIORITY = 1 << 11
CORRELATION_ID = 1 << 10
REPLY_TO = 1 << 9
EXPIRATION = 1 << 8
MESSAGE_ID = 1 << 7
TIMESTAMP = 1 << 6
TYPE = 1 << 5
USER_ID = 1 << 4
APP_ID = 1 << 3
CLUSTER_ID = 1 << 2
MORE_FLAGS = 1
_SELDOM = TIMESTAMP | TYPE | USER_ID | APP_ID

_END = bytes([FRAME_END])
_FRAME = struct.Struct(">BHI")
_METHOD = struct.Struct(">BHII")
_HEADER = struct.Struct(">BHIHHQH")
_HEADER_PAYLOAD = struct.Struct(">HHQH")
_TAG_AND_BITS = struct.Struct(">QB")
_ACK = struct.Struct(">BHIIQBB")
_LONG = struct.Struct(">I")
_TIMESTAMP = struct.Struct(">Q")


class MalformedFrameError(Exception):
    """Bytes that are not AMQP 0-9-1 as it has to be."""


# Writing


def publish(channel: int, routing_key: str, message: Message, frame_max: int, exchange: str = "") -> bytes:
    """A mandatory, persistent Basic.Publish with its content, as one buffer.

    Raises:
        ValueError: a property is longer than AMQP allows, or the headers do not fit into a frame.
        TypeError: a header has a value that AMQP has no type for.
    """
    flags, properties = encode_properties(message)
    size = len(properties) + _HEADER_PAYLOAD.size
    if size + FRAME_OVERHEAD > frame_max:
        raise ValueError(
            f"the message's headers have {len(properties)} bytes; they must fit into a frame of {frame_max}"
        )
    body = message.body
    header = _HEADER.pack(FRAME_HEADER, channel, size, CLASS_BASIC, 0, len(body), flags)
    start = _publish_method(channel, exchange, routing_key) + header + properties
    if not body:
        return start + _END
    if len(body) + FRAME_OVERHEAD <= frame_max:
        return b"%b\xce%b%b\xce" % (start, _FRAME.pack(FRAME_BODY, channel, len(body)), body)
    parts = [start, _END]
    step = frame_max - FRAME_OVERHEAD
    for offset in range(0, len(body), step):
        part = body[offset : offset + step]
        parts += (_FRAME.pack(FRAME_BODY, channel, len(part)), part, _END)
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _publish_method(channel: int, exchange: str, routing_key: str) -> bytes:
    arguments = b"\x00\x00" + shortstr(exchange) + shortstr(routing_key) + bytes([MANDATORY])
    return _METHOD.pack(FRAME_METHOD, channel, len(arguments) + 4, BASIC_PUBLISH) + arguments + _END


def ack(channel: int, delivery_tag: int, *, multiple: bool = False) -> bytes:
    """A Basic.Ack."""
    return _ACK.pack(FRAME_METHOD, channel, 13, BASIC_ACK, delivery_tag, multiple, FRAME_END)


def requeue(channel: int, delivery_tag: int) -> bytes:
    """A Basic.Nack that gives one message back to its queue."""
    return _ACK.pack(FRAME_METHOD, channel, 13, BASIC_NACK, delivery_tag, 0b10, FRAME_END)


def encode_properties(message: Message) -> tuple[int, bytes]:
    """The property flags and the properties of a message, persistent, its user ID left out (RabbitMQ allows only our own)."""
    flags = DELIVERY_MODE
    parts = []
    if message.content_type is not None:
        flags |= CONTENT_TYPE
        parts.append(cached_shortstr(message.content_type))
    if message.content_encoding is not None:
        flags |= CONTENT_ENCODING
        parts.append(cached_shortstr(message.content_encoding))
    if message.headers:
        flags |= HEADERS
        parts.append(encode_table(message.headers))
    parts.append(b"\x02")
    if message.priority is not None:
        flags |= PRIORITY
        parts.append(bytes([message.priority]))
    if message.correlation_id is not None:
        flags |= CORRELATION_ID
        parts.append(shortstr(message.correlation_id))
    if message.reply_to is not None:
        flags |= REPLY_TO
        parts.append(cached_shortstr(message.reply_to))
    if message.expiration is not None:
        flags |= EXPIRATION
        parts.append(shortstr(str(message.expiration)))
    if message.message_id is not None:
        flags |= MESSAGE_ID
        parts.append(shortstr(message.message_id))
    if message.timestamp is not None:
        flags |= TIMESTAMP
        parts.append(_TIMESTAMP.pack(message.timestamp))
    if message.type is not None:
        flags |= TYPE
        parts.append(cached_shortstr(message.type))
    if message.app_id is not None:
        flags |= APP_ID
        parts.append(cached_shortstr(message.app_id))
    return flags, b"".join(parts)


# Reading


def decode_properties(header: bytes, body: bytes) -> Message:
    """The message that a content header's payload and a body make.

    Text that is not UTF-8 is kept byte for byte (`surrogateescape`), as what comes from abroad must not end a connection.

    Raises:
        MalformedFrameError: the properties are cut off or not what their flags say.
    """
    try:
        return _decode_properties(header, body)
    except (struct.error, IndexError, ValueError, RecursionError) as error:
        raise MalformedFrameError(f"the content header of a message cannot be read: {error}") from None


def _decode_properties(header: bytes, body: bytes) -> Message:
    flags = header[12] << 8 | header[13]
    if flags & MORE_FLAGS:
        raise ValueError("it has more property flags than the specification knows")
    at = 14
    message = Message(body)
    if flags & CONTENT_TYPE:
        start = at + 1
        at = start + header[at]
        message.content_type = header[start:at].decode("utf-8", "surrogateescape")
    if flags & CONTENT_ENCODING:
        message.content_encoding, at = read_shortstr(header, at)
    if flags & HEADERS:
        message.headers, at = read_table(header, at)
    if flags & DELIVERY_MODE:
        at += 1
    if flags & PRIORITY:
        message.priority, at = header[at], at + 1
    if flags & CORRELATION_ID:
        start = at + 1
        at = start + header[at]
        message.correlation_id = header[start:at].decode("utf-8", "surrogateescape")
    if flags & REPLY_TO:
        message.reply_to, at = read_shortstr(header, at)
    if flags & EXPIRATION:
        text, at = read_shortstr(header, at)
        message.expiration = int(text) if text.isdigit() else None
    if flags & MESSAGE_ID:
        start = at + 1
        at = start + header[at]
        message.message_id = header[start:at].decode("utf-8", "surrogateescape")
    if flags & _SELDOM:
        at = _read_seldom(message, flags, header, at)
    if at > len(header):
        raise ValueError("it ends too soon")
    return message


def _read_seldom(message: Message, flags: int, header: bytes, at: int) -> int:
    """The properties after the message ID."""
    if flags & TIMESTAMP:
        message.timestamp, at = _TIMESTAMP.unpack_from(header, at)[0], at + 8
    if flags & TYPE:
        message.type, at = read_shortstr(header, at)
    if flags & USER_ID:
        message.user_id, at = read_shortstr(header, at)
    if flags & APP_ID:
        message.app_id, at = read_shortstr(header, at)
    return at


def tag_and_bits(payload: bytes) -> tuple[int, int]:
    """The delivery tag and the bits of a Basic.Ack's or Basic.Nack's payload."""
    try:
        tag, bits = _TAG_AND_BITS.unpack_from(payload, 4)
    except struct.error:
        raise MalformedFrameError("a Basic.Ack or Basic.Nack is cut off") from None
    return tag, bits


def deliver_arguments(payload: bytes) -> tuple[int, bool]:
    """The delivery tag and whether it is redelivered, of a Basic.Deliver's payload."""
    try:
        at = 5 + payload[4]
        tag, redelivered = _TAG_AND_BITS.unpack_from(payload, at)
    except (struct.error, IndexError):
        raise MalformedFrameError("a Basic.Deliver is cut off") from None
    return tag, bool(redelivered & 1)


def returned_routing_key(payload: bytes) -> str:
    """The routing key of a Basic.Return's payload."""
    try:
        _, at = read_shortstr(payload, 6)
        _, at = read_shortstr(payload, at)
        return read_shortstr(payload, at)[0]
    except (IndexError, ValueError):
        raise MalformedFrameError("a Basic.Return is cut off") from None
