"""Options that the record's commands share, and how they get at it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.transport.interface import Connection

T = TypeVar("T")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="AGE", help="Only what is not older than this: 90s, 10m, 2h, 7d.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def age(text: str) -> timedelta:
    """`90s`, `10m`, `2h` or `7d` as a time.

    Raises:
        typer.BadParameter: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no age; write 90s, 10m, 2h or 7d", param_hint="--since")
    return timedelta(**{UNITS[found[2]]: float(found[1])})


def beginning(since: str | None) -> datetime | None:
    return None if since is None else datetime.now(UTC) - age(since)


async def on_record(settings: Settings, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do something with a connection to the broker whose record it is."""
    from broker.errors import ConfigurationError
    from broker.transport.factory import create, is_embedded

    if is_embedded(settings.urls):
        raise ConfigurationError(
            "a broker in memory has its record within its own process alone: it cannot be read from here"
        )
    connection = await create(settings.urls, settings.broker.transport).connect()
    try:
        return await work(connection)
    finally:
        await connection.close()
