"""`ackback runs` and `ackback signal`: what the runs of durable services are at, and what people tell them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from broker.cli.console import Config, Debug, print_table, quiet_settings
from broker.log import escaped

if TYPE_CHECKING:
    from broker.durable.journal import Journal
    from broker.settings import Settings
    from broker.stores.interface import Head, Store

T = TypeVar("T")

app = typer.Typer(name="runs", help="The runs of durable services.", no_args_is_help=True, rich_markup_mode=None)

Cid = Annotated[str, typer.Argument(metavar="CID", help="The CID of the request that began the run.")]
Service = Annotated[
    str | None,
    typer.Option(
        "--service", metavar="NAME", help="The run's service, if several have a run of that CID.", show_default=False
    ),
]
State = StrEnum("State", ["running", "failing", "failed", "done", "cancelled"])
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_runs(
    service: Annotated[
        str | None, typer.Option("--service", metavar="NAME", help="Only of this service.", show_default=False)
    ] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only in this state.", show_default=False)] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="How many, the newest first.")] = 100,
    as_json: AsJson = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List runs, the newest first."""
    heads = _with_store(config, lambda store: store.heads(service=service, state=state and state.value, most=most))
    if as_json:
        for one in heads:
            typer.echo(json.dumps(one._asdict()))
        return
    if not heads:
        typer.echo("no runs")
        return
    rows = [("BEGAN", "STATE", "SINCE", "SERVICE", "CID")]
    rows += [(_at(one.began), one.state, _ago(one.changed), one.service, escaped(one.cid)) for one in heads]
    print_table(rows)


@app.command()
def show(
    cid: Cid, service: Service = None, as_json: AsJson = False, config: Config = None, debug: Debug = False
) -> None:
    """Tell the story of a run: its steps, what came of each and when, what it waits for, and where in the source that is."""

    async def find(store: Store) -> tuple[Head, Journal]:
        from broker.durable.journal import Journal

        head = await _find(store, cid, service)
        if not (chunks := await store.read(head.run)):
            raise ValueError(f"the run of CID {cid!r} has just been forgotten, as it ended long ago ([store] keep)")
        return head, Journal.of(chunks)

    head, found = _with_store(config, find)
    if as_json:
        typer.echo(json.dumps({**head._asdict(), "entries": found.entries}))
        return
    _tell(head, found)


@app.command()
def cancel(cid: Cid, service: Service = None, config: Config = None, debug: Debug = False) -> None:
    """Cancel a run: it gets CancelledError where it waits, and may clean up."""
    from broker.protocol.runs import CANCEL

    _signal(quiet_settings(config), cid, service, CANCEL, "")


def signal(
    cid: Cid,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The signal: what the run waits for by `self.wait_for(NAME)`.")
    ],
    payload: Annotated[
        str, typer.Argument(metavar="PAYLOAD", help="JSON if it parses, else text.", show_default=False)
    ] = "",
    service: Service = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Send a signal to a run of a durable service."""
    from broker.cli.invoke import payload_of

    _signal(quiet_settings(config), cid, service, name, payload_of(payload))


def _signal(settings: Settings, cid: str, service: str | None, name: str, payload: Any) -> None:
    from broker.client import Client

    if service is None:
        service = _in_store(settings, lambda store: _find_unfinished(store, cid)).service
    with Client(settings=settings) as client:
        client.signal(service, cid, name, payload)


async def _find(store: Store, cid: str, service: str | None) -> Head:
    found = await store.heads(cid=cid, service=service)
    services = sorted({one.service for one in found})
    if len(services) > 1:
        raise ValueError(f"{', '.join(services)} have a run of CID {cid!r}: say which with --service")
    if not found:
        of = f" of {service!r}" if service else ""
        raise ValueError(
            f"the store has no run{of} of CID {cid!r}: it ended long ago ([store] keep), or never began, or has another store ([store] url)"
        )
    return found[0]


async def _find_unfinished(store: Store, cid: str) -> Head:
    from broker.durable.journal import CANCELLED, DONE

    head = await _find(store, cid, None)
    if head.state in (DONE, CANCELLED):
        raise ValueError(f"the run of CID {cid!r} is over: {head.state} at {_at(head.changed)} UTC")
    return head


def _with_store(config: Path | None, look: Callable[[Store], Awaitable[T]]) -> T:
    return _in_store(quiet_settings(config), look)


def _in_store(settings: Settings, look: Callable[[Store], Awaitable[T]]) -> T:
    from broker.stores.factory import open_existing
    from broker.stores.interface import StoreError

    async def in_store() -> T:
        store = open_existing(settings.store_url)
        try:
            return await look(store)
        except StoreError as error:
            raise ValueError(str(error)) from None
        finally:
            await store.close()

    return asyncio.run(in_store())


def _tell(head: Head, found: Journal) -> None:
    from broker.durable.story import Remark, due, story
    from broker.recording.spans import ago, span

    began = found.begin[1]
    typer.echo(f"{head.service} {escaped(head.cid)}: {head.state} for {_ago(head.changed)} (began {_at(began)} UTC)")
    for one in story(found):
        at = ago(round(((one.at if isinstance(one, Remark) else one.asked) - began) * 1e6))
        if isinstance(one, Remark):
            typer.echo(f"  {at:>10}      {escaped(one.text)}")
            continue
        typer.echo(
            f"  {at:>10}  {one.number + 1:>3} {one.kind} {escaped(one.what)}"
            + (f"  ({one.place})" if one.place else "")
        )
        indent = " " * 18
        if one.answered is not None:
            sign = "✗" if one.failed else "→"
            took = span(max(0, round((one.answered - one.asked) * 1e6)))
            typer.echo(f"{indent}{sign} {escaped(one.answer or '')}{' ' if one.answer else ''}after {took}")
        elif one.left is not None:
            typer.echo(f"{indent}· left after {span(max(0, round((one.left - one.asked) * 1e6)))}")
        elif one.is_waited_for:
            typer.echo(f"{indent}… {f'until {due(one)} UTC' if one.kind == 'sleep' else 'waits'}")


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _ago(seconds: float) -> str:
    from broker.recording.spans import span

    return span(max(0, round((time.time() - seconds) * 1e6)))
