"""The pages as JSON, for programs: reading alone. `/api/openapi.json` describes it."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.protocol import archive
from broker.recording.trace import as_values
from broker.web import durable_views, views
from broker.web.openapi import document
from broker.web.site import Site

Answer = Callable[[Site, Request], Any]


def routes(site: Site) -> list[Route]:
    answers: tuple[tuple[str, Answer], ...] = (
        ("/api/services", _services),
        ("/api/services/{name:path}", _service),
        ("/api/failures", _failures),
        ("/api/failures/groups/{kind}", _group),
        ("/api/failures/{key}", _failure),
        ("/api/invocations", _invocations),
        ("/api/invocations/{cid:path}", _invocation),
        ("/api/runs", _runs),
        ("/api/runs/{cid:path}", _run),
        ("/api/schedules", _schedules),
        ("/api/daemons", _daemons),
        ("/api/concerns", lambda site, _: [one._asdict() for one in site.board.moment.concerns]),
        ("/api/jobs", _jobs),
        ("/api/openapi.json", lambda _, __: document()),
    )
    return [Route(path, _endpoint(site, answer)) for path, answer in answers]


def problem(status: int, detail: str) -> Response:
    return _json({"status": status, "detail": detail}, status)


def _endpoint(site: Site, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if "/failures" in request.url.path:
            await site.dead.look(object())
        if inspect.iscoroutinefunction(answer):
            return _json(await answer(site, request))
        return _json(await run_in_threadpool(answer, site, request))

    return endpoint


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, default=_told), status, media_type="application/json")


def _told(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    return str(value)


def _services(site: Site, request: Request) -> Any:
    moment = site.board.moment
    return [{**one._asdict(), "ready": moment.ready(one.name)} for one in moment.services]


def _service(site: Site, request: Request) -> Any:
    context = views.service(site, request).context
    line, name = context["line"], context["name"]
    return {
        "name": name,
        "now": {**line._asdict(), "ready": context["ready"]} if line else None,
        "minutes": [
            {
                "minute": one.minute * 60,
                "handled": one.tally.handled,
                "failures": one.tally.failures,
                **dict(zip(("p50", "p95", "p99"), one.tally.times.percentiles((0.5, 0.95, 0.99)), strict=True)),
            }
            for one in context["minutes"]
        ],
        "about": {code: {**told, "daemons": [one.name for one in hosts]} for code, told, hosts in context["about"]},
        "failures": [
            {"outcome": outcome, "error": error, "count": count, "newest": event}
            for outcome, error, count, event in context["groups"]
        ],
    }


def _failures(site: Site, request: Request) -> Any:
    kinds = [
        {"key": one.kind.key, **one.kind._asdict(), "count": one.number, "first": one.first, "last": one.last}
        for one in site.dead.groups
    ]
    return {"as_of": site.dead.as_of, "count": site.dead.count, "groups": kinds}


def _group(site: Site, request: Request) -> Any:
    context = views.group(site, request).context
    return {
        "count": context["group"].number,
        "page": context["page"],
        "pages": context["pages"],
        "dead_letters": [row._asdict() for row in context["rows"]],
    }


def _failure(site: Site, request: Request) -> Any:
    seen = views.find(site, request.path_params["key"])
    return {
        "key": request.path_params["key"],
        "bytes": seen.size,
        "is_cut": seen.is_cut,
        "message": json.loads(archive.dumps(seen.dead.message)),
    }


def _invocations(site: Site, request: Request) -> Any:
    listed = views.listed(site, request)
    return {"events": [one.event for one in listed.found], "older": listed.older, "cids": listed.cids}


def _invocation(site: Site, request: Request) -> Any:
    root, is_cut = site.lookup.story(request.path_params["cid"])
    if root is None:
        raise HTTPException(404, f"Nothing is known of {request.path_params['cid']!r}.")
    return {**as_values(root), "is_cut": is_cut}


async def _runs(site: Site, request: Request) -> Any:
    return [one._asdict() for one in await durable_views.listed(site, request)]


async def _run(site: Site, request: Request) -> Any:
    context = (await durable_views.run(site, request)).context
    return {**context["head"]._asdict(), "steps": context["told"], "left_out": context["left_out"]}


async def _schedules(site: Site, request: Request) -> Any:
    return [one.model_dump(mode="json") for one in await site.schedules.lines()]


def _daemons(site: Site, request: Request) -> Any:
    return [one._asdict() for one in site.board.moment.daemons]


def _jobs(site: Site, request: Request) -> Any:
    names = ("number", "what", "of", "state", "total", "done", "refused", "problem", "began", "ended")
    return [{name: getattr(job, name) for name in names} for job in site.jobs]
