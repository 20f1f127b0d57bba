"""The commands `ackback dead …`: what died, why, and what to do with it.

In come the words of a command line, out go dead letters as text, as lines of JSON, or back to their services.
"""

import typer

from broker.cli.dead.commands import drop, list_, replay, show
from broker.cli.dead.files import export, import_

app = typer.Typer(
    name="dead",
    help="Dead letters: messages that could go no further, kept with the reason.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

for name, command in (
    ("list", list_),
    ("show", show),
    ("replay", replay),
    ("drop", drop),
    ("export", export),
    ("import", import_),
):
    app.command(name)(command)
