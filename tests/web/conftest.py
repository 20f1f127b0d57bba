"""`ackback web` as a process, and a real browser that looks at it."""

from __future__ import annotations

import base64
import http.client
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from tests.conftest import USED, install_or_skip
from tests.integration.conftest import Process, ackback, environment, forget_record, project, start
from tests.rabbitmq import free_port

__all__ = ["ackback", "environment", "project", "start"]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SLOW = 20_000
"""Milliseconds within which what is to be seen is there."""


class Site:
    """A running page, asked as a program asks; `Browser` is below."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.cookie = ""

    def ask(
        self, method: str, path: str, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = urllib.parse.urlencode(form) if form is not None else None
        sent = {"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}
        sent |= {"Cookie": self.cookie} if self.cookie else {}
        try:
            connection.request(
                method, path, body, sent | {name.replace("_", "-"): value for name, value in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        import json

        status, _, text = self.ask("GET", path)
        assert status == 200, text
        return json.loads(text)

    def token(self, path: str) -> str:
        """The token of the forms of a page; from then on this is the browser that they were given to."""
        _, headers, text = self.ask("GET", path)
        self.cookie = headers["set-cookie"].partition(";")[0]
        found = re.search(r'name="token" value="(\w+)"', text)
        assert found, text
        return found[1]

    def post(self, path: str, token: str, form: dict[str, str] | None = None, **headers: str) -> int:
        origin = {"Origin": self.url} if "Origin" not in headers else {}
        return self.ask("POST", path, {"token": token, **(form or {})}, **origin, **headers)[0]


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.fixture
def web(start: Callable[..., Process], rabbitmq_url: str) -> Callable[..., Site]:
    """Start `ackback web`. The record is empty before."""
    forget_record(rabbitmq_url)

    def starter(*arguments: str, **environment: str) -> Site:
        port = free_port()
        process = start("web", "--port", str(port), *arguments, **environment)
        process.wait_for("the page is at")
        return Site(process, port)

    return starter


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's browser; where it cannot be had, the summary says that nothing was tried in one."""
    if (found := shutil.which("chromium")) is None:
        install_or_skip("browser", "chromium", "install chromium")
        found = shutil.which("chromium")
    assert found
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    # Not for the whole session: its event loop is in the way of tests that have their own.
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS) as launched:
            USED["browser"] = f"Chromium {launched.version}"
            yield launched


Open = Callable[..., Any]


@pytest.fixture
def window(browser: Browser) -> Callable[..., Any]:
    """Open a window, as a context: whatever it asked of another host, and whatever the policy for content stopped, fails the test."""

    @contextmanager
    def opened(site: Site, path: str = "/", **options: Any) -> Iterator[Page]:
        context: BrowserContext = browser.new_context(base_url=site.url, **options)
        problems: list[str] = []
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('POLICY ' + e.violatedDirective + ' ' + e.blockedURI))"
        )

        def on_request(request: Request) -> None:
            if not request.url.startswith((site.url + "/", "data:")):
                problems.append(f"asked for {request.url}")

        context.on("request", on_request)
        context.on(
            "console",
            lambda message: (
                problems.append(message.text)
                if message.type == "error" and "404" not in message.text and "422" not in message.text
                else None
            ),
        )
        context.on("weberror", lambda error: problems.append(str(error.error)))
        context.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
        context.set_default_timeout(SLOW)
        try:
            page = context.new_page()
            page.goto(path)
            yield page
        finally:
            context.close()
        assert not problems

    return opened


@pytest.fixture
def shop(project: Callable[..., Path]) -> Path:
    return project({"shop.py": SHOP})


SHOP = """
    import asyncio
    from pathlib import Path
    from pydantic import BaseModel
    from broker import Reject, Retry, Service

    class Order(BaseModel):
        item: str
        quantity: int = 1

    class Place(Service):
        name = 'shop.order'

        def handle(self, order: Order):
            self.invoke_async('shop.price', order.model_dump(), callback='shop.priced')

    class Price(Service):
        name = 'shop.price'
        retry = Retry(attempts=1)

        async def handle(self, order: Order) -> float:
            if not Path('mended').exists() and order.item.startswith('boat'):
                raise LookupError(f'no price for {order.item!r}, article {order.quantity}')
            return 2.5 * order.quantity

    class Priced(Service):
        name = 'shop.priced'

        def handle(self):
            pass

        def handle_error(self, error):
            pass
"""
