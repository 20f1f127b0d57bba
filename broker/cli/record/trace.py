"""`ackback trace`: what became of an invocation."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.console import FAILED, Config, Debug, quiet_settings, tell
from broker.cli.record.options import AsJson, Since, beginning, on_record

if TYPE_CHECKING:
    from broker.recording.trace import Story


PAPER = 1000
"""Columns where there is no terminal: lines are not broken there."""


def trace(
    cid: Annotated[str, typer.Argument(metavar="CID", show_default=False)],
    as_json: AsJson = False,
    since: Since = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Show what became of an invocation: who asked for it, attempts, replies, callbacks, and what it invoked in turn.

    Any CID of a tree finds the whole tree.
    """
    found = asyncio.run(_story(config, cid, since))
    if found.root is None:
        from broker.recording.reading import when

        if found.since is None:
            tell(f"nothing is known of {cid!r}: the record is empty")
        else:
            back = when(found.since).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
            tell(
                f"nothing is known of {cid!r}: the record goes back to {back}, and has {found.events:,} events since then"
            )
        raise typer.Exit(FAILED)
    if as_json:
        from broker.recording.trace import as_values

        typer.echo(json.dumps(as_values(found.root), default=str))
    else:
        from rich.console import Console

        from broker.cli.record.tree import drawn

        Console(width=None if sys.stdout.isatty() else PAPER, highlight=False).print(drawn(found, cid))


async def _story(config: Path | None, cid: str, since: str | None) -> Story:
    from broker.recording.reading import read
    from broker.recording.trace import story
    from broker.transport.interface import Connection

    settings = quiet_settings(config)
    begin = beginning(since)

    async def look(connection: Connection) -> Story:
        return await story(read(connection, begin or "first"), cid)

    return await on_record(settings, look)
