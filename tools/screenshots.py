"""Make the pictures in docs/images: a shop with a past hour and a present, looked at with Chromium in light, dark and narrow windows."""

from __future__ import annotations

import asyncio
import json
import math
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright

from bench.common import rabbitmq_for_figures
from broker import Client
from broker.protocol.events import HANDLED, HANDLED_ROW, Event, Row, batch, event_stream
from broker.recording.recorder import BATCH
from broker.transport.factory import create
from tests.rabbitmq import free_port, install

IMAGES = ROOT / "docs" / "images"
WINDOWS = {"light": (1280, 720, "light"), "dark": (1280, 720, "dark"), "narrow": (360, 720, "light")}
MINUTES = 60
PATIENCE = 60.0
SHOP = """
    import asyncio, random
    from pydantic import BaseModel
    from broker import Retry, Service, cron, every

    class Order(BaseModel):
        order: int
        item: str
        quantity: int = 1

    async def work(ms):
        await asyncio.sleep(random.lognormvariate(0, 0.5) * ms / 1000)

    class Place(Service):
        name = 'shop.order'

        async def handle(self, order: Order):
            await work(4)
            for step in ('shop.price', 'shop.stock', 'shop.invoice'):
                self.invoke_async(step, order.model_dump(), callback='shop.confirmed')

    class Price(Service):
        name = 'shop.price'
        retry = Retry(attempts=2, first=1, jitter=0)

        async def handle(self, order: Order) -> float:
            await work(18)
            if order.item == 'boat':
                raise LookupError(f'no price for {order.item!r} in order {order.order}')
            return 2.5 * order.quantity

    class Stock(Service):
        name = 'shop.stock'

        async def handle(self, order: Order) -> dict:
            await work(6)
            return {'left': 41}

    class Invoice(Service):
        name = 'shop.invoice'

        async def handle(self, order: Order) -> str:
            await work(45)
            return f'2026-{order.order}'

    class Confirmed(Service):
        name = 'shop.confirmed'

        async def handle(self):
            await work(1)

        def handle_error(self, error):
            pass

    class Checkout(Service):
        name = 'shop.checkout'
        durable = True

        async def handle(self, order: Order) -> dict:
            price = await self.call('shop.price', order)
            async with asyncio.TaskGroup() as both:
                stock = both.create_task(self.call('shop.stock', order))
                invoice = both.create_task(self.call('shop.invoice', order))
            await asyncio.sleep(2)
            async with asyncio.timeout(86400):
                by = await self.wait_for('approved')
            return {'invoice': invoice.result(), 'price': price, 'by': by}

    class Nightly(Service):
        name = 'reports.nightly'
        schedule = cron('0 3 * * mon-fri', tz='Europe/Amsterdam')

        async def handle(self):
            pass

    class Poll(Service):
        name = 'orders.poll'
        schedule = every(seconds=10)

        async def handle(self):
            await work(4)
"""
ELSEWHERE = """(names) => {
    for (const element of document.querySelectorAll("pre"))
        for (const [from, to] of names) element.textContent = element.textContent.replaceAll(from, to);
}"""
"""Tracebacks name the files of the machine that the pictures are made on."""
TIMES = {"shop.order": 4.0, "shop.price": 18.0, "shop.stock": 6.0, "shop.invoice": 45.0, "shop.confirmed": 1.0}


def past(now: float) -> Iterator[Row | Event]:
    """An hour of handlings, with more and less to do, and ten minutes in which prices failed."""
    for minute in range(MINUTES, 0, -1):
        for service, typical in TIMES.items():
            busy = 400 + 150 * math.sin(minute / 7) + random.uniform(-40, 40)
            for _ in range(int(busy * (3 if service == "shop.confirmed" else 1))):
                t = int((now - minute * 60 + random.uniform(0, 60)) * 1e6)
                took, cid = random.lognormvariate(0, 0.5) * typical, secrets.token_hex(16)
                if service == "shop.price" and 22 < minute < 33 and random.random() < 0.3:
                    error = ["ConnectionError", "the ERP is down"]
                    common = {"t": t, "cid": cid, "service": service, "took_ms": took, "error": error}
                    yield {"event": HANDLED, "outcome": "retried", "retry_in": 1, **common}
                else:
                    yield HANDLED_ROW, t, cid, service, int(took * 1000), None, None, None


