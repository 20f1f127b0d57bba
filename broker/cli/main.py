"""The command `ackback`. What is slow to import, a command imports when it runs."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from broker.cli import dead, runs, schedules
from broker.cli.asyncapi import asyncapi
from broker.cli.check import check
from broker.cli.console import FAILED, MISUSED, tell
from broker.cli.health import health
from broker.cli.init import init
from broker.cli.invoke import call, send
from broker.cli.migrate import migrate
from broker.cli.record.events import events
from broker.cli.record.top import top
from broker.cli.record.trace import trace
from broker.cli.run import run
from broker.cli.services import services
from broker.cli.web import web
from broker.errors import AckbackError, ConfigurationError, RemoteError, ServiceDefinitionError

app = typer.Typer(
    name="ackback",
    help="Asynchronous invocation over RabbitMQ: services, their requests, and the replies that reach their callbacks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for command in (
    run,
    send,
    call,
    runs.signal,
    services,
    check,
    migrate,
    trace,
    events,
    top,
    web,
    asyncapi,
    init,
    health,
):
    app.command()(command)
app.add_typer(dead.app)
app.add_typer(runs.app)
app.add_typer(schedules.app)


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


def _fail(text: str, code: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        traceback.print_exc()
    tell(text)
    sys.exit(code)
