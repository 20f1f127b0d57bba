"""The commands `ackback dead …`: look at dead letters, publish them again, drop them, keep them in a file."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.console import Config, Debug, progress, quiet_settings
from broker.dead_text import HEADER, shown, summary, table_row
from broker.deadletters import REASONS, DeadLetter, Filter, walk
from broker.log import escaped
from broker.naming import DEAD_LETTERS

app = typer.Typer(
    name="dead",
    help="Dead letters: messages that could go no further, kept with the reason.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _age(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):
        return text
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if not parts:
        raise typer.BadParameter(f"{text!r} is not an age; write a number and s, m, h, d or w, as in 90s or 2h")
    return timedelta(**{_UNITS[parts[2]]: float(parts[1])})


def _reason(text: str) -> str:
    if text not in REASONS:
        raise typer.BadParameter(f"there is no reason {text!r}; there are {', '.join(REASONS)}")
    return text


Cids = Annotated[list[str] | None, typer.Argument(metavar="[CID]...", show_default=False, help="Only these.")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="REASON", parser=_reason, help="May be repeated.")
]
Services = Annotated[
    list[str] | None,
    typer.Option("--service", metavar="NAME", help="The service they died in; may be a pattern like 'orders.*'."),
]
OlderThan = Annotated[timedelta | None, typer.Option("--older-than", metavar="AGE", parser=_age, help="As in 90s, 2h.")]
NewerThan = Annotated[timedelta | None, typer.Option("--newer-than", metavar="AGE", parser=_age, help="As in 90s, 2h.")]
All = Annotated[bool, typer.Option("--all", help="All of them; needed where nothing else says which.")]


@app.command("list")
def list_(
    cids: Cids = None,
    reason: Reasons = None,
    service: Services = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List dead letters, the oldest first."""
    chosen = _filter(cids, reason, service, older_than, newer_than)
    now = datetime.now(UTC)
    count = 0

    async def show(dead: DeadLetter) -> bool:
        nonlocal count
        if chosen.matches(dead, now):
            if not count and not as_json:
                typer.echo(HEADER)
            count += 1
            typer.echo(json.dumps(summary(dead)) if as_json else table_row(dead, now))
        return False

    total = asyncio.run(_each(config, show))
    if not as_json:
        typer.echo(f"{count} of {total} dead letters" if chosen else f"{total} dead letters", err=True)


@app.command()
def show(cid: Annotated[str, typer.Argument(metavar="CID")], config: Config = None, debug: Debug = False) -> None:
    """Show all of a dead letter: why it died, its properties, its headers, its body."""
    found = 0

    async def print_if_meant(dead: DeadLetter) -> bool:
        nonlocal found
        if dead.cid == cid:
            if found:
                typer.echo()
            found += 1
            typer.echo(shown(dead))
        return False

    asyncio.run(_each(config, print_if_meant))
    if not found:
        raise _nothing(f"there is no dead letter with the CID {cid}")


