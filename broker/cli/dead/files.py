"""`ackback dead export` and `ackback dead import`: dead letters in a file, a line of JSON each."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, TextIO

import typer

from broker.cli.console import Config, Debug, counted, progress
from broker.cli.dead.options import NewerThan, OlderThan, Reasons, Services, chosen_by
from broker.cli.dead.visiting import connected, each
from broker.handling.dead_letters import confirmed
from broker.protocol import archive
from broker.protocol.deadletters import DeadLetter
from broker.protocol.message import Publishing
from broker.protocol.names import DEAD_LETTERS
from broker.protocol.queues import own_queue


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
    chosen = chosen_by(None, reason, service, older_than, newer_than)
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
        asyncio.run(each(config, write))
        stream.flush()
        if not to_stdout:
            os.fsync(stream.fileno())
    typer.echo(f"{counted(count, 'dead letter')} written to {'standard output' if to_stdout else file}", err=True)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="- is standard input.", allow_dash=True)],
    skip: Annotated[int, typer.Option("--skip", min=0, metavar="N", help="Pass over the first N lines.")] = 0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Put the dead letters of an exported file back among the dead letters.

    The whole file is checked before the first line is published. Interrupted, it says with which `--skip` to go on.
    """
    with _lines_of(file) as lines:
        count = _checked(lines, file)
        lines.seek(0)
        asyncio.run(_import(islice(lines, skip, None), max(0, count - skip), skip, config))


@contextmanager
def _lines_of(file: Path) -> Iterator[TextIO]:
    """The file, open; standard input, which can be read only once, as a temporary copy."""
    if str(file) != "-":
        try:
            stream = file.open(encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from None
        with stream:
            yield stream
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8") as copy:
        copy.writelines(sys.stdin)
        copy.seek(0)
        yield copy


def _checked(lines: TextIO, file: Path) -> int:
    """How many lines there are, each of them a dead letter."""
    count = 0
    try:
        for line in lines:
            count += 1
            archive.loads(line)
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from None
    except ValueError as error:
        raise typer.BadParameter(f"{file}, line {count}: {error}") from None
    return count


async def _import(lines: Iterator[str], count: int, skipped: int, config: Path | None) -> None:
    done = 0
    try:
        async with connected(config) as connection:
            await connection.declare(own_queue(DEAD_LETTERS))
            with progress("importing", count) as advance:
                for line in lines:
                    await confirmed(connection, Publishing(DEAD_LETTERS, archive.loads(line)))
                    done += 1
                    advance()
    finally:
        typer.echo(f"{done} of {counted(count, 'dead letter')} imported", err=True)
        if done < count:
            typer.echo(f"ackback: to go on, add --skip {skipped + done}", err=True)
