"""`ackback schedules`: what is invoked by itself, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from broker.cli.console import Config, Debug, print_table, quiet_settings
from broker.log import escaped

if TYPE_CHECKING:
    from broker.handling.schedules import ScheduleCommands
    from broker.protocol.schedules import Do, Line

T = TypeVar("T")

app = typer.Typer(
    name="schedules", help="What is invoked by itself, and when.", no_args_is_help=True, rich_markup_mode=None
)

Service = Annotated[str, typer.Argument(metavar="SERVICE", help="The service that has the schedule.")]


@app.command(name="list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List the schedules: when each was fired last, and when it will be next (UTC)."""
    found = _with_connection(config, lambda commands: commands.lines())
    if as_json:
        for one in found:
            typer.echo(one.model_dump_json())
    elif not found:
        typer.echo("no service has a schedule")
    else:
        _print_table(found)


@app.command()
def pause(service: Service, config: Config = None, debug: Debug = False) -> None:
    """Fire a schedule no more until it is resumed. What is due meanwhile is not made up for."""
    _tell(config, "pause", service)
    typer.echo(f"{service} is paused")


@app.command()
def resume(service: Service, config: Config = None, debug: Debug = False) -> None:
    """Fire a schedule again as of now."""
    lines = _tell(config, "resume", service)
    line = next(one for one in lines if one["service"] == service)
    due = f", next at {_at(datetime.fromisoformat(line['next'][0]))} UTC" if line["next"] else ""
    typer.echo(f"{service} is fired again{due}")


@app.command()
def fire(service: Service, config: Config = None, debug: Debug = False) -> None:
    """Fire a schedule now, besides its due times, also if it is paused, and print the CID."""
    typer.echo(_tell(config, "fire", service)["cid"])


@app.command()
def drop(service: Service, config: Config = None, debug: Debug = False) -> None:
    """Forget a schedule, as the service is no more. A daemon that has it when it starts brings it back."""
    _tell(config, "drop", service)
    typer.echo(f"{service} has no schedule any more")


def _tell(config: Path | None, do: Do, service: str) -> Any:
    return _with_connection(config, lambda commands: commands.tell(do, service))


def _with_connection(config: Path | None, ask: Callable[[ScheduleCommands], Awaitable[T]]) -> T:
    from broker.handling.schedules import ScheduleCommands
    from broker.transport.factory import create

    settings = quiet_settings(config)

    async def connected() -> T:
        connection = await create(settings.urls, settings.broker.transport).connect()
        try:
            return await ask(ScheduleCommands(connection))
        finally:
            await connection.close()

    return asyncio.run(connected())


def _print_table(lines: list[Line]) -> None:
    rows = [("SERVICE", "SCHEDULE", "MISSED", "LAST (UTC)", "NEXT (UTC)")]
    for one in lines:
        due = "paused" if one.paused else _at(one.next[0]) if one.next else "-"
        rows.append((escaped(one.service), escaped(one.schedule), one.missed, _at(one.last) if one.last else "-", due))
    print_table(rows)
    for one in lines:
        if one.problem:
            typer.echo(f"{escaped(one.service)} is not fired: {escaped(one.problem)}; it is tried again")


def _at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")
