"""`ackback init`: a project that works."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.console import FAILED, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".tmpl"


def init(folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)]) -> None:
    """Make a project in DIR: services, their test, a configuration, and a Compose file for RabbitMQ. Overwrites nothing."""
    files = {folder / path: text.format(name=folder.resolve().name) for path, text in _templates()}
    if there := sorted(str(path) for path in files if path.exists()):
        tell(f"nothing was written: there is {', '.join(there)} already")
        raise typer.Exit(FAILED)
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            typer.echo(f"wrote {path}")
    except OSError as error:
        tell(f"{error.filename or folder} cannot be written: {error.strerror}")
        raise typer.Exit(FAILED) from None
    typer.echo(f"next: cd {folder}, and see README.md")


def _templates() -> Iterator[tuple[str, str]]:
    yield from _in(resources.files("broker.cli") / "project", "")


def _in(place: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for one in sorted(place.iterdir(), key=lambda found: found.name):
        if one.is_dir():
            yield from _in(one, f"{prefix}{one.name}/")
        elif one.name.endswith(SUFFIX):
            yield prefix + one.name.removesuffix(SUFFIX), one.read_text("utf-8")
