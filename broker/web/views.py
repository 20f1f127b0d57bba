"""What each page shows: a request in, the name of a template and what to fill it with out. They run in threads, and change nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from broker.protocol.deadletters import REASONS, Kind
from broker.protocol.events import Event
from broker.protocol.names import callback_name
from broker.recording.lookup import Found, Search
from broker.recording.trace import Step
from broker.web import charts, text
from broker.web.dead_letters import Group, Row, Seen
from broker.web.site import Site

LISTED = 100
GROUPED = 50
MOST_FAILURES = 200
"""Of a service, that are grouped by error."""
MOST_GROUPS = 500
"""Of dead letters, that are listed."""
SINCE = {"": "any time", "10m": "last 10 minutes", "1h": "last hour", "1d": "last day"}
_SECONDS = {"10m": 600, "1h": 3600, "1d": 86_400}
OUTCOMES = ("failed", "ok", "retried", *REASONS)


@dataclass(frozen=True, slots=True)
class Page:
    """`is_live`: it shows what changes by itself."""

    template: str
    context: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    is_live: bool = False


def overview(site: Site, request: Request) -> Page:
    moment = site.board.moment
    minute = moment.now // 60_000_000
    services = [
        (one, moment.ready(one.name), charts.spark(moment.trends.get(one.name, []), minute)) for one in moment.services
    ]
    return Page("overview.html", {"services": services}, is_live=True)


def daemons(site: Site, request: Request) -> Page:
    return Page("daemons.html", is_live=True)


def service(site: Site, request: Request, entered: dict[str, str] | None = None, problem: str = "") -> Page:
    name, moment = request.path_params["name"], site.board.moment
    chosen = request.query_params.get("span", "1h")
    if chosen not in charts.SPANS:
        chosen = "1h"
    minute = moment.now // 60_000_000
    minutes = site.lookup.minutes(minute - charts.SPANS[chosen][0] + 1, name).get(name, [])
    line = next((one for one in moment.services if one.name == name), None)
    about = site.lookup.about(name)
    failures = site.lookup.search(Search(name, "failed"), MOST_FAILURES)
    hosts = [one for one in moment.daemons if one.hosts and name in one.services]
    if line is None and not about and not failures and name not in site.board.names():
        raise HTTPException(404, f"Nothing is known of a service {name!r}.")
    rates, times = charts.history(minutes, minute, chosen)
    return Page(
        "service.html",
        {
            "name": name,
            "line": line,
            "ready": moment.ready(name),
            "minutes": minutes,
            "rates": rates,
            "times": times,
            "spans": charts.SPANS,
            "chosen": chosen,
            "about": [
                (code, told, [one for one in hosts if one.services[name] == code]) for code, told in about.items()
            ],
            "groups": _grouped(failures),
            "kinds": [one for one in site.dead.groups if one.kind.service == name],
            "entered": entered or {"payload": "", "callback": ""},
            "problem": problem,
            "takes_json": takes_json(site, name),
            "convention": callback_name(name),
        },
        status=422 if problem else 200,
        is_live=True,
    )


def takes_json(site: Site, service: str) -> bool:
    """Whether a body for this service has to be JSON, as far as a daemon has told."""
    told = next(iter(site.lookup.about(service).values()), {})
    schema = told.get("takes")
    return isinstance(schema, dict) and bool(schema) and schema.get("type") != "string"


def _grouped(failures: list[Found]) -> list[tuple[str, str, int, Event]]:
    """Outcome, error, how many, and the newest, of failures that are the same."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for one in failures:
        if one.event["event"] == "handled":
            title, detail = one.event.get("error") or ("", "")
            groups.setdefault((str(one.event.get("outcome")), f"{title}: {detail}" if title else ""), []).append(
                one.event
            )
    return [(outcome, error, len(events), events[0]) for (outcome, error), events in groups.items()][:GROUPED]


def failures(site: Site, request: Request) -> Page:
    return Page("failures.html", {"kinds": site.dead.groups[:MOST_GROUPS], "jobs": list(site.jobs)[:10]}, is_live=True)


