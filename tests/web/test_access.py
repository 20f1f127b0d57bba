"""Who gets in, what may be done, and what happens when the page is asked too much."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pika
import pytest

from broker.protocol.events import EVENTS
from tests.integration.conftest import TIMEOUT, Process, wait_until
from tests.rabbitmq import Rabbit, free_port
from tests.support import run
from tests.web.conftest import Site, basic

Web = Callable[..., Site]
Start = Callable[..., Process]
Ackback = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dead_letter(shop: Path, start: Start, rabbitmq_url: str) -> None:
    """One dead letter, of a daemon that has ended."""
    daemon = start("run")
    daemon.wait_for("ready: ")
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().basic_publish("", "shop.price", b"no order", pika.BasicProperties(correlation_id="4711"))
    daemon.wait_for("invalid input")
    daemon.end()


def action(site: Site) -> str:
    (group,) = site.json("/api/failures")["groups"]
    return f"/failures/groups/{group['key']}/drop"


def left(site: Site) -> int:
    count: int = site.json("/api/failures")["count"]
    return count


def test_what_no_form_of_ours_asks_for_is_not_done(dead_letter: None, web: Web) -> None:
    site = web()
    path, token = action(site), site.token("/failures")
    drop_one = f"/failures/{site.json(path.removesuffix('/drop').replace('/failures', '/api/failures', 1))['dead_letters'][0]['key']}/drop"
    for one in (path, drop_one, path.replace("drop", "replay"), "/invoke/shop.price", "/jobs/1/stop"):
        assert site.post(one, "") == 403
        assert site.post(one, "0" * 64) == 403
        assert site.ask("POST", one, {}, Origin=site.url)[0] == 403
        assert site.post(one, token, Origin="http://evil.example") == 403
        assert site.post(one, token, Origin="null") == 403
        assert site.post(one, token, Origin=f"http://127.0.0.1:{site.port + 1}") == 403
        assert site.ask("POST", one, {"token": token})[0] == 403  # no Origin at all
        assert site.ask("GET", one)[0] in (404, 405)
        assert site.ask("PUT", one, {"token": token}, Origin=site.url)[0] == 405
    of_another = site.token("/failures")
    site.cookie = ""
    theirs = site.token("/failures")
    assert theirs != of_another and site.post(path, of_another) == 403
    assert left(site) == 1
    assert site.post(path, theirs) == 303
    wait_until(lambda: left(site) == 0)


def test_a_token_of_another_start_is_refused(dead_letter: None, web: Web) -> None:
    before, after = web(), web()
    token = before.token("/failures")
    after.cookie = before.cookie
    assert after.post(action(after), token) == 403
    assert left(after) == 1


def test_reading_only(dead_letter: None, web: Web) -> None:
    site = web("--read-only")
    path = action(site)
    assert "<form method" not in site.ask("GET", "/failures")[2]
    writable = web()
    site.cookie, token = writable.cookie, writable.token("/failures")
    assert site.post(path, token) == 403
    assert left(site) == 1


def test_names_that_are_made_to_lead_here_are_refused(shop: Path, web: Web) -> None:
    site = web()
    assert site.ask("GET", "/", Host=f"evil.example:{site.port}")[0] == 421
    for host in ("localhost", "127.0.0.1", "[::1]", f"localhost:{site.port}"):
        assert site.ask("GET", "/", Host=host)[0] == 200


def test_a_password(shop: Path, web: Web) -> None:
    site = web("--host", "0.0.0.0", ACKBACK_WEB__PASSWORD="schlüssel")
    for path in ("/", "/api/services", "/metrics", "/static/page.css", "/nothing"):
        status, headers, _ = site.ask("GET", path)
        assert status == 401 and headers["www-authenticate"].startswith("Basic ")
        for wrong in (
            basic("schlussel"),
            basic(""),
            "Basic",
            "Basic !",
            "Bearer schlüssel".encode().decode("latin-1"),
            basic("schlüssel "),
        ):
            assert site.ask("GET", path, Authorization=wrong)[0] == 401
    assert site.ask("GET", "/", Authorization=basic("schlüssel"), Host="ackback.example")[0] == 200
    assert site.ask("GET", "/healthz")[0] in (200, 503)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "some.host.example"])
def test_without_a_password_it_is_for_this_machine_alone(shop: Path, ackback: Ackback, host: str) -> None:
    done = ackback("web", "--host", host)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"ackback: [web] host is {host}, which others can reach: set [web] password (ACKBACK_WEB__PASSWORD), or leave it at 127.0.0.1\n"
    )


def test_a_port_that_is_taken(shop: Path, ackback: Ackback) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ackback("web", "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"ackback: [web] port: 127.0.0.1:{port} cannot be listened on: Address already in use; --port names another\n"
    )


def test_the_extra_is_not_installed(shop: Path, ackback: Ackback) -> None:
    (shop / "sitecustomize.py").write_text(
        "import importlib.util\nbefore = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'starlette' else before(name, *rest)\n"
    )
    done = ackback("web", PYTHONPATH=str(shop))
    assert done.returncode == 2
    assert done.stderr == "ackback: the page needs starlette, which is not installed: pip install 'ackback[web]'\n"


def test_rabbitmq_is_not_there_or_lets_nobody_read(shop: Path, web: Web) -> None:
    port = free_port()
    site = web(ACKBACK_BROKER__URL=f"amqp://127.0.0.1:{port}/")
    why = f"RabbitMQ at 127.0.0.1:{port} is not there: the connection was refused"
    assert _until(site, f"The record is not being read: {why}")
    assert site.ask("GET", "/healthz")[0] == 503
    assert f"cannot be looked through: {why}" in site.ask("GET", "/failures")[2]
    assert site.ask("GET", "/invocations")[0] == site.ask("GET", "/daemons")[0] == 200


def _until(site: Site, text: str) -> str:
    found = ""

    def is_there() -> bool:
        nonlocal found
        found = site.ask("GET", "/")[2]
        return text in found

    wait_until(is_there)
    return found


def test_a_user_who_may_not_read_the_record(shop: Path, web: Web, our_rabbit: Rabbit, start: Start) -> None:
    start("run").wait_for("ready: ")
    with suppress(Exception):
        our_rabbit.ctl("add_user", "reader", "reader")
    our_rabbit.ctl("set_permissions", "-p", our_rabbit.vhost, "reader", ".*", "^$", "^dead-letters$")
    site = web(ACKBACK_BROKER__URL=our_rabbit.url.replace("guest:guest", "reader:reader"))
    said = _until(site, "refused")
    assert "The record is not being read: " in said and "read" in said
    assert "shop.price" not in said
    assert "There are no dead letters." in site.ask("GET", "/failures")[2]


def test_an_index_goes_on_where_it_was(shop: Path, web: Web, start: Start, ackback: Ackback) -> None:
    daemon = start("run")
    daemon.wait_for("ready: ")
    site = web("--index", "index.db")
    cid = ackback("send", "shop.order", '{"item": "tea"}').stdout.strip()
    wait_until(lambda: site.ask("GET", f"/invocations/{cid}")[0] == 200)
    site.process.signal(signal.SIGTERM)
    assert site.process.exit_code() == 0
    other = ackback("send", "shop.order", '{"item": "tea"}').stdout.strip()
    (shop / "index.db").chmod(0o600)
    one, two = web("--index", "index.db"), web("--index", "index.db")
    for again in (one, two):
        wait_until(lambda again=again: again.ask("GET", f"/invocations/{other}")[0] == 200)
        assert again.ask("GET", f"/invocations/{cid}")[0] == 200
        story = again.json(f"/api/invocations/{cid}")
        assert len(story["handlings"]) == 1  # nothing is there twice


def test_a_record_that_is_deleted_is_read_anew(
    shop: Path, web: Web, start: Start, ackback: Ackback, rabbitmq_url: str
) -> None:
    start("run").wait_for("ready: ")
    site = web()
    before = ackback("send", "shop.order", '{"item": "tea"}').stdout.strip()
    wait_until(lambda: site.ask("GET", f"/invocations/{before}")[0] == 200)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_delete(EVENTS)
    wait_until(lambda: site.ask("GET", f"/invocations/{before}")[0] == 404)
    after: list[str] = []

    def is_told() -> bool:
        after.append(ackback("send", "shop.order", '{"item": "tea"}').stdout.strip())
        return any(site.ask("GET", f"/invocations/{cid}")[0] == 200 for cid in after)

    wait_until(is_told, 2 * TIMEOUT)
    wait_until(lambda: site.ask("GET", "/healthz")[0] == 200)


@pytest.mark.parametrize("place", ["nowhere/index.db", "/proc/version", "."])
def test_an_index_in_a_place_that_cannot_be_written(shop: Path, web: Web, place: str) -> None:
    site = web("--index", place)
    site.process.wait_for(f"{place} cannot be written: ")
    site.process.wait_for("a temporary index is used instead")
    assert site.ask("GET", "/")[0] == 200


def test_an_index_that_is_corrupt_is_made_anew(shop: Path, web: Web) -> None:
    (shop / "index.db").write_bytes(b"\xff" * 100_000)
    site = web("--index", "index.db")
    (said,) = site.process.wait_for("cannot be used as an index")
    assert "file is not a database" in said and "made anew" in said
    assert site.ask("GET", "/")[0] == 200
    site.process.end()
    again = web("--index", "index.db")
    assert not [line for line in again.process.lines if "cannot be used" in line]


def test_a_thousand_readers_and_a_slow_one(shop: Path, web: Web, start: Start) -> None:
    start("run").wait_for("ready: ")
    site = web()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def reader(path: str) -> bytes:
        stream, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        found = await stream.readuntil(b"shop.price") if path.startswith("/live") else await stream.read()
        writer.close()
        return found

    async def slow() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        stream, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1)
        for _ in range(200):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait({asyncio.ensure_future(writer.drain())}, timeout=1)
        return stream, writer

    async def test() -> None:
        _, writer = await slow()
        pages = await asyncio.gather(*(reader("/") for _ in range(1000)))
        assert all(page.startswith(b"HTTP/1.1 200") and b"</html>" in page for page in pages)
        live = await asyncio.gather(*(reader("/live?at=/") for _ in range(1000)))
        assert all(b"event-stream" in one for one in live)
        writer.transport.abort()

    run(test())
    status = Path(f"/proc/{site.process.process.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    assert peak < 300, f"{peak:.0f} MiB"
    assert site.ask("GET", "/")[0] == 200


def test_what_is_not_there(shop: Path, web: Web) -> None:
    site = web()
    for path in (
        "/nothing",
        "/services/nobody",
        "/failures/0123",
        "/failures/groups/0123",
        "/jobs/7",
        "/invocations/4711",
        "/live?at=/nothing",
    ):
        status, headers, text = site.ask("GET", path)
        assert status == 404 and "</html>" in text, path
        assert headers["content-security-policy"].startswith("default-src 'none'")
    for path in ("/api/services/nobody", "/api/failures/0123", "/api/invocations/4711"):
        status, headers, text = site.ask("GET", path)
        assert status == 404 and headers["content-type"] == "application/json" and '"status": 404' in text
    for path in (
        "/invocations?before=x&since=y&outcome=%00&service=%ff",
        "/failures/groups/0?page=-1",
        "/services/%00",
        "/invocations/%ff%fe?x",
        "/live?at=%00",
    ):
        assert site.ask("GET", path)[0] in (200, 404), path
