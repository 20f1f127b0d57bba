"""The README's tutorial, run from the README; the documents' links and permissions; the demonstration."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import ROOT, TIMEOUT, Process, wait_until
from tests.rabbitmq import Rabbit

README = (ROOT / "README.md").read_text()
CID = re.compile(r"\b[0-9a-f]{32}\b")
DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_tutorial(
    project: Callable[..., Path],
    start: Callable[..., Process],
    ackback: Callable[..., subprocess.CompletedProcess[str]],
    rabbitmq_url: str,
    environment: dict[str, str],
) -> None:
    service, foreign, client = blocks("python")
    project({"shop.py": service})
    daemon = start("run")
    daemon.wait_for("ready: ")
    steps = re.findall(r"\$ ackback (.*)\n((?:[^$].*\n)*)", blocks("console")[0])
    assert len(steps) == 4
    for arguments, expected in steps:
        done = ackback(*shlex.split(arguments))
        assert CID.sub("CID", done.stdout + done.stderr) == CID.sub("CID", expected)
    for expected in re.findall(r"(?:INFO|WARNING) +(.*) \(CID", blocks("")[-1]):
        daemon.wait_for(expected)
    for script, printed in (
        (foreign, '1 ok {"item":"tea","total":2.5}\n'),
        (client, "{'item': 'tea', 'total': 2.5}\n"),
    ):
        assert DEFAULT_URL in script
        script = script.replace(DEFAULT_URL, rabbitmq_url)
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        assert (done.stdout, done.stderr) == (printed, "")
    daemon.wait_for("asked for the price", 103)


def test_the_checkout(
    project: Callable[..., Path],
    start: Callable[..., Process],
    ackback: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """As the README has it: sent, its daemon killed, looked at, approved."""
    (checkout,) = blocks("python checkout")
    assert checkout == (ROOT / "examples" / "checkout.py").read_text()
    (console,) = blocks("console checkout")
    shown = re.sub(r"\(?began .*|after .*|until .*|for .*|[+][0-9.]+ .?s|/\S*/(?=services)", "", console)
    project({"checkout.py": checkout})
    daemon = start("run")
    daemon.wait_for("ready: ")
    sent = re.search(r"\$ ackback (send .*)", console)
    assert sent
    cid = ackback(*shlex.split(sent[1])).stdout.strip()
    daemon.wait_for("waits for approval")
    daemon.signal(signal.SIGKILL)
    daemon.exit_code()
    daemon = start("run")
    daemon.wait_for("ready: ")
    # Killed before that was journalled, it is said, and asked for, once more.
    wait_until(lambda: "wait_for" in ackback("runs", "show", cid).stdout)
    story = ackback("runs", "show", cid).stdout
    story = re.sub(r"\(?began .*|after .*|until .*|for .*|[+][0-9.]+ .?s|/\S*/(?=services)", "", story)
    assert [line.split() for line in story.splitlines()[1:]] == [line.split() for line in shown.splitlines()[5:-1]]
    signalled = re.search(r"\$ ackback (signal .*)", console)
    assert signalled
    assert ackback(*shlex.split(signalled[1].replace(CID.findall(console)[0], cid))).returncode == 0
    wait_until(lambda: f"{cid}: done" in ackback("runs", "show", cid).stdout)
    assert '"by Ann"' in ackback("runs", "show", cid).stdout


def test_every_link_leads_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_documented_permissions_are_enough(
    project: Callable[..., Path],
    start: Callable[..., Process],
    ackback: Callable[..., subprocess.CompletedProcess[str]],
    our_rabbit: Rabbit,
) -> None:
    """A user with just these, in a new virtual host: everything is declared, published and consumed."""
    table = (ROOT / "docs" / "running.md").read_text().partition("## Permissions")[2]
    patterns = [re.search(rf"\| {name} \| `(.*)` \|", table) for name in ("configure", "write", "read")]
    allowed = [found[1].replace(r"\|", "|") for found in patterns if found]
    assert len(allowed) == 3
    our_rabbit.ctl("add_vhost", "limited")
    our_rabbit.ctl("add_user", "orders", "hunter2")
    our_rabbit.ctl("set_permissions", "-p", "limited", "orders", *allowed)
    try:
        folder = project({"orders.py": (ROOT / "services" / "orders.py").read_text()})
        url = our_rabbit.at("limited").replace("guest:guest@", "orders:hunter2@")
        (folder / "config.toml").write_text(f"[broker]\nurl = '{url}'")
        daemon = start("run")
        daemon.wait_for("ready: ")
        assert ackback("send", "orders.place", '{"item": "screen"}').returncode == 0
        daemon.wait_for("screen costs 219.00")
        assert ackback("call", "orders.price", '{"item": "boat"}').returncode == 1
        assert ackback("send", "orders.place", '{"item": "boat"}').returncode == 0
        daemon.wait_for("No price (Rejected)")
        assert ackback("check").returncode == 0
        daemon.end()
        (folder / "config.toml").write_text(f"[broker]\nurl = '{our_rabbit.url}'")
    finally:
        our_rabbit.ctl("delete_user", "orders")
        our_rabbit.ctl("delete_vhost", "limited")


def test_the_demo_tells_its_stories_to_the_end(environment: dict[str, str]) -> None:
    command = [sys.executable, str(ROOT / "tools" / "demo.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "call('zato.ping') returned" in done.stdout
    trace = done.stdout.partition("What became of the order that could not be priced")[2]
    assert "rejected" in trace
    assert "dead letter  rejected" in trace
