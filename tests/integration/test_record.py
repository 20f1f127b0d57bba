"""`ackback trace`, `events` and `top`, as they are used."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pika
import pytest

from tests.integration.conftest import TIMEOUT, Process, forget_record, wait_until
from tests.rabbitmq import Rabbit

Ackback = Callable[..., subprocess.CompletedProcess[str]]
SHOP = r"""
    from broker import Retry, Service

    class Order(Service):
        name = 'shop.order'

        def handle(self):
            self.invoke_async('shop.price', self.request.text, callback='shop.priced')

    class Price(Service):
        name = 'shop.price'
        retry = Retry(attempts=2, first=1, jitter=0)

        def handle(self):
            if self.request.text == 'boat':
                raise LookupError('no price for a \x1b[31mboat\u202e')
            return 3

    class Priced(Service):
        name = 'shop.priced'

        def handle(self):
            pass

        def handle_error(self, error):
            pass
"""


@pytest.fixture
def daemon(project: Callable[..., Path], start: Callable[..., Process], rabbitmq_url: str) -> Process:
    """A daemon with a record of its own: what earlier tests did is forgotten."""
    forget_record(rabbitmq_url)
    project({"shop.py": SHOP})
    process = start("run")
    process.wait_for("ready: ")
    return process


def traced(ackback: Ackback, cid: str, expected: str) -> str:
    """What `trace` prints, once what is expected is in it."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        done = ackback("trace", cid)
        if expected in done.stdout:
            return done.stdout
        assert time.monotonic() < deadline, done.stdout + done.stderr


def test_the_trace_of_an_order_that_failed(daemon: Process, ackback: Ackback) -> None:
    cid = ackback("send", "shop.order", "boat", "--callback", "shop.priced").stdout.strip()
    shown = traced(ackback, cid, "callback, of a failure shop.priced")
    time_, cid_ = r"(?:\d+ µs|[\d.]+ m?s)", r"[0-9a-f]{32}"
    error = r"LookupError: no price for a \\x1b\[31mboat\\u202e"
    patterns = [
        rf"shop\.order  {cid}  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}}Z",
        rf"├── handled shop\.order  ok  \+{time_}  took {time_}, waited {time_}",
        rf"├── callback shop\.priced  ok  \+{time_}  took {time_}, waited {time_}",
        rf"└── shop\.price  {cid_}  \+{time_}",
        rf"    ├── handled shop\.price  retried  \+{time_}  took {time_}, waited {time_}; again in 1 s  {error}",
        rf"    ├── handled shop\.price, attempt 2  error  \+{time_}  took {time_}, waited {time_}  {error}",
        rf"    ├── callback, of a failure shop\.priced  ok  \+{time_}  took {time_}, waited {time_}",
        rf"    └── dead letter  error  \+{time_}",
    ]
    lines = shown.splitlines()
    assert len(lines) == len(patterns), shown
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"
    child = lines[3].split()[2]
    assert [one.split()[1] for one in ackback("trace", child).stdout.splitlines()[:1]] == [cid]
    tree = json.loads(ackback("trace", child, "--json").stdout)
    assert (tree["cid"], tree["callbacks"], tree["children"][0]["cid"]) == (cid, ["shop.priced"], child)
    assert [one["outcome"] for one in tree["children"][0]["handlings"][:2]] == ["retried", "error"]
    assert [one["reason"] for one in tree["children"][0]["dead"]] == ["error"]


def test_a_cid_that_nobody_knows_and_an_age_that_is_none(daemon: Process, ackback: Ackback) -> None:
    cid = ackback("send", "shop.order", "tea").stdout.strip()
    traced(ackback, cid, "callback shop.priced")
    done = ackback("trace", "no-such-cid")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"ackback: nothing is known of 'no-such-cid': the record goes back to \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ, "
        r"and has [\d,]+ events since then\n",
        done.stderr,
    )
    done = ackback("trace", cid, "--since", "yesterday")
    assert done.returncode == 2
    assert "'yesterday' is no age; write 90s, 10m, 2h or 7d" in done.stderr
    assert ackback("trace").returncode == 2


