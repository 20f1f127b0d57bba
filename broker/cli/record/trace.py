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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show it again whenever it goes on.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Show what became of an invocation: who asked for it, attempts, replies, callbacks, and what it invoked in turn.

    Any CID of a tree finds the whole tree.
    """
    if follow:
        asyncio.run(_follow(config, cid, since, as_json=as_json))
        return
    found = asyncio.run(_story(config, cid, since))
    if found.root is None:
        tell(_unknown(found, cid))
        raise typer.Exit(FAILED)
    _print(found, cid, as_json=as_json)


def _unknown(found: Story, cid: str) -> str:
    from broker.recording.reading import when

    if found.since is None:
        return f"nothing is known of {cid!r}: the record is empty"
    back = when(found.since).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
    return f"nothing is known of {cid!r}: the record goes back to {back}, and has {found.events:,} events since then"


def _print(found: Story, cid: str, *, as_json: bool) -> None:
    assert found.root is not None
    if as_json:
        from broker.recording.trace import as_values

        typer.echo(json.dumps(as_values(found.root), default=str))
    else:
        from rich.console import Console

        from broker.cli.record.tree import drawn

        Console(width=None if sys.stdout.isatty() else PAPER, highlight=False).print(drawn(found, cid))


async def _follow(config: Path | None, cid: str, since: str | None, *, as_json: bool) -> None:
    from rich.console import Console

    from broker.recording.trace import stories
    from broker.transport.interface import Connection

    async def show(connection: Connection) -> None:
        number = 0
        async for found in stories(connection, beginning(since) or "first", cid):
            if found.root is None:
                tell(f"{_unknown(found, cid)}; waiting")
                continue
            if sys.stdout.isatty() and not as_json:
                Console().clear()
            elif number and not as_json:
                typer.echo()
            _print(found, cid, as_json=as_json)
            number += 1

    await on_record(quiet_settings(config), show)


async def _story(config: Path | None, cid: str, since: str | None) -> Story:
    from broker.recording.reading import read
    from broker.recording.trace import story
    from broker.transport.interface import Connection

    settings = quiet_settings(config)
    begin = beginning(since)

    async def look(connection: Connection) -> Story:
        return await story(read(connection, begin or "first"), cid)

    return await on_record(settings, look)
