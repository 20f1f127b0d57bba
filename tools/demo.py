"""The main job, shown: requests, the services that handle them, and the replies that reach their callbacks.

On RabbitMQ if one answers at AMQP_URL, else on the embedded broker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from broker.cli.record.tree import drawn
from broker.client import AsyncClient
from broker.errors import BrokerUnavailableError
from broker.hosting import registry
from broker.process.daemon import Daemon
from broker.protocol.events import EVENTS
from broker.protocol.message import Message
from broker.recording.reading import read
from broker.recording.trace import Step, story
from broker.settings import Settings, masked
from broker.stores.factory import open_existing
from broker.stores.interface import Head
from broker.transport.factory import create
from broker.transport.interface import Connection, Transport

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 20.0
STEPS = 3
"""Of the checkout, that are requests to other services."""

STORIES = [
    (
        "A service invokes another and names the callback",
        "my-api.my-service",
        "",
        "services/my_api.py: invoke_async('zato.ping', …, callback='my.callback')",
    ),
    (
        "The callback is found by its name: <source>-async-callback",
        "by-convention.my-service",
        "",
        "services/by_convention.py: invoke_async('zato.ping', …)",
    ),
    (
        "A typed order: placed, priced by another service, the price received by a callback",
        "orders.place",
        {"item": "screen", "quantity": 2},
        "services/orders.py",
    ),
    (
        "An order that cannot be priced: the failure reaches handle_error",
        "orders.place",
        {"item": "boat"},
        "services/orders.py",
    ),
]

BOLD, DIM, GREEN, YELLOW, RESET = (
    ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[0m") if sys.stdout.isatty() else ("",) * 5
)


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Narrator(logging.Handler):
    """Tells what the services log, one line each, with the CID."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.callbacks = 0
        self.approvals = 0

    def emit(self, record: logging.LogRecord) -> None:
        cid = getattr(record, "cid", None)
        service = getattr(record, "service", None)
        if cid is None or service is None:
            return
        self.callbacks += "callback" in service
        self.approvals += "waits for approval" in record.getMessage()
        colour = YELLOW if record.levelno > logging.INFO else GREEN
        say(f"  {DIM}{cid[:8]}{RESET}  {colour}{service:<40}{RESET} {record.getMessage()}")