def test_events_by_service_outcome_and_age(daemon: Process, ackback: Ackback) -> None:
    cids = [ackback("send", "shop.order", what).stdout.strip() for what in ("tea", "boat")]
    for cid in cids:
        traced(ackback, cid, "callback")
    done = ackback("events", "--service", "shop.pri*", "--outcome", "error", "--since", "5m")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z  handled   shop\.price +error +[\d.]+ ms, attempt 2  LookupError: .* \(CID [0-9a-f]{32}\)\n",
        done.stdout.splitlines(keepends=True)[-1],
    ), done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    parsed = [json.loads(line) for line in ackback("events", "--json", "--since", "5m").stdout.splitlines()]
    assert {"sent", "handled", "dead", "daemon"} <= {one["event"] for one in parsed}
    assert {one["cid"] for one in parsed if one["event"] == "sent" and one["target"] == "shop.order"} >= set(cids)


def test_events_that_are_followed(daemon: Process, start: Callable[..., Process], ackback: Ackback) -> None:
    following = start("events", "--follow", "--since", "1s")
    cid = ackback("send", "shop.order", "tea").stdout.strip()
    assert "callback" in following.wait_for("shop.priced")[0]
    following.wait_for(f"(CID {cid})", 2)


def test_a_trace_that_is_followed_goes_on(daemon: Process, start: Callable[..., Process], rabbitmq_url: str) -> None:
    following = start("trace", "order-4711", "--follow")
    following.wait_for("nothing is known of 'order-4711'")
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        properties = pika.BasicProperties(correlation_id="order-4711")
        connection.channel().basic_publish("", "shop.order", b"boat", properties)
    following.wait_for("handled shop.order  ok")
    following.wait_for("handled shop.price  retried")
    following.wait_for("callback, of a failure shop.priced")
    following.signal(signal.SIGINT)
    assert following.exit_code() == 130


def test_top_without_a_terminal_is_one_table(daemon: Process, ackback: Ackback) -> None:
    cid = ackback("send", "shop.order", "boat").stdout.strip()
    traced(ackback, cid, "dead letter")
    shown = ackback("top").stdout
    (price,) = [line.split() for line in shown.splitlines() if line.strip().startswith("shop.price ")]
    assert price[-4:] == ["0", "0", "0", "1"]
    assert price[4] == "2"  # failed: both attempts
    daemons = rf":{daemon.process.pid}:[0-9a-f]{{4}} +\S+ +lives +3 +\d+ +[\d.]+"
    wait_until(lambda: re.search(daemons, ackback("top").stdout))  # until then it has only started


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str, **more: str) -> None:
        self.screen, other = pty.openpty()
        command = [sys.executable, "-m", "broker", *arguments]
        env = environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "400"} | more
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=other, stdout=other, stderr=other, start_new_session=True
        )
        os.close(other)
        self.shown = ""

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not re.search(pattern, self.shown):
            ready, _, _ = select.select([self.screen], [], [], deadline - time.monotonic())
            assert ready, self.shown[-3000:]
            self.shown = (self.shown + os.read(self.screen, 65536).decode(errors="replace"))[-50_000:]
            self.shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown)

    def end(self) -> int:
        """Read on until it has ended; its exit code."""
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self.screen], [], [], 0.1)[0]:
                with suppress(OSError):  # Linux says so of a terminal that nobody holds any more
                    os.read(self.screen, 65536)
        return self.process.returncode

    def press(self, keys: str) -> None:
        os.write(self.screen, keys.encode())


@pytest.fixture
def terminal(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def opener(*arguments: str, **more: str) -> Terminal:
        opened.append(Terminal(tmp_path, environment, *arguments, **more))
        return opened[-1]

    yield opener
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.screen)


def test_top_on_a_terminal_is_live_and_q_ends_it(
    daemon: Process, ackback: Ackback, terminal: Callable[..., Terminal]
) -> None:
    top = terminal("top")
    top.wait_for(r"shop\.price ")
    top.press("f")
    top.wait_for(r"by failures")
    cid = ackback("send", "shop.order", "boat").stdout.strip()
    traced(ackback, cid, "dead letter")
    top.wait_for(r"shop\.price +\S+ +\S+ +\S+ +2 ")
    top.press("q")
    assert top.end() == 0


def test_what_does_not_fit_on_the_screen_is_counted(
    project: Callable[..., Path], start: Callable[..., Process], terminal: Callable[..., Terminal], rabbitmq_url: str
) -> None:
    forget_record(rabbitmq_url)  # each daemon of it takes a line
    services = "".join(
        f"class S{n}(Service):\n    name = 'service.{n:02}'\n    def handle(self): pass\n" for n in range(40)
    )
    project({"many.py": f"from broker import Service\n{services}"})
    start("run").wait_for("ready: ")
    top = terminal("top", LINES="24")
    top.wait_for(r"service\.00 ")
    top.wait_for(r"… 28 more")
    assert "service.11" in top.shown and "service.12" not in top.shown
    top.press("q")
    assert top.end() == 0


