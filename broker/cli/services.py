"""`ackback services`: what would be hosted."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.console import Config, Debug, quiet_settings


def services(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH", show_default=False)] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List the services that would be hosted."""
    from broker.hosting import registry

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
