"""AMQP 1.0 clients: values instead of data, by Qpid Proton, as the oracle of the codec and as a client."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import InvalidInputError
from broker.protocol import amqp_value
from tests.conftest import USED
from tests.integration.conftest import ROOT, Process
from tests.rabbitmq import install

PYTHON = "/usr/bin/python3"
VALUE = bytes.fromhex("005377")
SEQUENCE = bytes.fromhex("005376")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Encode = Callable[[Any], bytes]

SIGNED = {"byte": 8, "short": 16, "int": 32}
UNSIGNED = {"ubyte": 8, "ushort": 16, "uint": 32, "ulong": 64}


def tagged(tag: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values.map(lambda value: (tag, value))


def integers(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
KEYS = st.one_of(TEXTS, integers(64, signed=True), tagged("symbol", st.text("abc:-", max_size=9)))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    integers(64, signed=True),
    st.floats(allow_nan=False),
    TEXTS,
    st.binary(max_size=300),
    *(tagged(tag, integers(bits, signed=True)) for tag, bits in SIGNED.items()),
    *(tagged(tag, integers(bits, signed=False)) for tag, bits in UNSIGNED.items()),
    tagged("float", st.floats(width=32, allow_nan=False)),
    tagged("uuid", st.uuids().map(str)),
    tagged("timestamp", st.integers(-(10**12), 10**13)),
    tagged("symbol", st.text("abc:-", max_size=300)),
    tagged("char", st.characters(exclude_categories=["Cs"])),
    tagged("array", st.lists(integers(64, signed=True), max_size=9)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(KEYS, inner, max_size=5),
        tagged("described", inner),
    ),
    max_leaves=20,
)


def plain(value: Any) -> Any:
    """What a service gets for a tagged value."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if not isinstance(value, tuple):
        return value
    tag, inner = value
    if tag == "uuid":
        return UUID(inner)
    if tag == "timestamp":
        return EPOCH + timedelta(milliseconds=inner)
    return plain(inner)


