"""`ackback web`: the page."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from broker.cli.console import Config, Debug

NEEDED = ("jinja2", "starlette", "uvicorn")


def web(
    host: Annotated[
        str | None,
        typer.Option("--host", help="Where to listen; beyond 127.0.0.1 only with [web] password.", show_default=False),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="8023 by default.", show_default=False)
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            metavar="FILE",
            help="Keep what has been read in this file, and go on from there at the next start.",
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Show everything, do nothing: no replay, drop or invoke.")
    ] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Serve the page: services, failures, invocations and daemons, live, in a browser."""
    from broker import log
    from broker.errors import ConfigurationError
    from broker.settings import Settings

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigurationError(
            f"the page needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: pip install 'ackback[web]'"
        )
    from broker.web.server import serve

    settings = Settings.load(config)
    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    if given:
        settings = settings.with_changes("web", **given)
    log.setup(settings.log, debug=debug)
    serve(settings, index, read_only=read_only)
