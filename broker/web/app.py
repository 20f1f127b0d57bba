"""The application: paths, and what answers at each. Pages are rendered in threads; actions run on the event loop."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Match, Mount, Route
from starlette.staticfiles import StaticFiles

from broker.protocol.names import DEAD_LETTERS
from broker.web import actions, api, durable_views, text, views
from broker.web.guard import TOKEN, Guard, Tokens, form_of
from broker.web.metrics import metrics
from broker.web.site import Site
from broker.web.views import Page

View = Callable[[Site, Request], Any]
"""Returns a Page. One that asks others for what it shows is `async`; all others run in threads."""
OF_DEAD_LETTERS = (
    views.failures,
    views.group,
    views.failure,
    views.confirm_group,
    views.confirm_one,
    views.invocation,
    views.service,
)
"""Before these, the dead letters are looked through, should they have changed."""
SHARED = (views.overview, views.daemons, durable_views.runs)
"""These are the same for all who look at one moment, and made once for them."""
PAGES: tuple[tuple[str, View], ...] = (
    ("/", views.overview),
    ("/services/{name:path}", views.service),
    ("/failures", views.failures),
    ("/failures/groups/{kind}", views.group),
    ("/failures/groups/{kind}/confirm-drop", views.confirm_group),
    ("/failures/{key}", views.failure),
    ("/failures/{key}/confirm-drop", views.confirm_one),
    ("/jobs/{number:int}", views.job),
    ("/invocations", views.invocations),
    ("/invocations/{cid:path}", views.invocation),
    ("/runs", durable_views.runs),
    ("/runs/{cid:path}/confirm-cancel", durable_views.confirm_cancel),
    ("/runs/{cid:path}", durable_views.run),
    ("/schedules", durable_views.schedules),
    ("/daemons", views.daemons),
)
ACTIONS: tuple[tuple[str, actions.Action], ...] = (
    ("/failures/groups/{kind}/replay", actions.replay_group),
    ("/failures/groups/{kind}/drop", actions.drop_group),
    ("/failures/{key}/replay", actions.replay_one),
    ("/failures/{key}/drop", actions.drop_one),
    ("/jobs/{number:int}/stop", actions.stop_job),
    ("/invoke/{name:path}", actions.invoke),
    ("/runs/{cid:path}/signal", actions.signal_run),
    ("/runs/{cid:path}/cancel", actions.cancel_run),
    ("/schedules/{service:path}/pause", actions.pause),
    ("/schedules/{service:path}/resume", actions.resume),
    ("/schedules/{service:path}/fire", actions.fire),
)
GONE = Markup('<div id="live" data-live><p class="note">{}</p></div>')
"""What takes the place of what is not there any more."""
PING_EVERY = 15.0
"""Seconds without news after which a comment is sent, so that nothing in between takes the connection for dead."""


class Pages:
    """Renders pages, whole or only what of them is live."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._environment = Environment(
            loader=PackageLoader("broker.web"),
            autoescape=True,
            finalize=text.shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            name: getattr(text, name)
            for name in (
                "block",
                "field",
                "micros",
                "millis",
                "decimal",
                "clock",
                "exactly",
                "size",
                "count",
                "indented",
            )
        }
        self._environment.filters["path"] = lambda part: quote(str(part), safe="")
        self._shared: dict[tuple[View, bool], tuple[int, str]] = {}
        self._sharing = asyncio.Lock()
        self.routes = [Route(path, self._endpoint(view), name=view.__name__) for path, view in PAGES]
        self.actions = [Route(path, self._action(action), methods=["POST"]) for path, action in ACTIONS]
        self._views = {view.__name__: view for _, view in PAGES}

    def _endpoint(self, view: View) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            session = self._site.tokens.session(request)
            html, status = await self._html(view, request, session, live=False)
            return self._response(html, status, session)

        return answer

    @staticmethod
    def _response(html: str, status: int, session: str) -> Response:
        response = HTMLResponse(html, status)
        Tokens.remember(response, session)
        return response

    async def _html(self, view: View, request: Request, session: str, *, live: bool) -> tuple[str, int]:
        """A page, or what of it is live, and the status to answer with."""
        if view in SHARED and not request.url.query:
            async with self._sharing:
                kept = self._shared.get((view, live))
                if kept is None or kept[0] != self._site.board.moment.number:
                    number = self._site.board.moment.number
                    html, _ = await self._html_of_one(view, request, session, live=live)
                    kept = self._shared[view, live] = number, html
            return kept[1], 200
        return await self._html_of_one(view, request, session, live=live)

    async def _html_of_one(self, view: View, request: Request, session: str, *, live: bool) -> tuple[str, int]:
        if view in OF_DEAD_LETTERS:
            await self._site.dead.look(self._marker())

        shown = (
            view(self._site, request)
            if inspect.iscoroutinefunction(view)
            else run_in_threadpool(view, self._site, request)
        )
        page: Page = await shown
        return await run_in_threadpool(self._render, request, page, session, live=live), page.status

    def _marker(self) -> object:
        """Changes when the dead letters do."""
        seen = self._site.queues.states.get(DEAD_LETTERS)
        return (seen.ready if seen else 0, self._site.follower.dead_letters)

    def _action(self, action: actions.Action) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            form = await form_of(request)
            self._site.tokens.check(request, form.get(TOKEN, ""))
            if self._site.is_read_only:
                raise HTTPException(403, "This page is for reading only (--read-only), so nothing was done.")
            result = await action(self._site, request, form)
            return await self._answer(request, result) if isinstance(result, Page) else result

        return answer

    async def _answer(self, request: Request, page: Page) -> Response:
        session = self._site.tokens.session(request)
        html = await run_in_threadpool(self._render, request, page, session, live=False)
        return self._response(html, page.status, session)

    def _render(self, request: Request, page: Page, session: str, *, live: bool) -> str:
        return self._environment.get_template(page.template).render(
            page.context,
            layout="live.html" if live else "layout.html",
            site=self._site,
            moment=self._site.board.moment,
            token=self._site.tokens.token(session),
            here=request.url.path,
            query=request.query_params,
            is_live=page.is_live,
        )

    async def problem(self, request: Request, error: Exception) -> Response:
        """An error as a page, or as JSON to who asks for that."""
        status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
        if request.url.path.startswith("/api/"):
            return api.problem(status, detail)
        if status == 500:
            detail = "The page has failed; its log says why."
        return await self._answer(request, Page("problem.html", {"status": status, "detail": detail}, status))

    async def live(self, request: Request) -> Response:
        """Server-sent events: what of the page at `at` is live, whenever it has changed."""
        at, _, query = request.query_params.get("at", "/").partition("?")
        scope = {
            **request.scope,
            "path": unquote(at),
            "raw_path": at.encode("utf-8", "replace"),
            "query_string": query.encode("utf-8", "replace"),
        }
        for route in self.routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                inner = Request({**scope, **child})
                return StreamingResponse(
                    self._changes(self._views[route.name], inner),
                    media_type="text/event-stream",
                    headers={"cache-control": "no-store"},
                )
        raise HTTPException(404, "There is no such page.")

    async def _changes(self, view: View, request: Request) -> AsyncIterator[str]:
        before, session = "", self._site.tokens.session(request)
        loop = asyncio.get_running_loop()
        told = loop.time()
        while True:
            try:
                html, _ = await self._html(view, request, session, live=True)
            except HTTPException as error:
                html = str(GONE.format(error.detail))
            if html != before:
                before, told = html, loop.time()
                yield "data: " + re.sub(r"\r\n|\r|\n", "\ndata: ", html) + "\n\n"
            elif loop.time() - told > PING_EVERY:
                told = loop.time()
                yield ": nothing new\n\n"
            await self._site.board.next()


def application(site: Site, password: str | None) -> Guard:
    """Everything, guarded."""
    pages = Pages(site)

    @asynccontextmanager
    async def alive(_: Starlette) -> AsyncIterator[None]:
        async with site.alive():
            yield

    handlers: Mapping[Any, Any] = {HTTPException: pages.problem, 500: pages.problem}
    app = Starlette(
        routes=[
            *pages.actions,
            *pages.routes,
            Route("/live", pages.live),
            *api.routes(site),
            Route("/metrics", partial(metrics, site)),
            Route("/healthz", partial(health, site)),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ],
        exception_handlers=handlers,
        lifespan=alive,
    )
    return Guard(app, password)


async def health(site: Site, request: Request) -> Response:
    """200 while the stream is being read."""
    problem = site.follower.problem
    return Response(f"{problem or 'ok'}\n", 503 if problem else 200, media_type="text/plain")
