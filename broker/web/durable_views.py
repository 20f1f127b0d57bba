"""The pages of runs and schedules."""

from __future__ import annotations

import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from broker.durable.journal import OVER, Journal
from broker.durable.run import WAIT
from broker.durable.story import Remark, Step, due, story
from broker.protocol.schedules import Line, cid_of
from broker.stores.interface import Head
from broker.web.site import Site
from broker.web.views import Page

LISTED = 200
TOLD = 500
"""Steps, the last ones, that are shown of a long run. One that is longer is not watched as it goes on."""
STATES = ("running", "failing", "failed", "done", "cancelled")


async def runs(site: Site, request: Request) -> Page:
    problem, found = "", list[Head]()
    try:
        found = await listed(site, request)
    except HTTPException as error:
        problem = error.detail
    context = {"runs": found, "wanted": _wanted(request), "states": STATES, "most": LISTED, "problem": problem}
    return Page("runs.html", context, is_live=True)


async def listed(site: Site, request: Request) -> list[Head]:
    """The runs that a query asks for."""
    filters = {name: value for name, value in _wanted(request).items() if value}
    return await site.runs.heads(most=LISTED, **filters)


def _wanted(request: Request) -> dict[str, str]:
    return {name: request.query_params.get(name, "").strip() for name in ("cid", "service", "state")}


async def run(site: Site, request: Request, entered: dict[str, str] | None = None, problem: str = "") -> Page:
    head, journal = await found(site, request)
    told = story(journal)
    waits = [one.what.strip('"') for one in told if isinstance(one, Step) and one.is_waited_for and one.kind == WAIT]
    return Page(
        "run.html",
        {
            "head": head,
            "began": journal.begin[1],
            "told": [_row(one) for one in told[-TOLD:]],
            "left_out": max(0, len(told) - TOLD),
            "is_over": head.state in OVER,
            "entered": entered or {"name": waits[0] if waits else "", "payload": ""},
            "problem": problem,
        },
        status=422 if problem else 200,
        is_live=len(told) <= TOLD,
    )


async def found(site: Site, request: Request) -> tuple[Head, Journal]:
    """The run that a path names."""
    return await site.runs.journal(request.path_params["cid"], request.query_params.get("service") or None)


def _row(one: Step | Remark) -> dict[str, Any]:
    if isinstance(one, Remark):
        return {"at": one.at, "remark": one.text}
    ended = one.answered if one.answered is not None else one.left
    state = "failed" if one.failed else "ok" if one.answered is not None else "left" if one.left is not None else "sent"
    return {
        "at": one.asked,
        "number": one.number + 1,
        "kind": one.kind,
        "what": one.what,
        "place": one.place,
        "answer": one.answer or "",
        "state": "waits" if one.is_waited_for else state,
        "until": due(one) if one.is_waited_for and one.kind == "sleep" else None,
        "took": None if ended is None else max(0, round((ended - one.asked) * 1e6)),
    }


async def confirm_cancel(site: Site, request: Request) -> Page:
    head, _ = await found(site, request)
    return Page("cancel.html", {"head": head})


async def schedules(site: Site, request: Request) -> Page:
    problem, lines = "", list[Line]()
    try:
        lines = await site.schedules.lines()
    except HTTPException as error:
        problem = error.detail
    rows = [(one, cid_of(one.service, one.last) if one.last else None) for one in lines]
    return Page("schedules.html", {"rows": rows, "now": time.time(), "problem": problem}, is_live=True)
