"""The page as a person on call uses it, in a real browser."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pika
import pytest
from playwright.sync_api import Page, expect

from broker import Client
from tests.integration.conftest import TIMEOUT, Process, wait_until
from tests.web.conftest import SLOW, Site

Window = Callable[..., AbstractContextManager[Page]]
Start = Callable[..., Process]
Web = Callable[..., Site]
expect.set_options(timeout=SLOW)


@pytest.fixture
def site(shop: Path, web: Web, start: Start) -> Site:
    """The page of a shop whose daemon runs."""
    found = web()
    start("run").wait_for("ready: ")
    return found


def order(url: str, *items: str) -> list[str]:
    with Client(url) as client:
        return client.invoke_many(
            "shop.order", [{"item": item, "quantity": number} for number, item in enumerate(items, 1)]
        )


def dead(site: Site, count: int) -> list[dict[str, Any]]:
    """The groups of dead letters, once there are so many."""
    wait_until(lambda: site.json("/api/failures")["count"] == count, 2 * TIMEOUT)
    groups: list[dict[str, Any]] = site.json("/api/failures")["groups"]
    return groups


def test_the_overview_moves_while_messages_flow(site: Site, window: Window, rabbitmq_url: str) -> None:
    with window(site) as page:
        row = page.get_by_role("row", name=re.compile("^shop.price "))
        expect(row).to_contain_text("1")  # one daemon
        expect(page.get_by_text("All is well.")).to_be_visible()
        order(rabbitmq_url, *["tea"] * 120)
        expect(row.get_by_role("cell").nth(2)).to_have_text("2.0")
        order(rabbitmq_url, *["tea"] * 120)
        expect(row.get_by_role("cell").nth(2)).to_have_text("4.0")
        order(rabbitmq_url, "boat")
        expect(row.get_by_role("link", name="✕ 1")).to_be_visible()
        expect(page.get_by_text("1 to be replayed or dropped")).to_be_visible()


def test_a_failed_order_is_found_read_edited_and_replayed(site: Site, window: Window, rabbitmq_url: str) -> None:
    (cid,) = order(rabbitmq_url, "boat")
    dead(site, 1)
    with window(site) as page:
        page.get_by_role("searchbox").fill(cid[:12])
        page.keyboard.press("Enter")
        page.get_by_role("link", name=cid).click()
        expect(page.get_by_role("row", name=re.compile("shop.price.*error")).first).to_be_visible()
        expect(page.get_by_text("LookupError: no price for 'boat', article 1").first).to_be_visible()
        page.locator("h2:has-text('Dead letters') + div a.cid").click()
        expect(page.locator("pre")).to_contain_text("Traceback (most recent call last)")
        body = page.get_by_label("Body")
        expect(body).to_have_value('{"item":"boat","quantity":1}')

        body.fill('{"item": "tea", "quantity": ')
        page.get_by_role("button", name="Replay with this body").click()
        assert "no JSON" in body.evaluate("element => element.validationMessage")

        body.fill('{"item": "tea", "quantity": 2}')
        page.get_by_role("button", name="Replay with this body").click()
        expect(page).to_have_url(re.compile("/invocations/"))
        price = page.get_by_role("row", name=re.compile(r"^shop\.price ok "))
        expect(price).to_be_visible()
        expect(
            page.get_by_role("row").filter(has_text="shop.priced callback").filter(has_text="ok").last
        ).to_be_visible()
    dead(site, 0)


def test_a_group_of_a_thousand_is_replayed_and_another_dropped(
    site: Site, shop: Path, window: Window, rabbitmq_url: str
) -> None:
    order(rabbitmq_url, *["boat"] * 1000)
    (group,) = dead(site, 1000)
    assert (group["service"], group["reason"], group["title"], group["detail"]) == (
        "shop.price", "error", "LookupError", "no price for …, article …",
    )  # fmt: skip
    with window(site, "/failures") as page:
        page.get_by_role("link", name="LookupError: no price for …, article …").click()
        expect(page.get_by_text("Page 1 of 10")).to_be_visible()
        page.get_by_role("link", name="Older").click()
        expect(page.get_by_text("Page 2 of 10")).to_be_visible()
        (shop / "mended").touch()
        page.get_by_role("button", name="Replay all 1,000").click()
        expect(page.get_by_role("progressbar")).to_be_visible()
        while not (told := page.get_by_role("status").inner_text()).startswith("1,000 of"):
            expect(page.get_by_role("status")).not_to_have_text(told)  # it goes on
        expect(page.get_by_role("status")).to_have_text(re.compile(r"1,000 of 1,000 replayed\.\s+✓ Done\."))
    dead(site, 0)


def test_a_replay_is_stopped_and_the_rest_is_where_it_was(site: Site, window: Window, rabbitmq_url: str) -> None:
    headers = {
        "dead-reason": "error",
        "dead-service": "shop.closed",
        "dead-error": '{"title": "Closed", "detail": "for good"}',
    }
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("shop.closed", durable=True)
        for number in range(1500):
            properties = pika.BasicProperties(correlation_id=f"order-{number}", delivery_mode=2, headers=headers)
            channel.basic_publish("", "dead-letters", b"x" * 20_000, properties)
        (group,) = dead(site, 1500)
        token = site.token("/failures")
        assert site.post(f"/failures/groups/{group['key']}/replay", token) == 303
        wait_until(lambda: site.json("/api/jobs")[0]["done"])
        assert site.post("/jobs/1/stop", token) == 303
        with window(site, "/jobs/1") as page:
            expect(page.get_by_text("Stopped. The rest are where they were.")).to_be_visible()
        (job,) = site.json("/api/jobs")
        assert job["state"] == "stopped" and 0 < job["done"] < 1500
        dead(site, 1500 - job["done"])
        assert channel.queue_declare("shop.closed", passive=True).method.message_count == job["done"]
        channel.queue_delete("shop.closed")


def test_dropping_asks_first(site: Site, window: Window, rabbitmq_url: str) -> None:
    order(rabbitmq_url, "boat", "boat")
    dead(site, 2)
    with window(site, "/failures") as page:
        page.get_by_role("link", name="Drop…").click()
        expect(page.get_by_role("heading", name="Drop 2 dead letters for good?")).to_be_visible()
        page.get_by_role("link", name="Keep").click()
        assert len(dead(site, 2)) == 1
        page.locator("a.cid").first.click()
        page.get_by_role("link", name="Drop…").click()
        page.get_by_role("button", name="Drop this dead letter").click()
        expect(page.get_by_text("1 dead letter of 1 kind")).to_be_visible()
        page.get_by_role("link", name="Drop…").click()
        page.get_by_role("button", name="Drop 1 dead letter").click()
        expect(page.get_by_role("status")).to_have_text(re.compile(r"1 of 1 dropped\.\s+✓ Done\."))
        page.get_by_role("link", name="To the failures").click()
        expect(page.get_by_text("There are no dead letters.")).to_be_visible()


def test_a_daemon_that_is_killed_turns_red_and_one_that_stops_does_not(
    site: Site, window: Window, start: Start
) -> None:
    killed, stopped = start("run"), start("run")
    for process in (killed, stopped):
        process.wait_for("ready: ")
    with window(site, "/daemons") as page:
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(3)
        stopped.signal(signal.SIGTERM)
        expect(rows.filter(has_text=f":{stopped.process.pid}:").filter(has_text="stopped")).to_be_visible()
        killed.signal(signal.SIGKILL)
        expect(rows.filter(has_text=f":{killed.process.pid}:").filter(has_text="✕ silent")).to_be_visible()
        expect(rows.filter(has_text="✕ silent")).to_have_count(1)
        page.goto("/")
        expect(page.get_by_text(re.compile(rf":{killed.process.pid}:\w+ was last heard of .* ago"))).to_be_visible()


def test_what_somebody_should_know_is_pointed_out(
    site: Site, shop: Path, window: Window, start: Start, rabbitmq_url: str
) -> None:
    (shop / "services" / "other.py").write_text(
        "import asyncio\nfrom broker import Service\n\n\nclass Stuck(Service):\n    name = 'shop.stuck'\n    concurrency = 1\n\n"
        "    async def handle(self):\n        if self.request.text == 'stick':\n            await asyncio.sleep(3600)\n"
    )
    (shop / "another").mkdir()
    (shop / "another" / "shop.py").write_text(
        "from broker import Service\n\n\nclass Price(Service):\n    name = 'shop.price'\n\n    def handle(self, text: str):\n        pass\n"
    )
    stuck = start("run", "services/other.py")
    stuck.wait_for("ready: ")
    start("run", "another").wait_for("ready: ")
    with Client(rabbitmq_url) as client:
        client.invoke_async("shop.stuck", "at first it goes")
        client.invoke_async("shop.stuck", "stick")
        client.invoke_async("shop.stuck", "waits")
    with window(site) as page:
        concerns = page.locator(".concerns li")
        expect(
            concerns.filter(has_text=re.compile("two codes.*shop.price is not the same code everywhere"))
        ).to_be_visible()
        expect(
            concerns.filter(has_text=re.compile("stalled.*shop.stuck has finished nothing for .* while messages wait"))
        ).to_be_visible(timeout=2 * SLOW)
        stuck.signal(signal.SIGKILL)
        expect(
            concerns.filter(has_text=re.compile("nobody.*messages? waits? for shop.stuck, and no daemon hosts it"))
        ).to_be_visible(timeout=2 * SLOW)


def test_invoking_from_the_page(site: Site, window: Window) -> None:
    wait_until(
        lambda: site.ask("GET", "/services/shop.price")[0] == 200 and site.json("/api/services/shop.price")["about"]
    )
    with window(site, "/services/shop.price") as page:
        page.get_by_text("Input (JSON Schema)").click()
        expect(page.locator("pre").first).to_contain_text('"item"')
        page.get_by_label("Payload, as JSON").fill('{"item": "tea", "quantity": 3}')
        page.get_by_label("Callback service").fill("shop.priced")
        page.get_by_role("button", name="Invoke").click()
        expect(page.get_by_role("row").filter(has_text="shop.priced callback")).to_be_visible()
        page.goto("/services/shop.price")
        page.get_by_label("Callback service").fill("no name!")
        page.get_by_label("Payload, as JSON").fill("{}")
        page.get_by_role("button", name="Invoke").click()
        expect(page.get_by_role("alert")).to_contain_text("'no name!' cannot be a service's name")
        expect(page.get_by_label("Payload, as JSON")).to_have_value("{}")


PATHS = ("/", "/failures", "/invocations", "/daemons", "/services/shop.price")


def test_it_is_readable_on_a_telephone_and_in_the_dark(site: Site, window: Window, rabbitmq_url: str) -> None:
    cid = order(rabbitmq_url, "boat")[0]
    (group,) = dead(site, 1)
    key = site.json(f"/api/failures/groups/{group['key']}")["dead_letters"][0]["key"]
    wait_until(lambda: site.ask("GET", f"/invocations/{cid}")[0] == 200)
    paths = (
        *PATHS,
        f"/failures/groups/{group['key']}",
        f"/failures/{key}",
        f"/invocations/{cid}",
        f"/failures/{key}/confirm-drop",
    )
    for scheme in ("light", "dark"):
        with window(site, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
            for path in paths:
                page.goto(path)
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
                assert _least_contrast(page) >= 4.5, (path, scheme)


def _least_contrast(page: Page) -> float:
    """Of all text and what it stands on, by the rules of WCAG 2."""
    found: float = page.evaluate(
        """() => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            const rgba = (colour) => {
                canvas.clearRect(0, 0, 1, 1);
                canvas.fillStyle = colour;
                canvas.fillRect(0, 0, 1, 1);
                return canvas.getImageData(0, 0, 1, 1).data;
            };
            const light = ([r, g, b]) => {
                const [x, y, z] = [r, g, b].map((one) => (one /= 255) <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
                return 0.2126 * x + 0.7152 * y + 0.0722 * z;
            };
            const ground = (element) => {
                for (; element; element = element.parentElement) {
                    const colour = rgba(getComputedStyle(element).backgroundColor);
                    if (colour[3] === 255) return colour;
                }
                return [255, 255, 255];
            };
            let least = 21;
            for (const element of document.body.querySelectorAll("*")) {
                const says = [...element.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
                if (!says || !element.checkVisibility() || element.closest("svg")) continue;
                const [one, other] = [light(rgba(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
                least = Math.min(least, (one + 0.05) / (other + 0.05));
            }
            return least;
        }"""
    )
    return found


def test_many_tabs_are_no_problem(site: Site, window: Window) -> None:
    with window(site) as page:
        for _ in range(8):
            tab = page.context.new_page()
            tab.goto("/")
            expect(tab.get_by_role("link", name="shop.price", exact=True)).to_be_visible()
            # Chromium without a screen takes every tab for visible.
            tab.evaluate("Object.defineProperty(document, 'visibilityState', { value: 'hidden' })")
            tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.get_by_role("link", name="shop.price", exact=True)).to_be_visible()


def test_the_keyboard_is_enough(site: Site, shop: Path, window: Window, rabbitmq_url: str) -> None:
    (cid,) = order(rabbitmq_url, "boat")
    dead(site, 1)
    (shop / "mended").touch()
    with window(site) as page:
        page.keyboard.press("/")
        page.keyboard.type(cid)
        page.keyboard.press("Enter")
        for name in (cid, "shop.price"):
            _tab_to(page, name)
            page.keyboard.press("Enter")
        dead_cid = page.locator("h1").inner_text()
        _tab_to(page, dead_cid)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="LookupError")).to_be_visible()
        _tab_to(page, "Replay as it is")
        page.keyboard.press("Enter")
        expect(page.get_by_role("row", name=re.compile(r"^shop\.price ok "))).to_be_visible()


def _tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this name has the focus, as a person without a mouse does."""
    expect(page.get_by_text(name, exact=True).first).to_be_visible()
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.innerText")
        if focused == name and page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid":
            return
    raise AssertionError(f"{name} cannot be reached with Tab")


def test_it_works_without_javascript(site: Site, shop: Path, window: Window, rabbitmq_url: str) -> None:
    order(rabbitmq_url, "boat", "boat")
    dead(site, 2)
    with window(site, "/failures", java_script_enabled=False) as page:
        page.get_by_role("link", name="LookupError").click()
        page.locator("a.cid").first.click()
        page.get_by_label("Body").fill("no JSON")
        page.get_by_role("button", name="Replay with this body").click()
        expect(page.get_by_role("alert")).to_contain_text("That is no JSON, which this service takes")
        expect(page.get_by_label("Body")).to_have_value("no JSON")
        (shop / "mended").touch()
        page.get_by_label("Body").fill('{"item": "boat", "quantity": 7}')
        page.get_by_role("button", name="Replay with this body").click()
        expect(page).to_have_url(re.compile("/invocations/"))
        page.goto("/failures")
        page.get_by_role("button", name="Replay").click()
        while "Done" not in page.get_by_role("status").inner_text():
            page.reload()
        page.get_by_role("link", name="To the failures").click()
        expect(page.get_by_text("There are no dead letters.")).to_be_visible()


def test_where_nothing_is_recorded_it_says_so(shop: Path, web: Web, window: Window, start: Start) -> None:
    site = web()
    with window(site) as page:
        expect(
            page.get_by_text("The record is not being read: nothing is recorded: there is no stream 'ackback.events'")
        ).to_be_visible()
        assert site.ask("GET", "/healthz")[0] == 503
        page.goto("/invocations/4711")
        expect(page.get_by_text("Nothing is recorded of this CID. The record is empty.")).to_be_visible()
        start("run").wait_for("ready: ")
        expect(page.get_by_text(re.compile("^Reading amqp://"))).to_be_visible()
        page.goto("/invocations?cid=4711")
        expect(page.get_by_text("Nothing is recorded of a CID that is or begins with “4711”.")).to_be_visible()
        assert site.ask("GET", "/healthz")[0] == 200


def test_hostile_messages_are_text(shop: Path, web: Web, window: Window, start: Start, rabbitmq_url: str) -> None:
    nasty = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;\x00\x1b[31m\u202egpj.exe\u2066"
    (shop / "services" / "nasty.py").write_text(
        f"from broker import Reject, Service\n\n\nclass Nasty(Service):\n    name = 'nasty'\n\n    def handle(self):\n        raise Reject({nasty!r} + self.request.text[:40])\n"
    )
    site = web()
    start("run").wait_for("ready: ")
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        for number, body in enumerate((nasty.encode(), b"\xff\xfe<b>" * 10, b"<script>alert(3)</script>" * 420_000)):
            properties = pika.BasicProperties(
                correlation_id=f"</title><script>alert({number})</script>\u202e",
                headers={"x-<b>": nasty},
            )
            channel.basic_publish("", "nasty", body, properties)
    wait_until(lambda: site.json("/api/failures")["count"] == 3)
    rows = [
        row
        for group in site.json("/api/failures")["groups"]
        for row in site.json(f"/api/failures/groups/{group['key']}")["dead_letters"]
    ]
    with window(site, "/failures") as page:
        expect(page.get_by_text("<script>alert(…)</script><img").first).to_be_visible()
        for row in rows:
            page.goto(f"/failures/{row['key']}")
            expect(page.get_by_text("\\x00\\x1b[31m\\u202egpj.exe\\u2066").first).to_be_visible()
            page.get_by_role("link", name="</title>").first.click()
            expect(page.get_by_role("row").filter(has_text=row["reason"]).first).to_be_visible()
            expect(page.get_by_text("Nothing is recorded")).to_have_count(0)
        large = next(row for row in rows if row["size"] > 10_000_000)
        page.goto(f"/failures/{large['key']}")
        expect(page.get_by_role("heading", name="Body 10.0 MiB, the beginning")).to_be_visible()
        expect(page.get_by_label("Body")).to_have_count(0)
        assert len(page.content()) < 200_000
        invalid = next(row for row in rows if row["size"] == 50)
        page.goto(f"/failures/{invalid['key']}")
        expect(page.locator("pre").first).to_contain_text("\\xff\\xfe<b>")
        page.goto("/invocations?service=nasty&outcome=rejected")
        expect(page.get_by_role("row").filter(has_text="nasty").first).to_be_visible()
        page.goto("/services/nasty")
        expect(page.get_by_text("<img src=x").first).to_be_visible()
        page.get_by_label("Payload").fill("<script>alert(9)</script>")
        page.goto("/invocations/" + "%3Cscript%3Ealert(4)%3C%2Fscript%3E")
        expect(page.get_by_role("heading", name="<script>alert(4)</script>")).to_be_visible()
        assert page.locator("main script, main img").count() == 0
