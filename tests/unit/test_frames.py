"""The lane's frames, held against pamqp, the codec under aiormq."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from broker.protocol.message import Message
from broker.transport import frames
from broker.transport.conversion import _table

# pamqp leaves empty properties out, reads 64-bit numbers as signed, and writes floats in single precision.
short = st.text(min_size=1, max_size=60)
names = st.text(max_size=40)
times = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))
decimals = st.builds(lambda digits, scale: Decimal(digits).scaleb(-scale), st.integers(0, 2**31 - 1), st.integers(0, 9))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63 - 1), 2**63 - 1)
    | st.floats(allow_nan=False, width=32)
    | st.text(max_size=50)
    | st.binary(min_size=1, max_size=20)
    | times
    | decimals,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
messages = st.builds(
    Message,
    body=st.binary(max_size=400),
    headers=st.dictionaries(names, values, max_size=5),
    content_type=st.none() | short,
    content_encoding=st.none() | short,
    correlation_id=st.none() | short,
    reply_to=st.none() | short,
    message_id=st.none() | short,
    expiration=st.none() | st.integers(0, 2**40),
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | st.integers(0, 2**32 - 1),
    type=st.none() | short,
    app_id=st.none() | short,
)


def unmarshalled(data: bytes) -> list[tuple[int, Any]]:
    """What pamqp reads: each frame with its channel."""
    found = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        found.append((channel, frame))
        data = data[size:]
    return found


def by_pamqp(message: Message) -> bytes:
    """The content header's payload as pamqp writes it."""
    properties = Basic.Properties(
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=_table(message.headers) or None,
        delivery_mode=2,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=None if message.expiration is None else str(message.expiration),
        message_id=message.message_id,
        timestamp=None if message.timestamp is None else datetime.fromtimestamp(message.timestamp, UTC),
        message_type=message.type,
        user_id=message.user_id,
        app_id=message.app_id,
    )
    return pamqp.frame.marshal(ContentHeader(body_size=len(message.body), properties=properties), 1)[7:-1]


@given(
    messages,
    st.text(alphabet="abc.-", min_size=1, max_size=200),
    st.integers(1, 2047),
    st.sampled_from([4096, 131_072]),
)
def test_pamqp_reads_what_is_published(message: Message, routing_key: str, channel: int, frame_max: int) -> None:
    (one, method), (two, header), *bodies = unmarshalled(frames.publish(channel, routing_key, message, frame_max))
    assert {one, two, *(number for number, _ in bodies)} == {channel}
    assert (method.exchange, method.routing_key, method.mandatory, method.immediate) == ("", routing_key, True, False)
    assert header.body_size == len(message.body)
    assert b"".join(body.value for _, body in bodies) == message.body
    properties = header.properties
    assert properties.delivery_mode == 2
    for ours, theirs in {"content_type": "content_type", "content_encoding": "content_encoding", "correlation_id": "correlation_id",
                         "reply_to": "reply_to", "message_id": "message_id", "priority": "priority", "type": "message_type", "app_id": "app_id"}.items():  # fmt: skip
        assert getattr(properties, theirs) == getattr(message, ours)
    sent_at = properties.timestamp
    assert (None if sent_at is None else sent_at.timestamp()) == message.timestamp
    assert properties.expiration == (None if message.expiration is None else str(message.expiration))
    assert (properties.headers or {}) == message.headers


@given(messages)
def test_what_pamqp_writes_is_read(message: Message) -> None:
    assert frames.decode_properties(by_pamqp(message), message.body) == message


@given(messages)
def test_what_is_written_is_read(message: Message) -> None:
    flags, properties = frames.encode_properties(message)
    header = struct.pack(">HHQH", 60, 0, len(message.body), flags) + properties
    assert frames.decode_properties(header, message.body) == message


