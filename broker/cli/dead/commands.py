"""`ackback dead list`, `show`, `replay` and `drop`: look at dead letters, publish them again, delete them."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from broker.cli.console import Config, Debug, counted, quiet_settings
from broker.cli.dead.options import All, Cids, NewerThan, OlderThan, Reasons, Services, chosen_by, needed
from broker.cli.dead.text import HEADER, shown, summary, table_row
from broker.cli.dead.visiting import each, take
from broker.errors import NotAcceptedError
from broker.handling import dead_letters
from broker.log import escaped
from broker.protocol.deadletters import DeadLetter


def list_(
    cids: Cids = None,
    reason: Reasons = None,
    service: Services = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List dead letters, the oldest first."""
    chosen = chosen_by(cids, reason, service, older_than, newer_than)
    now = datetime.now(UTC)
    count = 0

    async def show(dead: DeadLetter) -> bool:
        nonlocal count
        if chosen.matches(dead, now):
            if not count and not as_json:
                typer.echo(HEADER)
            count += 1
            typer.echo(json.dumps(summary(dead)) if as_json else table_row(dead, now))
        return False

    total = asyncio.run(each(config, show))
    if not as_json:
        typer.echo(f"{count} of {counted(total, 'dead letter')}" if chosen else counted(total, "dead letter"), err=True)


def show(cid: Annotated[str, typer.Argument(metavar="CID")], config: Config = None, debug: Debug = False) -> None:
    """Show all of a dead letter: why it died, its properties, its headers, its body."""
    found = 0

    async def print_if_meant(dead: DeadLetter) -> bool:
        nonlocal found
        if dead.cid == cid:
            if found:
                typer.echo()
            found += 1
            typer.echo(shown(dead))
        return False

    asyncio.run(each(config, print_if_meant))
    if not found:
        raise _nothing(f"there is no dead letter with the CID {cid}")


def replay(
    cids: Cids = None,
    reason: Reasons = None,
    service: Services = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    all_: All = False,
    rate: Annotated[float | None, typer.Option("--rate", min=0.01, metavar="N", help="At most N a second.")] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Publish dead letters again, each to the service that it was for.

    One is taken off the dead letters only when RabbitMQ has confirmed it. Interrupted, it leaves the rest: run it again to go on.
    """
    chosen = needed(chosen_by(cids, reason, service, older_than, newer_than), all_)
    callback_queue = quiet_settings(config).callbacks.queue
    now, pause = datetime.now(UTC), _Pace(rate)
    kept: dict[str, int] = {}

    async def publish(dead: DeadLetter, connection: Any) -> bool:
        if not chosen.matches(dead, now):
            return False
        await pause()
        try:
            await dead_letters.replay(connection, dead, callback_queue)
        except NotAcceptedError as error:
            kept[str(error)] = kept.get(str(error), 0) + 1
            return False
        return True

    done = asyncio.run(take("replayed", config, publish))
    for why, number in kept.items():
        typer.echo(f"ackback: {number} not replayed: {escaped(why)}", err=True)
    if kept or not done:
        raise typer.Exit(1)


def drop(
    cids: Cids = None,
    reason: Reasons = None,
    service: Services = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    all_: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Delete dead letters for good."""
    chosen = needed(chosen_by(cids, reason, service, older_than, newer_than), all_)
    now = datetime.now(UTC)
    if not yes:
        matching = 0

        async def count(dead: DeadLetter) -> bool:
            nonlocal matching
            matching += chosen.matches(dead, now)
            return False

        asyncio.run(each(config, count))
        if not matching:
            raise _nothing("no dead letter is like that")
        typer.confirm(f"Delete {counted(matching, 'dead letter')} for good?", abort=True)

    async def delete(dead: DeadLetter, _: Any) -> bool:
        return chosen.matches(dead, now)

    if not asyncio.run(take("dropped", config, delete)):
        raise typer.Exit(1)


class _Pace:
    """Waits so that no more than `rate` a second go on."""

    def __init__(self, rate: float | None) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    async def __call__(self) -> None:
        wait = self._next - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        self._next = max(self._next, time.monotonic() - self._interval) + self._interval


def _nothing(text: str) -> typer.Exit:
    typer.echo(f"ackback: {text}", err=True)
    return typer.Exit(1)
