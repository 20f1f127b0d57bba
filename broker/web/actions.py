"""What a person does from the page: replay, drop, stop, invoke. Each is a POST; the answer is where to look for what comes of it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse

from broker.errors import AckbackError
from broker.protocol.runs import CANCEL
from broker.stores.interface import Head
from broker.web import durable_views, text, views
from broker.web.jobs import What
from broker.web.site import Site
from broker.web.views import Page

SOON = 3.0
"""Seconds for which one dead letter's replay is waited for before the page goes on to its progress."""
INVOKE_TIMEOUT = 10.0

Result = RedirectResponse | Page
Action = Callable[[Site, Request, dict[str, str]], Awaitable[Result]]


async def replay_one(site: Site, request: Request, form: dict[str, str]) -> Result:
    """As it is, or with the body that was entered."""
    key = request.path_params["key"]
    seen = await run_in_threadpool(views.find, site, key)
    body = None
    if "body" in form:
        before = None if seen.is_cut else text.editable(seen.dead.message.body)
        if before is None:
            raise HTTPException(422, "The body of this dead letter cannot be edited.")
        entered = form["body"].replace("\r\n", "\n")
        if entered != before:
            if await run_in_threadpool(views.wants_json, site, seen) and not text.is_json(entered):
                return await run_in_threadpool(views.failure, site, request, entered, _why_not_json(entered))
            body = entered.encode("utf-8", "replace")
    what = f"{seen.dead.service or text.NOTHING}, CID {seen.dead.cid or text.NOTHING}"
    job = site.jobs.start("replay", what, 1, lambda dead: dead.key == key, body)
    await site.jobs.wait(job, SOON)
    if job.state == "finished" and job.done:
        return _to(f"/invocations/{quote(seen.dead.cid, safe='')}")
    return _to(f"/jobs/{job.number}")


def _why_not_json(entered: str) -> str:
    try:
        json.loads(entered)
    except (ValueError, RecursionError) as error:
        return f"That is no JSON, which this service takes: {error}. Nothing was sent."
    return ""


async def drop_one(site: Site, request: Request, form: dict[str, str]) -> Result:
    key = request.path_params["key"]
    dead = (await run_in_threadpool(views.find, site, key)).dead
    job = site.jobs.start(
        "drop", f"{dead.service or text.NOTHING}, CID {dead.cid or text.NOTHING}", 1, lambda one: one.key == key
    )
    await site.jobs.wait(job, SOON)
    return _to("/failures" if job.state == "finished" and job.done else f"/jobs/{job.number}")


async def replay_group(site: Site, request: Request, form: dict[str, str]) -> Result:
    return await _with_group(site, request, "replay")


async def drop_group(site: Site, request: Request, form: dict[str, str]) -> Result:
    return await _with_group(site, request, "drop")


async def _with_group(site: Site, request: Request, what: What) -> Result:
    group = views.group_of(site, request)
    key = group.kind.key
    job = site.jobs.start(what, views.in_words(group.kind), group.number, lambda dead: dead.kind.key == key)
    await site.jobs.wait(job, 0.2)
    return _to(f"/jobs/{job.number}")


async def stop_job(site: Site, request: Request, form: dict[str, str]) -> Result:
    job = site.jobs.get(request.path_params["number"])
    if job is None:
        raise HTTPException(404, "Nothing is known of this any more.")
    job.is_to_stop = True
    await site.jobs.wait(job, 1.0)
    return _to(f"/jobs/{job.number}")


async def invoke(site: Site, request: Request, form: dict[str, str]) -> Result:
    name, payload = request.path_params["name"], form.get("payload", "").replace("\r\n", "\n")
    callback = form.get("callback", "").strip()

    async def again(problem: str) -> Page:
        entered = {"payload": payload, "callback": callback}
        return await run_in_threadpool(views.service, site, request, entered, problem)

    value: Any = payload
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        takes_json = await run_in_threadpool(views.takes_json, site, name)
        if payload and takes_json:
            return await again(_why_not_json(payload))
    try:
        cid = await site.client.invoke_async(name, value, callback=callback or None, timeout=INVOKE_TIMEOUT)
    except (AckbackError, TimeoutError, TypeError, ValueError) as error:
        return await again(str(error))
    return _to(f"/invocations/{quote(cid, safe='')}")


async def signal_run(site: Site, request: Request, form: dict[str, str]) -> Result:
    head, _ = await durable_views.found(site, request)
    name, payload = form.get("name", "").strip(), form.get("payload", "").replace("\r\n", "\n")
    value: Any = payload
    with suppress(ValueError, RecursionError):
        value = json.loads(payload)
    try:
        await site.client.signal(head.service, head.cid, name, value, timeout=INVOKE_TIMEOUT)
    except (AckbackError, TimeoutError, TypeError, ValueError) as error:
        return await durable_views.run(site, request, {"name": name, "payload": payload}, str(error))
    return _to_run(head)


async def cancel_run(site: Site, request: Request, form: dict[str, str]) -> Result:
    head, _ = await durable_views.found(site, request)
    try:
        await site.client.signal(head.service, head.cid, CANCEL, timeout=INVOKE_TIMEOUT)
    except (AckbackError, TimeoutError) as error:
        return await durable_views.run(site, request, problem=str(error))
    return _to_run(head)


def _to_run(head: Head) -> RedirectResponse:
    return _to(f"/runs/{quote(head.cid, safe='')}?service={quote(head.service, safe='')}")


async def pause(site: Site, request: Request, form: dict[str, str]) -> Result:
    await site.schedules.tell("pause", request.path_params["service"])
    return _to("/schedules")


async def resume(site: Site, request: Request, form: dict[str, str]) -> Result:
    await site.schedules.tell("resume", request.path_params["service"])
    return _to("/schedules")


async def fire(site: Site, request: Request, form: dict[str, str]) -> Result:
    cid = (await site.schedules.tell("fire", request.path_params["service"]))["cid"]
    return _to(f"/invocations/{quote(cid, safe='')}")


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)