def test_empty_properties_and_doubles_are_written_as_they_are() -> None:
    message = Message(
        b"", content_type="", correlation_id="", message_id="", headers={"": 1e300, "pi": 3.141592653589793}
    )
    flags, properties = frames.encode_properties(message)
    header = struct.pack(">HHQH", 60, 0, 0, flags) + properties
    assert frames.decode_properties(header, b"") == message


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 8176, 8177, 20_000])
def test_bodies_are_cut_at_frame_max(size: int) -> None:
    data = frames.publish(3, "q", Message(b"x" * size), 4096)
    bodies = [frame for _, frame in unmarshalled(data)[2:]]
    assert all(isinstance(body, ContentBody) and 0 < len(body.value) <= 4088 for body in bodies)
    assert len(bodies) == -(-size // 4088)


@given(st.integers(1, 65535), st.integers(1, 2**63 - 1), st.booleans())
def test_pamqp_reads_acks(channel: int, tag: int, multiple: bool) -> None:
    ((number, frame),) = unmarshalled(frames.ack(channel, tag, multiple=multiple))
    assert (number, type(frame), frame.delivery_tag, frame.multiple) == (channel, Basic.Ack, tag, multiple)
    ((number, frame),) = unmarshalled(frames.requeue(channel, tag))
    assert (number, type(frame), frame.delivery_tag, frame.multiple, frame.requeue) == (
        channel,
        Basic.Nack,
        tag,
        False,
        True,
    )


@given(short, st.integers(1, 2**63 - 1), st.booleans(), short, short)
def test_methods_of_the_broker_are_read(
    tag_name: str, tag: int, redelivered: bool, exchange: str, routing_key: str
) -> None:
    def payload(frame: Any) -> bytes:
        return pamqp.frame.marshal(frame, 1)[7:-1]

    deliver = Basic.Deliver(
        consumer_tag=tag_name, delivery_tag=tag, redelivered=redelivered, exchange="", routing_key="q"
    )
    assert frames.deliver_arguments(payload(deliver)) == (tag, redelivered)
    returned = Basic.Return(reply_code=312, reply_text=tag_name, exchange="", routing_key=routing_key)
    assert frames.returned_routing_key(payload(returned)) == routing_key
    for frame in (
        Basic.Ack(delivery_tag=tag, multiple=redelivered),
        Basic.Nack(delivery_tag=tag, multiple=redelivered, requeue=False),
    ):
        number, bits = frames.tag_and_bits(payload(frame))
        assert (number, bits & 1) == (tag, redelivered)


def test_every_type_of_rabbitmqs_dialect_is_read() -> None:
    fields = {
        b"b\xff": -1, b"B\xff": 255, b"s\xff\xfe": -2, b"u\xff\xfe": 65534, b"I\xff\xff\xff\xfe": -2, b"i\xff\xff\xff\xfe": 2**32 - 2,
        b"l" + b"\xff" * 8: -1, b"L" + b"\xff" * 8: -1, b"f\x3f\x80\0\0": 1.0, b"d\x3f\xf0" + b"\0" * 6: 1.0, b"t\x01": True, b"V": None,
        b"S\0\0\0\x01x": "x", b"x\0\0\0\x01\xff": b"\xff", b"D\x02\0\0\0\x96": Decimal("1.50"), b"A\0\0\0\x02t\0": [False],
        b"F\0\0\0\x03\x01kV": {"k": None}, b"T\0\0\0\0\0\0\0\x01": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        b"T\0\0\x01\x8c\xc2\x51\xf4\0": datetime.fromtimestamp(0x18CC251F400 / 1000, UTC), b"T" + b"\xff" * 8: None,
        b"S\0\0\0\x01\xff": "\udcff",
    }  # fmt: skip
    for encoded, value in fields.items():
        table = b"\x01k" + encoded
        header = struct.pack(">HHQH", 60, 0, 0, frames.HEADERS) + struct.pack(">I", len(table)) + table
        assert frames.decode_properties(header, b"").headers == {"k": value}, encoded


@given(messages, st.data())
def test_a_mutated_header_is_read_or_is_malformed(message: Message, data: st.DataObject) -> None:
    header = bytearray(by_pamqp(message))
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(12, len(header) - 1))] = data.draw(st.integers(0, 255))
    header = header[: data.draw(st.integers(14, len(header)))]
    try:
        read = frames.decode_properties(bytes(header), b"")
    except frames.MalformedFrameError as error:
        assert "cannot be read" in str(error)
    else:
        frames.publish(1, "q", read, 2**20)  # and can be written again


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Message(correlation_id="x" * 256), ValueError),
        (Message(headers={"x" * 256: 1}), ValueError),
        (Message(headers={"x": "y" * 5000}), ValueError),
        (Message(headers={"x": {1}}), TypeError),
        (Message(headers={"x": 2**63}), TypeError),
    ],
)  # fmt: skip
def test_what_amqp_cannot_carry_is_refused(message: Message, error: type[Exception]) -> None:
    with pytest.raises(error):
        frames.publish(1, "q", message, 4096)
