"""What a person types, and what is printed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

from tests.integration.conftest import TIMEOUT, Process
from tests.rabbitmq import Rabbit, free_port

Project = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def daemon(project: Project, start: Callable[..., Process]) -> Process:
    project()
    process = start("run")
    process.wait_for("ready: ")
    return process


def test_send_prints_the_cid(daemon: Process, ackback: Run) -> None:
    done = ackback("send", "zato.ping", "--callback", "my.callback")
    assert (done.returncode, done.stderr) == (0, "")
    daemon.wait_for(f'my.callback: I received \'{{"pong":"zato"}}\' (CID {done.stdout.strip()})')
    # JSON if it parses, else text; - reads standard input.
    for arguments, stdin, logged in (
        (['{"a": 1}'], None, "{'a': 1} (application/json"),
        (["{a: 1}"], None, "'{a: 1}' (text/plain"),
        (["-"], "[1, 2]\n", "[1, 2] (application/json"),
        (["-"], b"\xff\x00", "b'\\xff\\x00' (application/octet-stream"),
        (["NaN"], None, "'NaN' (text/plain"),
        ([], None, "'' (text/plain"),
    ):
        assert ackback("send", "helpers.input-logger", *arguments, input=stdin).returncode == 0
        daemon.wait_for(f"helpers.input-logger: Received {logged}")


def test_send_many(daemon: Process, ackback: Run) -> None:
    done = ackback("send", "helpers.input-logger", "x", "--count", "20")
    assert done.stderr == ""
    assert len(set(done.stdout.split())) == 20
    daemon.wait_for("Received 'x'", 20)


def test_send_many_shows_a_progress_bar_on_a_terminal(
    daemon: Process, tmp_path: Path, environment: dict[str, str]
) -> None:
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "broker", "send", "helpers.input-logger", "x", "--count", "50"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment | {"TERM": "xterm"}, stdin=far, stdout=far, stderr=far
    )
    os.close(far)
    output = b""
    while True:
        try:
            output += os.read(near, 65536)
        except OSError:
            break
    assert process.wait(TIMEOUT) == 0
    os.close(near)
    assert b"50/50" in output
    assert b"50 requests accepted by helpers.input-logger" in output


def test_call_prints_the_response(daemon: Process, ackback: Run) -> None:
    assert json.loads(ackback("call", "zato.ping").stdout) == {"pong": "zato"}
    assert ackback("call", "helpers.echo", "text").stdout == "text\n"
    assert ackback("call", "helpers.echo", "-", input="42").stdout == "42\n"
    done = ackback("call", "orders.price", '{"item": "screen", "quantity": "many", "secret": "hunter2"}')
    assert (done.returncode, done.stdout) == (1, "")
    assert "ackback: orders.price failed: Invalid input: quantity: Input should be a valid integer" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr
    done = ackback("call", "orders.price", '{"item": "boat"}')
    assert (done.returncode, done.stderr) == (
        1,
        "ackback: orders.price failed: Rejected: there is no price for 'boat'\n",
    )


def test_a_mistyped_service_is_named(daemon: Process, ackback: Run) -> None:
    for command in ("send", "call"):
        done = ackback(command, "zato.pink")
        assert done.returncode == 1
        assert done.stderr.startswith(
            "ackback: nothing is listening at 'zato.pink': there is no such queue, so no daemon hosts a service"
        )
        assert len(done.stderr.splitlines()) == 1
        done = ackback(command, "zato ping")
        told = (
            "ackback: 'zato ping' cannot be a service's name: ' ' is not allowed; use letters, digits and . _ : / -\n"
        )
        assert (done.returncode, done.stderr) == (2, told)


def test_call_says_that_nobody_is_there_and_gives_up_in_time(ackback: Run, project: Project, rabbitmq_url: str) -> None:
    project({})
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_declare("test.silent", durable=True)
        done = ackback("call", "test.silent", "--timeout", "2.5")
        sent = ackback("send", "test.silent")
        connection.channel().queue_delete("test.silent")
    assert done.returncode == 1
    told, gave_up = done.stderr.splitlines()
    assert told == "ackback: no daemon consumes 'test.silent' at the moment: waiting for one"
    assert gave_up.startswith("ackback: no reply from 'test.silent' within 2.5 s (CID ")
    assert sent.returncode == 0
    assert sent.stderr == "ackback: no daemon consumes 'test.silent' at the moment: the request waits in its queue\n"


def test_services_lists_what_would_be_hosted(project: Project, ackback: Run) -> None:
    project()
    done = ackback("services")
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["NAME"] == ["CLASS", "QUEUE", "CALLBACK", "FOUND", "INPUT", "OUTPUT"]
    assert lines["orders.place"] == [
        "services.orders.Place",
        "orders.place",
        "orders.place-async-callback",
        "here",
        "services.orders.Order",
        "str",
    ]
    assert lines["zato.ping"][2:4] == ["-", "-"]


def test_services_says_where_the_callback_was_found(project: Project, ackback: Run, rabbitmq_url: str) -> None:
    project(
        {"source.py": "from broker import Service\nclass S(Service):\n  name = 'a.source'\n  def handle(self): pass"}
    )
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("a.source-async-callback", durable=True, arguments={"x-queue-type": "quorum"})
        try:
            assert "a.source-async-callback  elsewhere" in ackback("services").stdout
            assert "ok      callback of a.source: a.source-async-callback (elsewhere)" in ackback("check").stdout
        finally:
            channel.queue_delete("a.source-async-callback")


def test_check_is_fine(daemon: Process, ackback: Run) -> None:
    done = ackback("check")
    assert done.returncode == 0
    assert all(line.startswith("ok      ") for line in done.stdout.splitlines())
    assert "guest:guest" not in done.stdout
    assert "ok      publish and consume" in done.stdout


def test_check_names_a_queue_with_other_arguments(
    project: Project, ackback: Run, start: Callable[..., Process], rabbitmq_url: str
) -> None:
    project({"a.py": "from broker import Service\nclass A(Service):\n  name = 'test.other'\n  def handle(self): pass"})
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_declare("test.other", durable=True)
    done = ackback("check")
    assert done.returncode == 1
    assert "FAILED  queue test.other: queue 'test.other' exists with other arguments: x-" in done.stdout
    assert "rabbitmqctl delete_queue test.other" in done.stdout
    run = start("run")
    assert run.exit_code() == 2
    assert "ackback: queue 'test.other' exists with other arguments" in "\n".join(run.lines)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://guest:hunter2@{host}/", "refuses user 'guest': the name or the password is wrong"),
        ("amqp://nobody:hunter2@{host}/", "refuses user 'nobody'"),
        ("amqp://guest:guest@{host}/no-such-vhost", "does not let user 'guest' into virtual host 'no-such-vhost'"),
        ("amqp://guest:hunter2@no-such-host.invalid/", "the host name 'no-such-host.invalid' cannot be resolved"),
        ("amqp://guest:hunter2@127.0.0.1:{port}/", "is not there: the connection was refused"),
        ("amqps://guest:hunter2@{host}/", "no TLS connection"),
    ],
)
def test_a_url_that_leads_nowhere(ackback: Run, project: Project, rabbitmq_url: str, url: str, words: str) -> None:
    project()
    broker = urlsplit(rabbitmq_url)
    wrong = url.format(host=f"{broker.hostname}:{broker.port}", port=free_port())
    for command in (["send", "x"], ["call", "x"], ["check"]):
        done = ackback(*command, ACKBACK_BROKER__URL=wrong)
        assert done.returncode == 1, done.stdout + done.stderr
        assert words in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert len((done.stderr or done.stdout.partition("FAILED")[2]).splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[worker]\nproceses = 2", "unknown key worker.proceses; did you mean worker.processes?"),
        ("[worker", "is not valid TOML"),
        ("[broker]\nurl = 'http://u:hunter2@h/'", "'http://u:***@h/' has the scheme 'http'"),
    ],
)
def test_a_wrong_configuration_is_exit_2(ackback: Run, tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(config)
    for command in ("run", "services", "send x", "call x"):
        done = ackback(*command.split())
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert "hunter2" not in done.stderr


def test_misuse_is_exit_2(ackback: Run, tmp_path: Path) -> None:
    for arguments in (
        ["sned"],
        ["send"],
        ["call", "x", "--timeout", "soon"],
        ["run", "--workers", "0"],
        ["send", "x", "--count", "0"],
    ):
        done = ackback(*arguments)
        assert done.returncode == 2
        assert "Error" in done.stderr
    done = ackback("run", "nowhere")
    assert (done.returncode, "there is neither a services folder" in done.stderr) == (2, True)
    done = ackback("run", "--config", "missing.toml")
    assert (done.returncode, done.stderr) == (2, "ackback: there is no configuration file missing.toml\n")


def test_a_traceback_only_with_debug(ackback: Run, tmp_path: Path) -> None:
    arguments: list[Any] = ["send", "x", "--config", "missing.toml"]
    assert "Traceback" not in ackback(*arguments).stderr
    assert "Traceback" in ackback(*arguments, "--debug").stderr


def test_help_and_version(ackback: Run) -> None:
    done = ackback("--help")
    assert done.returncode == 0
    for command in ("run", "send", "call", "services", "check"):
        assert f"  {command} " in done.stdout
        assert ackback(command, "--help").returncode == 0
    assert ackback("--version").stdout.startswith("ackback ")


def test_a_user_who_may_not_declare(ackback: Run, project: Project, our_rabbit: Rabbit) -> None:
    our_rabbit.ctl("add_user", "limited", "hunter2")
    our_rabbit.ctl(
        "set_permissions", "-p", our_rabbit.vhost, "limited", "^(dead-letters|ackback|callbacks)", ".*", ".*"
    )
    limited_user = our_rabbit.url.replace("guest:guest@", "limited:hunter2@")
    project({"a.py": "from broker import Service\nclass A(Service):\n  name = 'test.denied'\n  def handle(self): pass"})
    done = ackback("check", ACKBACK_BROKER__URL=limited_user)
    assert done.returncode == 1
    # Before 3.11 RabbitMQ does not say which permission it is.
    assert re.search(
        "the user may not declare queue 'test.denied': it lacks the configure (or read )?permission", done.stdout
    )
    done = ackback("run", ACKBACK_BROKER__URL=limited_user)
    assert done.returncode == 2
    assert "rabbitmqctl set_permissions" in done.stderr
    our_rabbit.ctl("set_permissions", "-p", our_rabbit.vhost, "limited", ".*", ".*", "^(ackback|callbacks)")
    done = ackback("check", ACKBACK_BROKER__URL=limited_user)
    assert done.returncode == 1
    assert re.search("queue 'test.denied': it lacks the (configure or )?read permission", done.stdout)
    our_rabbit.ctl("set_permissions", "-p", our_rabbit.vhost, "limited", ".*", "^ackback", ".*")
    done = ackback("check", ACKBACK_BROKER__URL=limited_user)
    assert done.returncode == 1
    assert "access to exchange 'amq.default'" in done.stdout
    our_rabbit.ctl("delete_user", "limited")
