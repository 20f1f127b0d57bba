"""`ackback send` and `ackback call`: invocations from a terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from broker.cli.console import Config, Debug, progress, quiet_settings, tell
from broker.errors import AckbackError

if TYPE_CHECKING:
    from broker.client import AsyncClient
    from broker.settings import Settings

LOOK_AFTER = 1.0
NOBODY = "no daemon consumes {!r} at the moment: {}"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The service.")]
Payload = Annotated[
    str,
    typer.Argument(metavar="PAYLOAD", help="JSON if it parses, else text; - reads standard input.", show_default=False),
]


def send(
    name: Name,
    payload: Payload = "",
    callback: Annotated[
        list[str] | None,
        typer.Option("--callback", metavar="NAME", help="The service that gets the reply; may be repeated."),
    ] = None,
    delay: Annotated[
        float | None, typer.Option("--delay", min=0, metavar="S", help="Seconds before it reaches the service.")
    ] = None,
    expiration: Annotated[
        float | None, typer.Option("--expiration", min=0, metavar="S", help="Seconds after which it expires.")
    ] = None,
    no_echo: Annotated[
        bool,
        typer.Option(
            "--no-echo", help="The service knows nothing of ackback: it echoes nothing but the correlation ID."
        ),
    ] = False,
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Send it N times.")] = 1,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, metavar="S", help="Seconds to wait for RabbitMQ to accept it.")
    ] = 30.0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Invoke a service in the background and print the CID."""
    from broker.client import Client

    value = payload_of(payload)
    options: dict[str, Any] = {
        "callback": callback or None,
        "delay": delay,
        "expiration": expiration,
        "timeout": timeout,
        "echo": False if no_echo else None,
    }
    with Client(settings=quiet_settings(config)) as client:
        if count == 1:
            typer.echo(client.invoke_async(name, value, **options))
        else:
            with progress("sending", count) as advance:
                cids = client.invoke_many(name, _repeated(value, count, advance), **options)
            _print_cids(name, cids)
        with suppress(AckbackError):
            if not delay and not client.consumers(name):
                waits = "the request waits" if count == 1 else "the requests wait"
                tell(NOBODY.format(name, f"{waits} in its queue"))


def _print_cids(name: str, cids: list[str]) -> None:
    if sys.stdout.isatty():
        typer.echo(f"{len(cids)} requests accepted by {name}, CIDs {cids[0]} to {cids[-1]}")
    else:
        typer.echo("\n".join(cids))


def call(
    name: Name,
    payload: Payload = "",
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, metavar="S", help="Seconds to wait for the reply.")
    ] = 30.0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Invoke a service, wait, and print the response."""
    _print(asyncio.run(_call(quiet_settings(config), name, payload_of(payload), timeout)))


async def _call(settings: Settings, name: str, value: Any, timeout: float) -> Any:
    from broker.client import AsyncClient

    async with AsyncClient(settings=settings) as client:
        telling = asyncio.ensure_future(_tell_if_nobody_consumes(client, name))
        try:
            return await client.call(name, value, timeout=timeout)
        finally:
            telling.cancel()


async def _tell_if_nobody_consumes(client: AsyncClient, name: str) -> None:
    await asyncio.sleep(LOOK_AFTER)
    with suppress(AckbackError):
        if not await client.consumers(name):
            tell(NOBODY.format(name, "waiting for one"))


def payload_of(text: str) -> Any:
    if text == "-":
        body = sys.stdin.buffer.read()
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return body
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _repeated(value: Any, count: int, advance: Callable[[], object]) -> Iterator[Any]:
    for _ in range(count):
        yield value
        advance()


def _print(response: Any) -> None:
    if isinstance(response, bytes):
        sys.stdout.buffer.write(response)
    elif isinstance(response, str):
        typer.echo(response)
    else:
        typer.echo(json.dumps(response, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