def test_there_is_no_record_yet_and_then_no_permission_for_one(
    our_rabbit: Rabbit, project: Callable[..., Path], start: Callable[..., Process], ackback: Ackback
) -> None:
    """Where the stream may not be declared, that is one warning, and all else works."""
    folder = project({"shop.py": SHOP})
    our_rabbit.ctl("add_vhost", "unrecorded")
    our_rabbit.ctl("add_user", "shop", "hunter2")
    allowed = r"^(shop\..*|callbacks|dead-letters|ackback\.(undertaker|due|later.*|quarantine.*|reply.*))$"
    our_rabbit.ctl("set_permissions", "-p", "unrecorded", "shop", allowed, r"^(amq\.default|ackback\..*)$", allowed)
    our_rabbit.ctl("set_permissions", "-p", "unrecorded", "guest", ".*", ".*", ".*")
    try:
        url = our_rabbit.at("unrecorded")
        (folder / "config.toml").write_text(f"[broker]\nurl = '{url}'")
        for command in (("trace", "c"), ("events",), ("top",)):
            done = ackback(*command)
            assert (done.returncode, done.stderr) == (
                1,
                "ackback: nothing is recorded: there is no stream 'ackback.events' (a daemon declares it, unless [events] enabled = false)\n",
            )
        (folder / "config.toml").write_text(f"[broker]\nurl = '{url.replace('guest:guest@', 'shop:hunter2@')}'")
        daemon = start("run")
        daemon.wait_for("ready: ")
        (warning,) = daemon.wait_for("nothing is recorded for `ackback trace` and the page: ")
        assert "may not" in warning
        assert "ackback.events" in warning
        assert ackback("call", "shop.price", "tea").stdout == "3\n"
        assert ackback("send", "shop.order", "tea").returncode == 0
        daemon.end()
        assert len([line for line in daemon.lines if "WARNING" in line]) == 1, daemon.lines
        (folder / "config.toml").write_text(f"[broker]\nurl = '{our_rabbit.url}'")
    finally:
        our_rabbit.ctl("delete_user", "shop")
        our_rabbit.ctl("delete_vhost", "unrecorded")


def test_a_recorded_stream_with_other_arguments_is_written_to_as_it_is(
    project: Callable[..., Path], start: Callable[..., Process], ackback: Ackback, daemon: Process
) -> None:
    (daemon.wait_for("ready: "))
    wait_until(lambda: ackback("events", "--json").returncode == 0)
    second = start("run", ACKBACK_EVENTS__MAX_AGE="3600")
    second.wait_for("ready: ")
    (warning,) = second.wait_for("WARNING")
    assert "x-max-age" in warning
    assert "Events are recorded there as it is" in warning


def test_a_connection_that_the_record_has_cost_is_none_of_the_works(
    project: Callable[..., Path], start: Callable[..., Process], ackback: Ackback, our_rabbit: Rabbit
) -> None:
    """As where RabbitMQ ends one that publishes to a stream which is deleted at that moment."""
    url = {"ACKBACK_BROKER__URL": our_rabbit.url}
    project({"shop.py": SHOP})
    process = start("run", **url)
    process.wait_for("ready: ")

    def connections() -> list[str]:
        lines = our_rabbit.ctl("list_connections", "-q", "pid", "vhost", "client_properties").splitlines()
        found = [line.split("\t") for line in lines if "ackback record" in line]
        return [pid for pid, vhost, _ in found if vhost == our_rabbit.vhost]

    wait_until(lambda: len(connections()) == 1)
    (ended,) = connections()
    our_rabbit.ctl("close_connection", ended, "Stream not found for queue 'ackback.events'")
    wait_until(lambda: connections() not in ([], [ended]))
    cid = ackback("send", "shop.order", "tea", "--callback", "shop.priced", **url).stdout.strip()
    wait_until(lambda: "callback shop.priced" in ackback("trace", cid, **url).stdout)
    assert not [line for line in process.lines if "WARNING" in line or "ERROR" in line], process.lines
