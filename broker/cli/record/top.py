"""`ackback top`: the services and daemons of the last minute, live on a terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.cli.console import Config, Debug, quiet_settings
from broker.cli.record.options import on_record

if TYPE_CHECKING:
    from rich.console import Group

    from broker.recording.summary import ServiceLine, Summary
    from broker.transport.interface import Connection

REDRAW = 1.0
Sort = Callable[["ServiceLine", Mapping[str, int | None]], Any]
SORTS: dict[str, tuple[str, Sort]] = {
    "n": ("name", lambda line, ready: line.name),
    "r": ("rate", lambda line, ready: -line.rate),
    "p": ("p95", lambda line, ready: -(line.p95 or 0.0)),
    "f": ("failures", lambda line, ready: -line.failures),
    "w": ("ready", lambda line, ready: -(ready.get(line.name) or 0)),
}
TAKEN = 11
"""Lines of the screen that are heads, rules, the caption, and what there is more of."""
MOST_DAEMONS = 8
"""On a screen."""
HELP = "n name  r rate  p p95  f failures  w ready  q quit"


def top(config: Config = None, debug: Debug = False) -> None:
    """Show services and daemons as of the last minute. On a terminal it is live: keys sort, q ends it; elsewhere it is one table."""
    asyncio.run(_top(config))


async def _top(config: Path | None) -> None:
    from broker.recording.reading import events_of, read
    from broker.recording.summary import WINDOW, Summary

    settings = quiet_settings(config)
    summary = Summary()
    live = sys.stdin.isatty() and sys.stdout.isatty()
    begin = datetime.now(UTC) - timedelta(seconds=WINDOW)

    async def watch(connection: Connection) -> None:
        async def collect() -> None:
            async for batch in read(connection, begin, follow=live):
                for event in events_of(batch):
                    summary.add(event, batch.writer)

        if not live:
            await collect()
            _print(_tables(summary, await _ready(connection, summary), "n"))
            return
        collecting = asyncio.ensure_future(collect())
        showing = asyncio.ensure_future(_show(connection, summary))
        try:
            await asyncio.wait({collecting, showing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (collecting, showing):
                if task.done():
                    task.result()
        finally:
            for task in (collecting, showing):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    await on_record(settings, watch)


async def _show(connection: Connection, summary: Summary) -> None:
    from rich.live import Live

    pressed: asyncio.Queue[str] = asyncio.Queue()
    sort = "n"
    with _keys(pressed.put_nowait), Live(screen=True, auto_refresh=False) as screen:
        while True:
            ready = await _ready(connection, summary)
            screen.update(_tables(summary, ready, sort, screen.console.height), refresh=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(REDRAW):
                    key = await pressed.get()
                if key in ("q", "\x03"):
                    return
                sort = key if key in SORTS else sort


async def _ready(connection: Connection, summary: Summary) -> dict[str, int | None]:
    """Messages that are ready on the queue of each service; None where there is no queue."""
    from broker.protocol.names import name_problem

    names = [line.name for line in summary.services(_now()) if name_problem(line.name) is None]
    seen = await asyncio.gather(*(connection.look_at(name) for name in names))
    return {name: None if one is None else one.ready for name, one in zip(names, seen, strict=True)}


def _tables(summary: Summary, ready: dict[str, int | None], sort: str, height: int | None = None) -> Group:
    """`height` is how many lines there are room for; None: as many as it takes."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from broker.log import escaped

    by, key = SORTS[sort]
    caption = f"by {by} · {HELP}" if sys.stdout.isatty() else None
    services = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    services.add_column("SERVICE")
    for column in ("RATE /s", "p50 ms", "p95 ms", "FAILED /min", "READY", "WAITING", "RUNNING", "DAEMONS"):
        services.add_column(column, justify="right")
    lives = summary.daemons(_now())
    lines = sorted(summary.services(_now()), key=lambda one: key(one, ready))
    room = len(lines) if height is None else max(3, height - TAKEN - min(len(lives), MOST_DAEMONS))
    for line in lines[:room]:
        waiting = ready.get(line.name)
        services.add_row(
            Text(escaped(line.name)),
            f"{line.rate:,.3g}" if line.rate < 100 else f"{line.rate:,.0f}",
            _number(line.p50),
            _number(line.p95),
            Text(f"{line.failures}", style="bold red" if line.failures else ""),
            "-" if waiting is None else f"{waiting:,}",
            f"{line.waiting}",
            f"{line.running}",
            f"{line.daemons}" if line.daemons else Text("0 nobody", style="bold red"),
        )
    daemons = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("DAEMON", "VERSION", "STATE"):
        daemons.add_column(column)
    for column in ("SERVICES", "MEMORY MiB", "LAG ms"):
        daemons.add_column(column, justify="right")
    for one in lives if height is None else lives[:MOST_DAEMONS]:
        state = Text("silent", style="bold red") if one.silent else Text(escaped(one.state))
        memory = f"{one.resident / 2**20:,.0f}"
        daemons.add_row(
            Text(escaped(one.name)),
            Text(escaped(one.version)),
            state,
            f"{len(one.services)}",
            memory,
            f"{one.lag_ms:g}",
        )
    if len(lines) > room:
        services.add_row(Text(f"… {len(lines) - room} more", style="dim"))
    if height is not None and len(lives) > MOST_DAEMONS:
        daemons.add_row(Text(f"… {len(lives) - MOST_DAEMONS} more", style="dim"))
    return Group(services, daemons)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _now() -> int:
    return int(time.time() * 1e6)


def _print(what: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(what)


@contextmanager
def _keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Have keys told of as they are pressed."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, lambda: on_key(sys.stdin.read(1)))
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