async def write_past(url: str) -> None:
    connection = await create([url]).connect()
    await connection.declare(event_stream(7 * 86_400, 2_000_000_000, 50_000_000))
    events = list(past(time.time()))
    for number, at in enumerate(range(0, len(events), BATCH), start=1):
        await connection.publish(batch(events[at : at + BATCH], "yesterday:1:0000", number))
    await connection.close()


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise RuntimeError("what was to be shown did not come in time")


def orders(url: str, count: int) -> None:
    """One in forty of something that has no price."""
    with Client(url) as client:
        for number in range(count):
            item = "boat" if number % 40 == 17 else random.choice(["tea", "coffee", "cocoa"])
            order = {"order": 4700 + number, "item": item, "quantity": random.randint(1, 9)}
            client.invoke_async("shop.order", order, callback="shop.confirmed")
            time.sleep(random.expovariate(20))


def picture(page: Page, base: str, folder: Path, paths: dict[str, str], window: str) -> None:
    for name, path in paths.items():
        page.goto(base + path)
        page.locator("[data-live-page], form").first.wait_for()
        page.mouse.move(0, 0)
        page.evaluate(ELSEWHERE, [[str(folder), "/srv/shop"], [str(ROOT), "/srv/shop/.venv/lib/python3/site-packages"]])
        page.screenshot(path=IMAGES / f"{name}-{window}.png")


def look(base: str, folder: Path, paths: dict[str, str]) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        install("chromium", "install chromium")
        chromium = shutil.which("chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for window, (width, height, scheme) in WINDOWS.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            picture(context.new_page(), base, folder, paths, window)
        browser.close()


def ask(base: str, path: str) -> Any:
    with urllib.request.urlopen(base + path) as answer:
        return json.load(answer)


def main() -> None:
    with rabbitmq_for_figures() as (url, _), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "services").mkdir()
        (folder / "services" / "shop.py").write_text(textwrap.dedent(SHOP))
        (folder / "config.toml").write_text(f"[broker]\nurl = {json.dumps(url)}\n")
        asyncio.run(write_past(url))
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        commands = (["run"], ["run"], ["web", "--port", str(port)])
        processes = [
            subprocess.Popen([sys.executable, "-m", "broker", *one], cwd=folder, stderr=subprocess.DEVNULL)
            for one in commands
        ]
        try:
            until(lambda: _answers(base) and len(ask(base, "/api/daemons")) == 2)
            with Client(url) as client:
                for number in range(4680, 4692):
                    order = {"order": number, "item": "tea"}
                    client.invoke_async("shop.checkout", order, cid=f"checkout-{number}")
                    if number % 3:
                        client.signal("shop.checkout", f"checkout-{number}", "approved", "by Ann")
            orders(url, 400)
            groups = until(lambda: ask(base, "/api/failures")["groups"])
            (dead, *_) = ask(base, f"/api/failures/groups/{groups[0]['key']}")["dead_letters"]
            paths = {
                "overview": "/",
                "service": "/services/shop.price",
                "failures": "/failures",
                "failure": f"/failures/{dead['key']}",
                "invocation": f"/invocations/{dead['cid']}",
                "runs": "/runs",
                "run": "/runs/checkout-4689",
                "schedules": "/schedules",
            }
            look(base, folder, paths)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)


def _answers(base: str) -> bool:
    try:
        return bool(ask(base, "/api/concerns") is not None)
    except OSError:
        return False


if __name__ == "__main__":
    main()
