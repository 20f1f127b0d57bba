"""`amqps://`: every transport that has a socket goes through TLS, and checks who is at the other end."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker import AsyncClient, Service
from broker.errors import BrokerUnavailableError
from broker.transport.amqp import AmqpTransport
from broker.transport.interface import Transport
from broker.transport.memory import MemoryBroker
from tests.support import named, run, running, unique


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority of the test's own, and a certificate for `localhost` that it signed."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other-ca"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}",
                "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    (folder / "server.ext").write_text("subjectAltName=DNS:localhost")
    (folder / "client.ext").write_text("extendedKeyUsage=clientAuth")
    for name in ("server", "client"):
        subject = ("-subj", "/CN=localhost" if name == "server" else "/CN=erp")
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", *subject)
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", "2",
                "-extfile", f"{name}.ext")  # fmt: skip
    return folder


@asynccontextmanager
async def terminator(authority: Path, target: str, *, asks_for_certificate: bool = False) -> AsyncIterator[int]:
    """A TLS listener on 127.0.0.1 that passes what it decrypts to RabbitMQ; yields its port."""
    parts = urlsplit(target)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    if asks_for_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority / "ca.pem")
    pumps: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError, ssl.SSLError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        pumps.add(asyncio.ensure_future(pump(reader, far_writer)))
        pumps.add(asyncio.ensure_future(pump(far_reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*pumps, return_exceptions=True)


def test_messages_go_through_tls_and_strangers_are_refused(transport: Transport, authority: Path) -> None:
    if isinstance(transport, MemoryBroker):
        assert transport.address == "memory://"  # it has no socket
        return
    assert isinstance(transport, AmqpTransport)
    plain = transport._urls[0]
    userinfo = urlsplit(plain).netloc.rpartition("@")[0]

    class Echo(Service):
        async def handle(self) -> object:
            return self.request.payload

    echo = named(unique("echo"), Echo)

    async def test() -> None:
        async with terminator(authority, plain) as port:

            def through(host: str, authority_file: str) -> AmqpTransport:
                return type(transport)([f"amqps://{userinfo}@{host}:{port}/?cafile={authority / authority_file}"])

            async with running(through("localhost", "ca.pem"), echo) as daemon:
                async with AsyncClient(settings=daemon.settings, transport=through("localhost", "ca.pem")) as client:
                    assert await client.call(echo, {"a": 1}) == {"a": 1}
                    big = b"x" * 1_000_000
                    assert await client.call(echo, big) == big
            for host, authority_file, words in (
                ("localhost", "other-ca.pem", "certificate is not valid here: "),
                ("127.0.0.1", "ca.pem", "certificate is not valid here: IP address mismatch"),
            ):
                with pytest.raises(BrokerUnavailableError, match=words):
                    await through(host, authority_file).connect()

    run(test())


def test_a_broker_may_ask_for_the_clients_certificate(transport: Transport, authority: Path) -> None:
    if isinstance(transport, MemoryBroker):
        assert transport.address == "memory://"  # it has no socket
        return
    assert isinstance(transport, AmqpTransport)
    plain = transport._urls[0]
    userinfo = urlsplit(plain).netloc.rpartition("@")[0]

    async def test() -> None:
        async with terminator(authority, plain, asks_for_certificate=True) as port:
            url = f"amqps://{userinfo}@localhost:{port}/?cafile={authority / 'ca.pem'}"
            ours = f"&certfile={authority / 'client.pem'}&keyfile={authority / 'client.key'}"
            connection = await type(transport)([url + ours]).connect()
            await connection.close()
            with pytest.raises(BrokerUnavailableError):
                await type(transport)([url]).connect()

    run(test())
