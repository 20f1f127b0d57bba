"""The command `ackback`. What is slow to import, a command imports when it runs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from broker import dead
from broker.console import FAILED, MISUSED, Config, Debug, progress, quiet_log, quiet_settings
from broker.errors import AckbackError, ConfigurationError, RemoteError, ServiceDefinitionError

app = typer.Typer(
    name="ackback",
    help="Asynchronous invocation over RabbitMQ: services, their requests, and the replies that reach their callbacks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.add_typer(dead.app)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The service.")]
Payload = Annotated[
    str,
    typer.Argument(metavar="PAYLOAD", help="JSON if it parses, else text; - reads standard input.", show_default=False),
]


def main() -> None:
    """Run the command line. Errors that a person can mend are one sentence on standard error."""
    debug = "--debug" in sys.argv
    try:
        app()
    except RemoteError as error:
        _fail(f"{error.problem.service} failed: {error.problem.title}: {error.problem.detail}", FAILED, debug)
    except (ConfigurationError, ServiceDefinitionError) as error:
        _fail(str(error), MISUSED, debug)
    except (AckbackError, TimeoutError, TypeError, ValueError) as error:
        if type(error) in (TypeError, ValueError) and not debug and error.__traceback__ is None:
            raise
        _fail(str(error), FAILED, debug)
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback(invoke_without_command=True)
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        typer.echo(f"ackback {version('ackback')}")
        raise typer.Exit


@app.command()
def run(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Folders, files or dotted modules with services.", show_default=False),
    ] = None,
    config: Config = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, metavar="N", help="Processes; by default as configured (1).")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when a service's file changes (for development).")
    ] = False,
    debug: Debug = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run a daemon that hosts services."""
    from broker import log, registry
    from broker.settings import Settings

    settings = Settings.load(config)
    if workers is not None:
        settings = settings.with_changes("worker", processes=workers)
    log.setup(settings.log, debug=debug)
    if not worker and (reload or settings.worker.processes > 1):
        sys.exit(_supervise(settings, paths or [], config, reload=reload, debug=debug))
    from broker.worker import serve

    services = registry.load(settings, paths or None)
    for name in settings.service:
        if name not in services:
            near = services.nearest(name)
            hint = f"; did you mean {near!r}?" if near else ""
            log.logger.warning('[service."%s"] configures a service that is not hosted here%s', name, hint)
    sys.exit(serve(settings, services, parent_pipe=worker))


def _supervise(settings: Any, paths: list[str], config: Path | None, *, reload: bool, debug: bool) -> int:
    from broker.supervisor import Supervisor, watcher

    arguments = ["run", "--worker", "--workers", "1", *(["--debug"] if debug else [])]
    if config is not None:
        arguments += ["--config", str(config)]
    changed = None
    if reload:
        folders = (
            [Path(path) for path in paths] if paths else [settings.folder / path for path in settings.services.paths]
        )
        watched = [folder for folder in folders if folder.exists()] + ([settings.file] if settings.file else [])
        changed = watcher(watched or [Path.cwd()])
    return Supervisor([*arguments, "--", *paths], settings.worker.processes, settings.worker.grace, changed).run()


@app.command()
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
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Send it N times.")] = 1,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Invoke a service in the background and print the CID."""
    from broker.client import Client

    value = _payload(payload)
    options: dict[str, Any] = {"callback": callback or None, "delay": delay, "expiration": expiration}
    with Client(settings=quiet_settings(config)) as client:
        if count == 1:
            typer.echo(client.invoke_async(name, value, **options))
            return
        with progress("sending", count) as advance:
            cids = client.invoke_many(name, _repeated(value, count, advance), **options)
    if sys.stdout.isatty():
        typer.echo(f"{len(cids)} requests accepted by {name}, CIDs {cids[0]} to {cids[-1]}")
    else:
        typer.echo("\n".join(cids))


@app.command()
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
    from broker.client import Client

    value = _payload(payload)
    with Client(settings=quiet_settings(config)) as client:
        _print(client.invoke(name, value, timeout=timeout))


@app.command()
def services(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List the services that would be hosted."""
    from broker import registry

    found = registry.load(quiet_settings(config), paths or None)
    rows = [("NAME", "CLASS", "QUEUE", "CALLBACK", "INPUT", "OUTPUT")]
    for one in sorted(found, key=lambda one: one.name):
        chosen = ", ".join(found.default_callbacks(one)) or "-"
        rows.append(
            (
                one.name,
                f"{one.cls.__module__}.{one.cls.__qualname__}",
                one.name,
                chosen,
                one.input_type,
                one.output_type,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def check(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Check the configuration, the connection, the permissions and the queues. Declares what `run` would declare."""
    from broker.check import checks

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


def _payload(text: str) -> Any:
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


def _fail(text: str, code: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        traceback.print_exc()
    typer.echo(f"ackback: {text}", err=True)
    sys.exit(code)
