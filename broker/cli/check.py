"""`ackback check`: configuration, connection, permissions and queues."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from broker.cli.console import FAILED, Config, Debug, quiet_log


def check(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Check the configuration, the connection, the permissions and the queues. Declares what `run` would declare."""
    from broker.cli.checks import checks

    quiet_log()
    failed = False

    async def report() -> None:
        nonlocal failed
        async for what, problem in checks(config, paths or None):
            failed = failed or problem is not None
            typer.echo(f"FAILED  {what}: {problem}" if problem else f"ok      {what}")

    asyncio.run(report())
    if failed:
        raise typer.Exit(FAILED)
