"""`ackback asyncapi`: what is hosted, for those who generate clients and catalogues from it."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Annotated

import typer

from broker.cli.console import Config, Debug, quiet_settings


def asyncapi(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    title: Annotated[str, typer.Option("--title", help="The title of the document.")] = "ackback services",
    api_version: Annotated[
        str | None,
        typer.Option(
            "--api-version", metavar="VERSION", help="The version of the API, yours.", show_default="that of ackback"
        ),
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Print an AsyncAPI 3.0 document of the services that would be hosted."""
    from broker.hosting import registry
    from broker.hosting.asyncapi import document

    settings = quiet_settings(config)
    found = registry.load(settings, paths or None)
    typer.echo(json.dumps(document(found, title, api_version or version("ackback"), settings.urls), indent=2))