@app.command()
def replay(
    cids: Cids = None,
    reason: Reasons = None,
    service: Services = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    all_: All = False,
    rate: Annotated[float | None, typer.Option("--rate", min=0.01, metavar="N", help="At most N a second.")] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Publish dead letters again, each to the service that it was for.

    One is taken off the dead letters only when RabbitMQ has confirmed it. Interrupted, it leaves the rest: run it again to go on.
    """
    from broker.errors import NotAcceptedError

    chosen = _needed(_filter(cids, reason, service, older_than, newer_than), all_)
    callback_queue = quiet_settings(config).callbacks.queue
    now, pause = datetime.now(UTC), _Pace(rate)
    kept: dict[str, int] = {}

    async def publish(dead: DeadLetter, connection: Any) -> bool:
        if not chosen.matches(dead, now):
            return False
        publishing = dead.replayed(callback_queue)
        try:
            if publishing is None:
                raise NotAcceptedError("nothing in it says which queue it was for")
            await pause()
            await connection.publish(publishing)
        except NotAcceptedError as error:
            kept[str(error)] = kept.get(str(error), 0) + 1
            return False
        return True

    done = asyncio.run(_take("replayed", config, publish))
    for why, number in kept.items():
        typer.echo(f"ackback: {number} not replayed: {escaped(why)}", err=True)
    if kept or not done:
        raise typer.Exit(1)


@app.command()
def drop(
    cids: Cids = None,
    reason: Reasons = None,
    service: Services = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    all_: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Delete dead letters for good."""
    chosen = _needed(_filter(cids, reason, service, older_than, newer_than), all_)
    now = datetime.now(UTC)
    if not yes:
        matching = 0

        async def count(dead: DeadLetter) -> bool:
            nonlocal matching
            matching += chosen.matches(dead, now)
            return False

        asyncio.run(_each(config, count))
        if not matching:
            raise _nothing("no dead letter is like that")
        typer.confirm(f"Delete {matching} dead letters for good?", abort=True)

    async def delete(dead: DeadLetter, _: Any) -> bool:
        return chosen.matches(dead, now)

    if not asyncio.run(_take("dropped", config, delete)):
        raise typer.Exit(1)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; - is standard output.", allow_dash=True)],
    reason: Reasons = None,
    service: Services = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Write dead letters to a file, a line of JSON each. They stay where they are: `drop` them when the file is safe."""
    from broker import archive

    chosen = _filter(None, reason, service, older_than, newer_than)
    now = datetime.now(UTC)
    count = 0
    to_stdout = str(file) == "-"
    try:
        stream = sys.stdout if to_stdout else file.open("x", encoding="utf-8")
    except FileExistsError:
        raise typer.BadParameter(f"{file} exists already; name a new file") from None
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}") from None

    async def write(dead: DeadLetter) -> bool:
        nonlocal count
        if chosen.matches(dead, now):
            stream.write(archive.dumps(dead.message) + "\n")
            count += 1
        return False

    with stream:
        asyncio.run(_each(config, write))
        stream.flush()
        if not to_stdout:
            os.fsync(stream.fileno())
    typer.echo(f"{count} dead letters written to {'standard output' if to_stdout else file}", err=True)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="- is standard input.", allow_dash=True)],
    skip: Annotated[int, typer.Option("--skip", min=0, metavar="N", help="Pass over the first N lines.")] = 0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Put the dead letters of an exported file back among the dead letters.

    The whole file is checked before the first line is published. Interrupted, it says with which `--skip` to go on.
    """
    from broker import archive

    if str(file) == "-":
        lines = sys.stdin.read().splitlines()
    else:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from None
    for number, line in enumerate(lines, 1):
        try:
            archive.loads(line)
        except ValueError as error:
            raise typer.BadParameter(f"{file}, line {number}: {error}") from None
    asyncio.run(_import(lines[skip:], skip, config))


async def _import(lines: list[str], skipped: int, config: Path | None) -> None:
    from broker import archive
    from broker.message import Publishing
    from broker.topology import own_queue

    done = 0
    try:
        async with _connected(config) as connection:
            await connection.declare(own_queue(DEAD_LETTERS))
            with progress("importing", len(lines)) as advance:
                for line in lines:
                    await connection.publish(Publishing(DEAD_LETTERS, archive.loads(line)))
                    done += 1
                    advance()
    finally:
        typer.echo(f"{done} of {len(lines)} dead letters imported", err=True)
        if done < len(lines):
            typer.echo(f"ackback: to go on, add --skip {skipped + done}", err=True)


@asynccontextmanager
async def _connected(config: Path | None) -> Any:
    from broker.transport import create

    settings = quiet_settings(config)
    connection = await create(settings.urls, settings.broker.transport).connect()
    try:
        yield connection
    finally:
        await connection.close()


async def _each(config: Path | None, visit: Callable[[DeadLetter], Awaitable[bool]]) -> int:
    """Visit every dead letter, take none, and return how many there are."""
    count = 0

    async def counted(message: Any) -> bool:
        nonlocal count
        count += 1
        return await visit(DeadLetter.of(message))

    async with _connected(config) as connection:
        await walk(connection, DEAD_LETTERS, counted)
    return count


async def _take(what: str, config: Path | None, visit: Callable[[DeadLetter, Any], Awaitable[bool]]) -> int:
    """Visit every dead letter, take those that `visit` is done with, and say how many these were, also if interrupted."""
    done = 0
    async with _connected(config) as connection:
        with progress(what, await connection.depth(DEAD_LETTERS) or 0) as advance:

            async def counted(message: Any) -> bool:
                nonlocal done
                taken = await visit(DeadLetter.of(message), connection)
                done += taken
                advance()
                return taken

            try:
                await walk(connection, DEAD_LETTERS, counted)
            except BaseException:
                typer.echo(f"interrupted: {done} dead letters {what}; the rest are where they were", err=True)
                raise
    typer.echo(f"{done} dead letters {what}", err=True)
    return done


class _Pace:
    """Waits so that no more than `rate` a second go on."""

    def __init__(self, rate: float | None) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    async def __call__(self) -> None:
        wait = self._next - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        self._next = max(self._next, time.monotonic() - self._interval) + self._interval


def _filter(
    cids: list[str] | None,
    reasons: list[str] | None,
    services: list[str] | None,
    older_than: timedelta | None,
    newer_than: timedelta | None,
) -> Filter:
    return Filter(frozenset(cids or ()), frozenset(reasons or ()), tuple(services or ()), older_than, newer_than)


def _needed(chosen: Filter, all_: bool) -> Filter:
    if not chosen and not all_:
        raise typer.BadParameter("say which: by CID, --reason, --service, --older-than or --newer-than, or --all")
    return chosen


def _nothing(text: str) -> typer.Exit:
    typer.echo(f"ackback: {text}", err=True)
    return typer.Exit(1)
