"""`ackback events`: what happens, line by line."""

from __future__ import annotations

import asyncio
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.console import Config, Debug, quiet_settings
from broker.cli.record.options import AsJson, Since, beginning, on_record

if TYPE_CHECKING:
    from broker.protocol.events import Event
    from broker.transport.interface import Connection


def events(
    service: Annotated[
        str | None,
        typer.Option("--service", metavar="PATTERN", help="Only of these services: orders.*", show_default=False),
    ] = None,
    outcome: Annotated[
        str | None,
        typer.Option(
            "--outcome", help="Only handlings with this outcome: ok, retried, error, rejected, …", show_default=False
        ),
    ] = None,
    since: Since = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Print what is recorded, a line an event: requests, handlings, dead letters. Signs of life only with --json."""
    asyncio.run(_events(config, service, outcome, since, follow=follow, as_json=as_json))


async def _events(
    config: Path | None, service: str | None, outcome: str | None, since: str | None, *, follow: bool, as_json: bool
) -> None:
    from broker.cli.record.lines import line
    from broker.recording.reading import events_of, read

    settings = quiet_settings(config)
    begin = beginning(since)
    earliest = 0 if begin is None else int(begin.timestamp() * 1e6)

    async def print_all(connection: Connection) -> None:
        async for batch in read(connection, begin or "first", follow=follow):
            for event in events_of(batch):
                if event["t"] >= earliest and _is_wanted(event, service, outcome):
                    if as_json:
                        typer.echo(json.dumps({**event, "daemon": batch.writer}, default=str))
                    elif (text := line(event)) is not None:
                        typer.echo(text)

    await on_record(settings, print_all)


def _is_wanted(event: Event, service: str | None, outcome: str | None) -> bool:
    name = event.get("service", event.get("target"))
    return (service is None or (isinstance(name, str) and fnmatchcase(name, service))) and (
        outcome is None or (event["event"] == "handled" and event.get("outcome", "ok") == outcome)
    )
