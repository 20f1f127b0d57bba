"""Runs and schedules on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from broker import Client
from tests.integration.conftest import PRICE, Process, wait_until
from tests.web.conftest import Site

Window = Callable[..., Any]

SHOP = """
    import asyncio
    from typing import Any
    from broker import Service, cron, every

    class Checkout(Service):
        name = "shop.checkout"
        durable = True

        async def handle(self, item: str) -> Any:
            try:
                price = await self.call("shop.price", item)
            except Exception:
                price = 0
            await asyncio.sleep(1)
            return {"price": price, "by": await self.wait_for("approved")}

    class Nightly(Service):
        name = "reports.nightly"
        schedule = cron("0 3 * * mon-fri", tz="Europe/Amsterdam")

        async def handle(self) -> None:
            pass

    class Poll(Service):
        name = "orders.poll"
        schedule = every(seconds=1)

        async def handle(self) -> None:
            pass
"""


@pytest.fixture
def site(project: Callable[..., Path], start: Callable[..., Process], web: Callable[..., Site]) -> Site:
    project({"shop.py": SHOP, "price.py": PRICE})
    start("run").wait_for("what is scheduled is fired here")
    return web()


def test_a_run_is_watched_and_told_what_it_waits_for(site: Site, window: Window, rabbitmq_url: str) -> None:
    with Client(rabbitmq_url) as client:
        client.invoke_async("shop.checkout", "boat", cid="order/4711")
    with window(site, "/runs") as page:
        page.get_by_role("link", name="order/4711").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("shop.checkout order/4711")
        expect(page.get_by_role("row", name=re.compile("call shop.price"))).to_contain_text("✕")
        expect(page.get_by_text("no <b>boats</b>")).to_be_visible()
        expect(page.get_by_role("row", name=re.compile("sleep 1 s"))).not_to_contain_text("waits")
        waits = page.get_by_role("row", name=re.compile('wait_for "approved"'))
        expect(waits).to_contain_text("… waits")
        expect(waits).to_contain_text("shop.py:")
        page.reload()
        expect(page.get_by_label("Name: what it waits for")).to_have_value("approved")
        page.get_by_label("Payload").fill('{"who": "Ann"}')
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_text("done", exact=True)).to_be_visible()
        expect(waits).to_contain_text('{"who":"Ann"}')
        page.reload()
        expect(page.get_by_role("button", name="Send")).to_have_count(0)


def test_a_run_is_cancelled_after_being_asked(site: Site, window: Window, rabbitmq_url: str) -> None:
    with Client(rabbitmq_url) as client:
        client.invoke_async("shop.checkout", "tea", cid="order-1")
        client.invoke_async("shop.checkout", "tea", cid="order-2")
    wait_until(lambda: len(site.json("/api/runs")) == 2)
    with window(site, "/runs/order-1") as page:
        page.get_by_role("link", name="Cancel the run…").click()
        page.get_by_role("link", name="Let it go on").click()
        page.get_by_role("link", name="Cancel the run…").click()
        page.get_by_role("button", name="Cancel the run").click()
        expect(page.get_by_text("! cancelled")).to_be_visible()
        page.goto("/runs?state=running")
        expect(page.get_by_role("link", name="order-2")).to_be_visible()
        expect(page.get_by_role("link", name="order-1")).to_have_count(0)
    assert site.ask("GET", "/runs/nothing")[0] == 404
    assert site.ask("GET", "/api/runs/nothing")[0] == 404
    assert site.json("/api/runs/order-2?service=shop.checkout")["state"] == "running"


def test_schedules_are_watched_paused_and_fired(site: Site, window: Window) -> None:
    with window(site, "/schedules") as page:
        nightly = page.get_by_role("row", name=re.compile("^reports.nightly"))
        expect(nightly).to_contain_text("0 3 * * mon-fri Europe/Amsterdam")
        poll = page.get_by_role("row", name=re.compile("^orders.poll"))
        expect(poll.get_by_role("link", name=re.compile(r"^\d\d-\d\d \d\d:\d\d:\d\d$"))).to_be_visible()
        poll.get_by_role("button", name="Pause").click()
        expect(poll).to_contain_text("‖ paused")
        poll.get_by_role("button", name="Resume").click()
        expect(poll).not_to_contain_text("paused")
        nightly.get_by_role("button", name="Fire now").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("reports.nightly/")
        expect(page.get_by_role("cell", name="ok")).to_be_visible()
    assert {one["service"]: one["paused"] for one in site.json("/api/schedules")} == {
        "reports.nightly": False,
        "orders.poll": False,
    }


def test_where_there_are_none_it_says_so(
    shop: Path, web: Callable[..., Site], window: Window, start: Callable[..., Process]
) -> None:
    site = web()
    start("run").wait_for("ready: ")
    with window(site, "/runs") as page:
        expect(page.get_by_text("no daemon with durable services has been here")).to_be_visible()
        page.goto("/schedules")
        expect(
            page.get_by_text(
                "Nothing is known of schedules: no daemon whose services have a schedule has been here yet."
            )
        ).to_be_visible()
