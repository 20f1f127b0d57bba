"""Clients and servers that know nothing of ackback, in Python, JavaScript, Java, Go, Ruby, PHP and C."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aio_pika
import pika
import pytest

from tests.integration.conftest import ROOT, TIMEOUT, Process, wait_until
from tests.integration.languages import CLIENTS, LANGUAGES

PROTOCOL = ROOT / "docs" / "protocol.md"


@pytest.fixture
def daemon(project: Callable[..., Path], start: Callable[..., Process]) -> Process:
    """This repository's own services, running."""
    project()
    process = start("run")
    process.wait_for("ready: ")
    return process


def example(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PROTOCOL.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


class PikaClient:
    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    def ask(
        self, service: str, body: bytes | str, reply_to: str, **properties: Any
    ) -> tuple[pika.BasicProperties, bytes]:
        """Publish a request and wait for the one reply."""
        replies: list[tuple[pika.BasicProperties, bytes]] = []
        direct = reply_to == "amq.rabbitmq.reply-to"
        queue = reply_to if direct else self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.basic_consume(queue, lambda c, m, p, b: replies.append((p, b)), auto_ack=True)
        self.channel.basic_publish(
            "", service, body, pika.BasicProperties(reply_to=queue, **properties), mandatory=True
        )
        self.connection.call_later(TIMEOUT, lambda: pytest.fail("no reply"))
        while not replies:
            self.connection.process_data_events(time_limit=1)
        self.channel.close()
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        return replies[0]


@pytest.mark.parametrize("reply_to", ["exclusive", "amq.rabbitmq.reply-to"])
def test_pika(daemon: Process, rabbitmq_url: str, reply_to: str) -> None:
    client = PikaClient(rabbitmq_url)
    properties, body = client.ask("helpers.echo", b'{"a": 1}', reply_to, correlation_id="c1")
    assert (json.loads(body), properties.content_type, properties.correlation_id) == (
        {"a": 1},
        "application/json",
        "c1",
    )
    assert properties.headers == {"service": "helpers.echo", "status": "ok"}
    # Nothing but a body.
    properties, body = client.ask("helpers.echo", b"plain text", reply_to)
    assert (body, properties.content_type, len(properties.correlation_id)) == (b"plain text", "text/plain", 32)
    assert client.ask("helpers.echo", b"", reply_to)[1] == b""
    assert client.ask("helpers.echo", b"\xff\x00", reply_to)[0].content_type == "application/octet-stream"
    # A failure.
    properties, body = client.ask("orders.price", b'{"item": "boat"}', reply_to)
    assert (properties.headers["status"], properties.content_type) == ("error", "application/problem+json")
    assert json.loads(body)["type"] == "urn:ackback:problem:rejected"
    # Headers of every type that pika can write.
    headers = {
        "s": "x",
        "i": 1,
        "l": 2**40,
        "b": True,
        "n": None,
        "d": Decimal("1.5"),
        "t": datetime.now(UTC),
        "a": [1, ["x"]],
        "f": {"k": b"\xff"},
    }
    assert client.ask("helpers.echo", b"1", reply_to, headers=headers)[1] == b"1"
    # 10 MiB.
    big = bytes(range(256)) * (10 * 4096)
    assert client.ask("helpers.echo", big, reply_to, content_type="application/octet-stream")[1] == big
    # A reply for a callback service, by name and by convention.
    for headers in ({"callback": "my.callback"}, {"source": "by-convention.my-service"}):
        cid = f"pika-{reply_to}-{'-'.join(headers)}"
        client.channel.basic_publish(
            "", "zato.ping", b"", pika.BasicProperties(correlation_id=cid, reply_to="callbacks", headers=headers)
        )
    daemon.wait_for(f'my.callback: I received \'{{"pong":"zato"}}\' (CID pika-{reply_to}-callback)')
    daemon.wait_for(
        f'by-convention.my-service-async-callback: I received \'{{"pong":"zato"}}\' (CID pika-{reply_to}-source)'
    )
    # A reply that a foreign replier sends straight to the callback queue.
    client.channel.basic_publish(
        "", "callbacks", b"from afar", pika.BasicProperties(correlation_id="far", headers={"callback": "my.callback"})
    )
    daemon.wait_for("my.callback: I received 'from afar' (CID far)")
    client.connection.close()


def test_aio_pika(daemon: Process, rabbitmq_url: str) -> None:
    async def test() -> None:
        connection = await aio_pika.connect(rabbitmq_url)
        async with connection, connection.channel(on_return_raises=True) as channel:
            inbox = await channel.declare_queue(exclusive=True)

            async def ask(service: str, body: bytes, **properties: Any) -> aio_pika.abc.AbstractIncomingMessage:
                message = aio_pika.Message(body, reply_to=inbox.name, **properties)
                await channel.default_exchange.publish(message, service, mandatory=True)
                async with inbox.iterator(timeout=TIMEOUT) as replies:
                    async for reply in replies:
                        await reply.ack()
                        return reply
                raise AssertionError("no reply")

            reply = await ask("helpers.echo", b"[1, 2]", correlation_id="a1")
            assert (json.loads(reply.body), reply.correlation_id) == ([1, 2], "a1")
            assert (await ask("helpers.echo", b"")).body == b""
            big = b"x" * (10 * 1024 * 1024)
            assert (await ask("helpers.echo", big)).body == big
            headers = {"a": [1, {"b": None}], "t": datetime.now(UTC), "f": 1.5, "x": bytearray(b"\xff")}
            assert (await ask("helpers.echo", b"1", headers=headers)).headers["status"] == "ok"
            for headers in ({"callback": ["my.callback"]}, {"source": "orders.place"}):
                message = aio_pika.Message(
                    b'{"item": "screen"}', reply_to="callbacks", correlation_id="aio", headers=headers
                )
                await channel.default_exchange.publish(message, "orders.price", mandatory=True)

    asyncio.run(test())
    daemon.wait_for('my.callback: I received \'{"item":"screen","total":"219.00"}\' (CID aio)')
    daemon.wait_for("orders.place-async-callback: screen costs 219.00 (CID aio)")


NODE = """
const amqp = require('amqplib');
(async () => {
  const connection = await amqp.connect(process.env.AMQP_URL);
  const channel = await connection.createConfirmChannel();
  const inbox = (await channel.assertQueue('', { exclusive: true })).queue;
  const waiting = [];
  await channel.consume(inbox, (message) => waiting.shift()(message), { noAck: true });
  const ask = (service, body, options = {}) => new Promise((resolve) => {
    waiting.push(resolve);
    channel.sendToQueue(service, body, { replyTo: inbox, mandatory: true, ...options });
  });
  const results = [];
  const show = (m) => results.push([m.content.length, m.content.length < 100 ? m.content.toString() : '', m.properties.contentType || null,
    m.properties.correlationId.length, m.properties.headers]);
  show(await ask('helpers.echo', Buffer.from('{"a": 1}'), { correlationId: 'node' }));
  show(await ask('helpers.echo', Buffer.from('hello')));
  show(await ask('helpers.echo', Buffer.alloc(0)));
  show(await ask('helpers.echo', Buffer.alloc(10 * 1024 * 1024, 'x')));
  show(await ask('orders.price', Buffer.from('{"item": "boat"}')));
  show(await ask('helpers.echo', Buffer.from('1'), { headers: { n: 1, f: 1.5, b: true, z: null, a: [1, 'x'], o: { k: 2 },
    t: { '!': 'timestamp', value: 1700000000 }, d: { '!': 'decimal', value: { digits: 150, places: 2 } }, big: 2 ** 40, buf: Buffer.from([255, 0]),
    short: { '!': 'short', value: 3 }, byte: { '!': 'byte', value: 4 }, fl: { '!': 'float', value: 1.5 } } }));
  for (const headers of [{ callback: 'my.callback' }, { source: 'by-convention.my-service' }])
    channel.sendToQueue('zato.ping', Buffer.alloc(0), { correlationId: 'node-' + Object.keys(headers)[0], replyTo: 'callbacks', headers });
  await channel.waitForConfirms();
  await connection.close();
  console.log(JSON.stringify(results));
})().catch((error) => { console.error(error); process.exit(1); });
"""


def node(script: str, folder: Path, url: str) -> str:
    (folder / "script.js").write_text(script)
    done = subprocess.run(
        ["node", "script.js"],
        cwd=folder,
        env={"PATH": "/usr/bin:/usr/local/bin:/bin", "AMQP_URL": url},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_amqplib(daemon: Process, rabbitmq_url: str, node_modules: Path) -> None:
    echo, text, empty, big, failed, headers = json.loads(node(NODE, node_modules, rabbitmq_url))
    ok = {"service": "helpers.echo", "status": "ok"}
    assert echo == [7, '{"a":1}', "application/json", 4, ok]
    assert text == [5, "hello", "text/plain", 32, ok]
    assert empty == [0, "", "text/plain", 32, ok]
    assert big == [10 * 1024 * 1024, "", "text/plain", 32, ok]
    assert (failed[2], failed[4]) == ("application/problem+json", {"service": "orders.price", "status": "error"})
    assert headers[1] == "1"
    daemon.wait_for('my.callback: I received \'{"pong":"zato"}\' (CID node-callback)')
    daemon.wait_for('by-convention.my-service-async-callback: I received \'{"pong":"zato"}\' (CID node-source)')


def test_the_protocols_example_for_pika(daemon: Process, rabbitmq_url: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example("python")],
        env=environment | {"AMQP_URL": rabbitmq_url},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    check_example(done.stdout, done.stderr)
    accepted = done.stdout.splitlines()[1].split()[1]
    daemon.wait_for(f'my.callback: I received \'{{"pong":"zato"}}\' (CID {accepted})')


def test_the_protocols_example_for_amqplib(daemon: Process, rabbitmq_url: str, node_modules: Path) -> None:
    output = node(example("javascript"), node_modules, rabbitmq_url)
    check_example(output, "")
    accepted = output.splitlines()[1].split()[1]
    daemon.wait_for(f"orders.place-async-callback: keyboard costs 49.90 (CID {accepted})")


def check_example(output: str, errors: str) -> None:
    assert re.fullmatch(
        r'orders\.price ok [-0-9a-f]{36} \{"item":"screen","total":"438\.00"\}\naccepted [-0-9a-f]{36}\nnobody hosts no\.such-service\n',
        output,
    ), output + errors


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_a_client_in(language: str, daemon: Process, rabbitmq_url: str, tmp_path: Path) -> None:
    """The document's example where it has one: replies on an own queue, a failure, callbacks by name and by convention, nobody there."""
    chosen = LANGUAGES[language]
    if chosen.client is None:
        source = tmp_path / f"Example.{language}"
        source.write_text(example(language))
    else:
        source = CLIENTS / chosen.client
    output = chosen.run(source, tmp_path, rabbitmq_url)
    found = re.fullmatch(
        r'orders\.price ok [-0-9a-z]+ \{"item":"screen","total":"438\.00"\}\n'
        r'orders\.price error [-0-9a-z]+ \{"type": "urn:ackback:problem:rejected",.*\}\n'
        r"accepted (.*)\naccepted (.*)\nnobody hosts no\.such-service\n",
        output,
    )
    assert found, output
    daemon.wait_for(f'my.callback: I received \'{{"item":"keyboard","total":"49.90"}}\' (CID {found[1]})')
    daemon.wait_for(f"orders.place-async-callback: keyboard costs 49.90 (CID {found[2]})")


@pytest.mark.parametrize("language", ["python", "javascript", "java", "go"])
def test_an_rpc_server_that_echoes_nothing_but_the_correlation_id_is_a_target_with_a_callback_in(
    language: str,
    daemon: Process,
    ackback: Callable[..., subprocess.CompletedProcess[str]],
    rabbitmq_url: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    if language == "javascript":
        folder = request.getfixturevalue("node_modules")
        command, environment = ["node", str(CLIENTS / "server.js")], {"NODE_PATH": str(folder / "node_modules")}
    elif language == "python":
        command, environment = [sys.executable, str(CLIENTS / "server.py")], {}
    else:
        command, environment = LANGUAGES[language].command(CLIENTS / LANGUAGES[language].server, tmp_path)
    environment |= {"PATH": os.environ["PATH"], "AMQP_URL": rabbitmq_url.removesuffix("/")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, process_group=0) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "serving\n"
        try:
            sent = ackback("send", "rpc_queue", "21", "--callback", "my.callback", "--no-echo")
            daemon.wait_for(f"my.callback: I received '42' (CID {sent.stdout.strip()})")
            assert ackback("call", "rpc_queue", "4").stdout == "8\n"
            refused = ackback("send", "rpc_queue", "1", "--callback", "a", "--callback", "b", "--no-echo")
            assert refused.returncode == 1
            assert (
                "'rpc_queue' echoes nothing, so the queue that it replies to says for which callback" in refused.stderr
            )
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
                connection.channel().queue_delete("rpc_queue")


CHECKOUT = """
    import asyncio
    from typing import Any

    from broker import Service


    class Checkout(Service):
        name = "shop.checkout"
        durable = True

        async def handle(self, item: str) -> Any:
            reserved, credit = await asyncio.gather(self.call("stock.reserve", item), self.call("credit.check", item))
            return [reserved, credit, await self.wait_for("approved")]
"""


def test_foreign_servers_are_steps_and_foreign_clients_send_signals(
    project: Callable[..., Path], start: Callable[..., Process], rabbitmq_url: str, node_modules: Path
) -> None:
    project({"shop.py": CHECKOUT})
    start("run").wait_for("ready: ")
    environment = os.environ | {"AMQP_URL": rabbitmq_url, "NODE_PATH": str(node_modules / "node_modules")}
    commands = ([sys.executable, "-c", example("python step"), "c1"], ["node", "-e", example("javascript step")])
    servers = [subprocess.Popen(command, env=environment) for command in commands]
    client = PikaClient(rabbitmq_url)
    try:
        for queue in ("stock.reserve", "credit.check"):
            wait_until(lambda queue=queue: has_consumer(client, queue))
        properties, body = client.ask("shop.checkout", "tea", "exclusive", correlation_id="c1")
        assert (properties.headers["status"], json.loads(body)) == (
            "ok",
            [{"reserved": "tea"}, {"good": True}, "by Ann"],
        )
    finally:
        for server in servers:
            server.kill()
            server.wait()
        for queue in ("stock.reserve", "credit.check"):
            client.channel.queue_delete(queue)
        client.connection.close()


def has_consumer(client: PikaClient, queue: str) -> bool:
    try:
        return bool(client.channel.queue_declare(queue, passive=True).method.consumer_count)
    except pika.exceptions.ChannelClosedByBroker:
        client.channel = client.connection.channel()
        client.channel.confirm_delivery()
        return False
