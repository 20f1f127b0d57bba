"""`ackback migrate`: queues that an earlier version has declared get the arguments of this one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.console import MISUSED, Config, Debug, counted, progress, quiet_settings, tell

if TYPE_CHECKING:
    from broker.process.migration import Found


def migrate(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Bring the queues that `run` would declare over from an earlier version's arguments, with the messages on them.

    Stop all daemons first, and what publishes. Interrupted, it goes on when it is run again; daemons wait until then.
    """
    asyncio.run(_migrate(config, paths, dry_run=dry_run))


async def _migrate(config: Path | None, paths: list[str] | None, *, dry_run: bool) -> None:
    from broker.hosting import registry
    from broker.process import migration
    from broker.protocol.queues import durable_queues
    from broker.transport.factory import create, is_embedded

    settings = quiet_settings(config)
    if is_embedded(settings.urls):
        raise typer.BadParameter("a broker in memory keeps no queues: there is nothing to migrate")
    services = registry.load(settings, paths or None)
    queues = durable_queues((one.name for one in services), settings.callbacks.queue)
    connection = await create(settings.urls, settings.broker.transport).connect()
    try:
        await migration.lock(connection)
        unfinished = await migration.interrupted(connection)
        found = await migration.survey(connection, queues)
        for one in found:
            _show(one)
        if unfinished is not None:
            where = f" at queue {unfinished!r}" if unfinished else ""
            tell(f"an earlier migration was interrupted{where}; it is finished first")
        if any(one.problem for one in found):
            tell("nothing was changed: see above")
            raise typer.Exit(MISUSED)
        to_do = [one for one in found if one.is_former]
        if dry_run:
            typer.echo(f"{counted(len(to_do), 'queue')} to be brought over; nothing was changed")
            return
        if to_do or unfinished is not None:
            with progress("moving", 2 * sum(one.ready for one in to_do)) as advance:
                await migration.migrate(connection, [one.queue for one in to_do], advance)
        typer.echo(f"{counted(len(to_do), 'queue')} brought over")
        if waiting := await migration.former_delays(connection):
            tell(
                f"{counted(waiting, 'message')} still {'waits' if waiting == 1 else 'wait'} in the delay queues of an earlier "
                "version, from which all come out by themselves; run this again after that to have those deleted"
            )
    finally:
        await connection.close()


def _show(found: Found) -> None:
    if found.problem:
        typer.echo(f"FAILED  queue {found.queue.name}: {found.problem}")
    elif found.is_former:
        typer.echo(f"to do   queue {found.queue.name}: {counted(found.ready, 'message')}")
    else:
        typer.echo(f"ok      queue {found.queue.name}")
