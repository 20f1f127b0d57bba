"""`ackback services`: what would be hosted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.console import Config, Debug, print_table, quiet_settings, tell

if TYPE_CHECKING:
    from broker.hosting.registry import Registry
    from broker.settings import Settings


def services(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List the services that would be hosted."""
    from broker.cli.checks import place_of
    from broker.hosting import registry

    settings = quiet_settings(config)
    found = registry.load(settings, paths or None)
    elsewhere = asyncio.run(_callbacks_elsewhere(settings, found))
    rows = [("NAME", "CLASS", "QUEUE", "CALLBACK", "FOUND", "INPUT", "OUTPUT")]
    for one in sorted(found, key=lambda one: one.name):
        callbacks = found.default_callbacks(one, elsewhere)
        places = dict.fromkeys(place_of(name, found) for name in callbacks)
        rows.append(
            (
                one.name,
                f"{one.cls.__module__}.{one.cls.__qualname__}",
                one.name,
                ", ".join(callbacks) or "-",
                ", ".join(places) or "-",
                one.input_type,
                one.output_type,
            )
        )
    print_table(rows)


async def _callbacks_elsewhere(settings: Settings, found: Registry) -> frozenset[str]:
    from broker.cli.checks import callbacks_elsewhere
    from broker.errors import AckbackError
    from broker.transport.factory import create

    try:
        connection = await create(settings.urls, settings.broker.transport).connect()
        try:
            return await callbacks_elsewhere(connection, found)
        finally:
            await connection.close()
    except AckbackError as error:
        tell(f"callbacks that other daemons host are not looked for: {error}")
        return frozenset()
