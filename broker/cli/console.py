"""What every command of the command line shares."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from broker.settings import Settings

FAILED = 1
MISUSED = 2

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration; without it, ./config.toml if it is there."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Log everything, and show the traceback of an error.")]


def quiet_log() -> None:
    """Log warnings alone, as commands do that end by themselves."""
    from broker import log
    from broker.settings import LogSection

    log.setup(LogSection(level="warning"), debug="--debug" in sys.argv)


def quiet_settings(config: Path | None) -> Settings:
    """The configuration, for a command that logs warnings alone."""
    from broker.settings import Settings

    quiet_log()
    return Settings.load(config)


def tell(text: str) -> None:
    """Say something that is no result."""
    typer.echo(f"ackback: {text}", err=True)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as what is in them; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def progress(what: str, count: int) -> Any:
    """A progress bar on a terminal; elsewhere nothing."""
    return _bar(what, count) if sys.stderr.isatty() else contextlib.nullcontext(lambda count=1: None)


@contextlib.contextmanager
def _bar(what: str, count: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=count)
        yield lambda count=1: bar.advance(task, count)


def counted(number: int, what: str) -> str:
    """`1 dead letter`, `2 dead letters`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
