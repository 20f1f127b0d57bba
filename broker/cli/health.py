"""`ackback health`: for a container's health check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.console import FAILED, Config, Debug, quiet_settings, tell

if TYPE_CHECKING:
    from http.client import HTTPResponse

TIMEOUT = 5.0


def health(
    config: Config = None,
    live: Annotated[
        bool, typer.Option("--live", help="Only whether it lives, not whether it consumes its queues.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Ask the daemon on this host whether it is ready; exit code 0 if so. It has to have a [metrics] port."""
    from http.client import HTTPConnection, HTTPException

    from broker.errors import ConfigurationError

    section = quiet_settings(config).metrics
    if section.port is None:
        raise ConfigurationError("[metrics] port is not set: without it a daemon does not say how it is")
    host = _answers_at(section.host)
    connection = HTTPConnection(host, section.port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz" if live else "/readyz")
        answer: HTTPResponse = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        tell(f"the daemon does not answer at {host}:{section.port}: {error}")
        raise typer.Exit(FAILED) from None
    finally:
        connection.close()
    if answer.status != 200:
        tell(text)
        raise typer.Exit(FAILED)
    typer.echo(text)


def _answers_at(host: str) -> str:
    """Where to ask one that listens on `host`, which may stand for all addresses."""
    from ipaddress import ip_address

    try:
        address = ip_address(host)
    except ValueError:
        return host  # a name
    return ("127.0.0.1" if address.version == 4 else "::1") if address.is_unspecified else host