def group(site: Site, request: Request) -> Page:
    group = group_of(site, request)
    page = _page_number(request)
    rows = site.dead.rows(group.kind.key, LISTED, (page - 1) * LISTED)
    return Page(
        "group.html", {"group": group, "rows": rows, "page": page, "pages": -(-group.number // LISTED)}, is_live=True
    )


def group_of(site: Site, request: Request) -> Group:
    """The kind of dead letters that a path names.

    Raises:
        HTTPException: there are none of it any more.
    """
    group = site.dead.group(request.path_params["kind"])
    if group is None:
        raise HTTPException(
            404, "There are no dead letters of this kind any more: they have been replayed, or dropped."
        )
    return group


def in_words(kind: Kind) -> str:
    return f"{kind.service or text.NOTHING}, {kind.reason}, {kind.title}: {kind.detail}"


def _page_number(request: Request) -> int:
    given = request.query_params.get("page", "1")
    return max(1, int(given)) if given.isascii() and given.isdigit() and len(given) < 8 else 1


def confirm_group(site: Site, request: Request) -> Page:
    group = group_of(site, request)
    return Page(
        "confirm.html",
        {
            "what": text.count(group.number, "dead letter"),
            "of": in_words(group.kind),
            "action": f"/failures/groups/{group.kind.key}/drop",
            "back": f"/failures/groups/{group.kind.key}",
        },
    )


def failure(site: Site, request: Request, edited: str | None = None, problem: str = "") -> Page:
    key = request.path_params["key"]
    seen = find(site, key)
    body = seen.dead.message.body
    can_edit = not seen.is_cut and seen.dead.message.content_encoding is None
    return Page(
        "failure.html",
        {
            "key": key,
            "dead": seen.dead,
            "group": site.dead.group(seen.dead.kind.key),
            "size": seen.size,
            "is_cut": seen.is_cut or len(body) > text.MAX_SHOWN,
            "body": text.readable(body[: text.MAX_SHOWN]),
            "editable": (text.editable(body) if edited is None else edited) if can_edit else None,
            "properties": [(name, str(value)[: text.MAX_SHOWN]) for name, value in seen.dead.properties()],
            "headers": _headers(seen),
            "traceback": str(seen.dead.error.get("traceback") or ""),
            "wants_json": wants_json(site, seen),
            "problem": problem,
        },
        status=422 if problem else 200,
    )


def find(site: Site, key: str) -> Seen:
    """A dead letter by its key.

    Raises:
        HTTPException: it is not among them any more.
    """
    seen = site.dead.get(key)
    if seen is None:
        raise HTTPException(404, "This dead letter is not there any more: it has been replayed, or dropped.")
    return seen


def wants_json(site: Site, seen: Seen) -> bool:
    """Whether an edited body has to be JSON: the message says that it is, or the service takes nothing else."""
    return "json" in (seen.dead.message.content_type or "") or takes_json(site, seen.dead.service)


def _headers(seen: Seen) -> Iterator[tuple[str, str]]:
    for name, value in seen.dead.message.headers.items():
        if name != "dead-error":
            yield name, (value if isinstance(value, str) else repr(value))[: text.MAX_SHOWN]


def confirm_one(site: Site, request: Request) -> Page:
    key = request.path_params["key"]
    dead = find(site, key).dead
    return Page(
        "confirm.html",
        {
            "what": "this dead letter",
            "of": f"{dead.service or text.NOTHING}, {dead.reason}, CID {dead.cid or text.NOTHING}",
            "action": f"/failures/{key}/drop",
            "back": f"/failures/{key}",
        },
    )


def job(site: Site, request: Request) -> Page:
    found = site.jobs.get(request.path_params["number"])
    if found is None:
        raise HTTPException(404, "Nothing is known of this: the page has been started again since, or it was long ago.")
    return Page("job.html", {"job": found}, is_live=True)


@dataclass(frozen=True, slots=True)
class Listed:
    """What a search has found. `older` is where the next page begins; None if this is the last one."""

    search: Search
    cid: str
    since: str
    found: list[Found]
    cids: list[str]
    older: int | None


def invocations(site: Site, request: Request) -> Page:
    return Page("invocations.html", {"listed": listed(site, request), "outcomes": OUTCOMES, "sinces": SINCE})


def listed(site: Site, request: Request) -> Listed:
    query = request.query_params
    since, cid, before = query.get("since", ""), query.get("cid", "").strip(), query.get("before", "")
    search = Search(
        query.get("service", "").strip(),
        query.get("outcome", "").strip(),
        int((time.time() - _SECONDS[since]) * 1e6) if since in _SECONDS else 0,
        int(before) if before.isascii() and before.isdigit() and len(before) < 18 else None,
    )
    if cid:
        return Listed(search, cid, since, [], site.lookup.beginning_with(cid, LISTED), None)
    found = site.lookup.search(search, LISTED + 1)
    older = found[LISTED - 1].number if len(found) > LISTED else None
    return Listed(search, cid, since, found[:LISTED], [], older)


def invocation(site: Site, request: Request) -> Page:
    cid = request.path_params["cid"]
    root, is_cut = site.lookup.story(cid)
    dead = site.dead.of_cids(_cids(root) if root else {cid})
    if root is None:
        known = {"cid": cid, "since": site.lookup.since(), "count": site.lookup.count(), "dead": dead}
        return Page("unknown.html", known, status=404, is_live=True)
    drawn = charts.timeline(root, site.board.moment.now)
    return Page(
        "invocation.html",
        {"cid": cid, "root": root, "drawn": drawn, "is_cut": is_cut or drawn.is_cut, "dead": _by_cid(dead)},
        is_live=True,
    )


def _cids(step: Step) -> set[str]:
    return {step.cid, *(cid for child in step.children for cid in _cids(child))}


def _by_cid(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for one in rows:
        found.setdefault(one.cid, []).append(one)
    return found
