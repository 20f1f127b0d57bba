"""Going through the dead letters of the configured broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import typer

from broker.cli.console import counted, progress, quiet_settings
from broker.protocol.deadletters import DeadLetter
from broker.protocol.message import Message
from broker.protocol.names import DEAD_LETTERS
from broker.transport.browsing import walk
from broker.transport.factory import create
from broker.transport.interface import Connection


@asynccontextmanager
async def connected(config: Path | None) -> AsyncIterator[Connection]:
    """A connection to the configured broker."""
    settings = quiet_settings(config)
    connection = await create(settings.urls, settings.broker.transport).connect()
    try:
        yield connection
    finally:
        await connection.close()


async def each(config: Path | None, visit: Callable[[DeadLetter], Awaitable[bool]]) -> int:
    """Visit every dead letter, take none, and return how many there are."""
    count = 0

    async def visited(message: Message) -> bool:
        nonlocal count
        count += 1
        return await visit(DeadLetter.of(message))

    async with connected(config) as connection:
        await walk(connection, DEAD_LETTERS, visited)
    return count


async def take(what: str, config: Path | None, visit: Callable[[DeadLetter, Connection], Awaitable[bool]]) -> int:
    """Visit every dead letter, take those that `visit` is done with, and say how many these were, also if interrupted."""
    done = 0
    async with connected(config) as connection:
        seen = await connection.look_at(DEAD_LETTERS)
        with progress(what, seen.ready if seen else 0) as advance:

            async def visited(message: Message) -> bool:
                nonlocal done
                taken = await visit(DeadLetter.of(message), connection)
                done += taken
                advance()
                return taken

            try:
                await walk(connection, DEAD_LETTERS, visited)
            except BaseException:
                typer.echo(
                    f"interrupted: {counted(done, 'dead letter')} {what}; the rest are where they were", err=True
                )
                raise
    typer.echo(f"{counted(done, 'dead letter')} {what}", err=True)
    return done