class Telling:
    """A transport that shows what is published by way of it: CID, source, target, callback."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._connections: list[Connection] = []
        self.address = transport.address

    async def hang_up(self) -> None:
        """End all connections, as the end of a process does."""
        for connection in self._connections:
            await connection.close()

    async def connect(self, *, in_one: bool = False) -> Connection:
        connection = await self._transport.connect(in_one=in_one)
        self._connections.append(connection)
        publish = connection.publish

        def told(publishing: tuple[str, Message, str]) -> asyncio.Future[None]:
            tell(publishing[0], publishing[1])
            return publish(publishing)

        connection.publish = told  # type: ignore[method-assign]
        return connection


WIDE = 200


def tell(target: str, message: Message) -> None:
    headers = message.headers
    if target == EVENTS:
        return
    cid = f"  {DIM}{str(message.correlation_id)[:8]}{RESET}  "
    source = headers.get("source")
    if "dead-reason" in headers:
        say(f"{cid}{DIM}a copy of the request is kept in {target}, reason '{headers['dead-reason']}'{RESET}")
    elif "status" in headers:
        say(f"{cid}{DIM}{headers['service']} replies '{headers['status']}' to {target}{RESET}")
    elif source is not None:
        say(
            f"{cid}{source} invokes {BOLD}{target}{RESET}, callback {headers.get('callback', f'{source}-async-callback')}"
        )


async def show_trace(transport: Transport, cid: str, is_whole: Callable[[Step], bool]) -> None:
    """The story of an invocation, once all that is to be seen is recorded."""
    connection = await transport.connect()
    try:
        async with asyncio.timeout(LONGEST):
            while True:
                found = await story(read(connection), cid)
                if found.root is not None and is_whole(found.root):
                    break
                await asyncio.sleep(0.1)
    finally:
        await connection.close()
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(drawn(found, cid))


async def broker() -> tuple[Transport, str]:
    """RabbitMQ if AMQP_URL leads to one, else the embedded broker."""
    if url := os.environ.get("AMQP_URL"):
        transport = create([url])
        try:
            await (await transport.connect()).close()
        except BrokerUnavailableError as error:
            say(f"{YELLOW}AMQP_URL is set, but {error}{RESET}")
        else:
            return transport, f"RabbitMQ at {masked(url)}"
    return create(["memory://"]), "the embedded broker (set AMQP_URL to show it on RabbitMQ)"


async def main() -> None:
    narrator = Narrator()
    logging.basicConfig(level=logging.INFO, handlers=[narrator])
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    transport, where = await broker()
    with tempfile.TemporaryDirectory(prefix="ackback-demo-") as folder:
        await show(narrator, transport, where, f"sqlite://{folder}/ackback.db")


async def show(narrator: Narrator, transport: Transport, where: str, store: str) -> None:
    settings = Settings().with_changes("store", url=store)
    services = registry.load(settings, [str(ROOT / "services"), str(ROOT / "examples")])
    telling = Telling(transport)
    daemon = Daemon(settings, services, telling)
    serving = asyncio.ensure_future(daemon.run())
    await daemon.ready.wait()
    say(f"{BOLD}ackback{RESET} on {where}")
    async with AsyncClient(settings=settings, transport=transport) as client:
        for title, service, payload, source in STORIES:
            say(f"\n{BOLD}{title}{RESET}  {DIM}{source}{RESET}")
            callbacks = narrator.callbacks
            cid = await client.invoke_async(service, payload)
            say(f"  {DIM}{cid[:8]}{RESET}  a client invokes {BOLD}{service}{RESET} with {payload!r}")
            await settled(narrator, daemon, callbacks)
        say(f"\n{BOLD}And request/reply, for when you do want to wait{RESET}")
        say(f"  call('zato.ping') returned {await client.call('zato.ping')}")
    say(f"\n{BOLD}What became of the order that could not be priced: ackback trace {cid}{RESET}")
    await show_trace(transport, cid, lambda root: any(step.dead for step in (root, *root.children)))

    say(
        f"\n{BOLD}A checkout of several steps, whose daemon crashes while it waits{RESET}  {DIM}examples/checkout.py{RESET}"
    )
    async with AsyncClient(settings=settings, transport=transport) as client:
        said = narrator.approvals
        receipt = asyncio.ensure_future(client.call("checkout.checkout", {"item": "tea", "quantity": 4}))
        await until(lambda: narrator.approvals > said)
        (run, *_) = await runs_of(store)
        say(f"  {YELLOW}the daemon crashes, and is gone with all that it had in memory{RESET}")
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        await telling.hang_up()
        say(f"  {DIM}{run.cid[:8]}{RESET}  somebody approves, though nobody is there:")
        say(f"            {BOLD}ackback signal {run.cid} approved 'by Ann'{RESET}")
        await client.signal("checkout.checkout", run.cid, "approved", "by Ann")
        daemon = Daemon(settings, services, Telling(transport))
        serving = asyncio.ensure_future(daemon.run())
        say(f"  {YELLOW}another daemon is started, and goes on{RESET}")
        say(f"  the receipt: {GREEN}{await receipt}{RESET}")
    say(f"\n{BOLD}Its trace{RESET}")
    await show_trace(transport, run.cid, lambda root: bool(root.handlings) and len(root.children) >= STEPS)
    say(
        f"\nNext: {BOLD}.venv/bin/ackback run{RESET} hosts these services on RabbitMQ; README.md shows how to write your own."
    )
    say(
        f"The page, with all of this in a browser: {BOLD}.venv/bin/pip install '.[web]' && .venv/bin/ackback web{RESET}, beside it."
    )
    daemon.stop()
    await serving


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONGEST):
        while not condition():
            await asyncio.sleep(0.01)


async def runs_of(store: str) -> list[Head]:
    opened = open_existing(store)
    try:
        return await opened.heads()
    finally:
        await opened.close()


async def settled(narrator: Narrator, daemon: Daemon, before: int) -> None:
    """Until the story's callback has told of itself and nothing is being handled."""
    deadline = time.monotonic() + LONGEST
    while narrator.callbacks == before or daemon.busy():
        if time.monotonic() > deadline:
            raise SystemExit("the callback was not reached: something is wrong")
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main())