@pytest.fixture(scope="session")
def proton() -> str:
    """The Python that has Debian's Qpid Proton. Where there is none, the summary says that it was not tried."""
    try:
        if subprocess.run([PYTHON, "-c", "import proton"], capture_output=True).returncode:
            install("python3-qpid-proton", "install Qpid Proton for Python (Debian: python3-qpid-proton)")
    except (RuntimeError, OSError) as error:
        USED["Qpid Proton"] = f"NOT TRIED: {error}"
        pytest.skip(str(error))
    USED["Qpid Proton"] = subprocess.run(
        [PYTHON, "-c", "import proton; print(*proton.VERSION, sep='.')"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return PYTHON


@pytest.fixture(scope="module")
def encode(proton: str) -> Iterator[Encode]:
    script = str(Path(__file__).with_name("proton_encode.py"))
    with subprocess.Popen([proton, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def encoded(value: Any) -> bytes:
            stdin.write(f"{value!r}\n")
            stdin.flush()
            return bytes.fromhex(stdout.readline())

        yield encoded
        stdin.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(value=VALUES.filter(lambda value: "inf" not in repr(value)))
def test_what_proton_encodes_is_the_value(encode: Encode, value: Any) -> None:
    encoded = encode(value)
    assert repr(amqp_value.decode(VALUE + encoded)) == repr(plain(value))
    if isinstance(value, list):
        assert repr(amqp_value.decode(SEQUENCE + encoded + SEQUENCE + encoded)) == repr(2 * plain(value))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(value=VALUES.filter(lambda value: "inf" not in repr(value)), data=st.data())
def test_what_is_malformed_is_invalid_and_nothing_else(encode: Encode, value: Any, data: st.DataObject) -> None:
    whole = bytearray(VALUE + encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for body in (bytes(whole), cut):
        try:
            amqp_value.decode(body)
        except InvalidInputError as error:
            assert str(error).startswith("the body is no AMQP 1.0 value: ")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "it ends too early"),
        (VALUE, "it ends too early"),
        (VALUE + b"\x40\x40", "there is more after it"),
        (b"\x00\x53\x75\xa0\x00", "it has section 117"),
        (SEQUENCE + b"\x40", "a sequence is not a list"),
        (VALUE + b"\x3f", "it has type 0x3f"),
        (VALUE + b"\xf0" + struct.pack(">IIB", 5, 2**32 - 1, 0x40), "it ends too early"),
        (VALUE + 200 * b"\xc0\x7f\x01", "it is nested too deeply"),
        (VALUE + 500 * b"\x00", "it is nested too deeply"),
        (VALUE + b"\xc1\x03\x01\x40\x40", "does not end where it says"),
        (VALUE + b"\xc1\x03\x02\x45\x40", "unhashable"),
        (VALUE + b"\xa1\x01\xff", "can't decode byte 0xff"),
    ],
)
def test_a_malformed_value_says_what_is_wrong(body: bytes, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        amqp_value.decode(body)


VALUES_SERVICE = """
    from typing import Any
    from pydantic import BaseModel
    from broker import Service

    class Order(BaseModel):
        item: str
        quantity: int = 1

    class Typed(Service):
        name = 'typed'

        def handle(self, order: Order) -> str:
            return f'{order.quantity} of {order.item}'

    class Untyped(Service):
        name = 'untyped'

        def handle(self) -> str:
            return repr(self.request.payload)

    class Told(Service):
        name = 'told'

        def handle(self) -> None:
            self.logger.info('told %r', self.request.payload)
"""
CLIENT = """
import sys
from proton import Message, symbol
from proton.utils import BlockingConnection

address, vhost, user, password = sys.argv[1:]
connection = BlockingConnection(
    f"amqp://{address}", virtual_host=f"vhost:{vhost}", user=user, password=password, allowed_mechs="PLAIN"
)
receiver = connection.create_receiver("/queues/partner.replies")
senders = {queue: connection.create_sender("/queues/" + queue) for queue in ("typed", "untyped", "callbacks")}
for queue, body in (
    ("typed", {"item": "tea", "quantity": 2}),
    ("typed", '{"item": "tea"}'),
    ("typed", [1]),
    ("untyped", "text"),
    ("untyped", ["a", None, 2.5, True, symbol("s")]),
    ("untyped", b"data"),
):
    senders[queue].send(Message(body, id="m", correlation_id="c", reply_to="/queues/partner.replies"))
    reply = receiver.receive(timeout=20)
    receiver.accept()
    print(reply.properties["status"], bytes(reply.body).decode())
senders["callbacks"].send(Message({"n": 1}, id="r1", correlation_id="r", properties={"callback": "told"}))
connection.close()
"""


@pytest.fixture
def arguments(rabbitmq_url: str) -> Iterator[list[str]]:
    """What the clients are told; a queue of their own is there."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        if connection._impl.server_properties["version"].startswith("3."):
            USED["AMQP 1.0 clients"] = "NOT TRIED: RabbitMQ 3 speaks it with a plugin only"
            pytest.skip("RabbitMQ 3 speaks AMQP 1.0 with a plugin only")
        channel = connection.channel()
        channel.queue_declare("partner.replies", durable=True, arguments={"x-queue-type": "quorum"})
        parts = urlsplit(rabbitmq_url)
        yield [f"{parts.hostname}:{parts.port}", parts.path[1:] or "/", parts.username or "", parts.password or ""]
        channel.queue_delete("partner.replies")


def test_the_documented_client(
    proton: str, arguments: list[str], project: Callable[..., Path], start: Callable[..., Process]
) -> None:
    project()
    daemon = start("run")
    daemon.wait_for("ready: ")
    (example,) = re.findall(r"```amqp-1.0\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text(), re.DOTALL)
    done = subprocess.run([proton, "-c", example, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout == '1.0-own ok {"pong":"zato"}\n', done.stderr
    daemon.wait_for("""my.callback: I received '{"pong":"zato"}' (CID 1.0-callback)""")


def test_values_reach_services_and_callbacks(
    proton: str, arguments: list[str], project: Callable[..., Path], start: Callable[..., Process]
) -> None:
    project({"values.py": VALUES_SERVICE})
    daemon = start("run")
    daemon.wait_for("ready: ")
    done = subprocess.run([proton, "-c", CLIENT, *arguments], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["ok 2 of tea", "ok 1 of tea"], done.stderr
    assert lines[2].startswith('error {"type":')
    assert lines[3:] == ["ok 'text'", "ok ['a', None, 2.5, True, 's']", "ok b'data'"]
    daemon.wait_for("told: told '{\"n\":1}' (CID r)")
