"""How dead letters are chosen on the command line."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import typer

from broker.protocol.deadletters import REASONS, Filter

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _age(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):
        return text
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if not parts:
        raise typer.BadParameter(f"{text!r} is not an age; write a number and s, m, h, d or w, as in 90s or 2h")
    return timedelta(**{_UNITS[parts[2]]: float(parts[1])})


def _reason(text: str) -> str:
    if text not in REASONS:
        raise typer.BadParameter(f"there is no reason {text!r}; there are {', '.join(REASONS)}")
    return text


Cids = Annotated[list[str] | None, typer.Argument(metavar="[CID]...", show_default=False, help="Only these.")]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", metavar="REASON", parser=_reason, help="May be repeated.")
]
Services = Annotated[
    list[str] | None,
    typer.Option("--service", metavar="NAME", help="The service they died in; may be a pattern like 'orders.*'."),
]
OlderThan = Annotated[timedelta | None, typer.Option("--older-than", metavar="AGE", parser=_age, help="As in 90s, 2h.")]
NewerThan = Annotated[timedelta | None, typer.Option("--newer-than", metavar="AGE", parser=_age, help="As in 90s, 2h.")]
All = Annotated[bool, typer.Option("--all", help="All of them; needed where nothing else says which.")]


def chosen_by(
    cids: list[str] | None,
    reasons: list[str] | None,
    services: list[str] | None,
    older_than: timedelta | None,
    newer_than: timedelta | None,
) -> Filter:
    return Filter(frozenset(cids or ()), frozenset(reasons or ()), tuple(services or ()), older_than, newer_than)


def needed(chosen: Filter, all_: bool) -> Filter:
    if not chosen and not all_:
        raise typer.BadParameter("say which: by CID, --reason, --service, --older-than or --newer-than, or --all")
    return chosen
