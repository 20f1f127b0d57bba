"""The page at a million events: how soon they are indexed, how large that is, how long a page takes: python bench/page.py."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import machine, rabbitmq_for_figures
from broker.protocol.entities import Queue
from broker.protocol.events import DEAD, EVENTS, HANDLED, HANDLED_ROW, SENT_ROW, Event, Row, batch, event_stream
from broker.recording.recorder import BATCH
from broker.transport.factory import create
from tests.rabbitmq import free_port

UNCONFIRMED = 8
SERVICES = 40
PATIENCE = 300.0
HOUR = 3_600_000_000


def events(count: int) -> Iterator[Row | Event]:
    """Orders, the prices that they ask for, their callbacks; one in a hundred fails. Spread over the last hour."""
    step, began = HOUR * 4 // count, int(time.time() * 1e6) - HOUR
    for number in range(count // 4):
        order, price, at, which = secrets.token_hex(16), secrets.token_hex(16), began + step * number, number % SERVICES
        yield SENT_ROW, at, order, f"shop{which}.order", ()
        yield {
            "event": HANDLED, "t": at + 4000, "cid": order, "service": f"shop{which}.order", "took_ms": 2.1,
            "sent": [[at + 3000, f"shop{which}.price", price]],
        }  # fmt: skip
        if number % 100:
            yield (
                HANDLED_ROW,
                at + 9000,
                price,
                f"shop{which}.price",
                random.randrange(500, 4000),
                f"shop{which}.order",
                order,
                None,
            )
            yield HANDLED_ROW, at + 9900, price, f"shop{which}.priced", 80, f"shop{which}.order", order, "ok"
        else:
            error = ["LookupError", f"no price for article {number}"]
            common = {"cid": price, "service": f"shop{which}.price", "error": error}
            yield {"event": HANDLED, "t": at + 9000, "took_ms": 1.2, "parent": order, "outcome": "error", **common}
            yield {"event": DEAD, "t": at + 9100, "reason": "error", **common}


async def write(url: str, count: int) -> tuple[str, str]:
    """Put them on the stream; return the CIDs of an order that went well and of one that failed."""
    connection = await create([url]).connect()
    await connection.delete(Queue(EVENTS))
    await connection.declare(event_stream(7 * 86_400, 2_000_000_000, 50_000_000))
    confirms, chunk, number, well, failed = list[asyncio.Future[None]](), list[Row | Event](), 0, "", ""
    for one in events(count):
        chunk.append(one)
        if isinstance(one, dict) and one["event"] == DEAD:
            failed = one["cid"]
        elif isinstance(one, tuple):
            well = str(one[2])
        if len(chunk) == BATCH:
            number += 1
            confirms.append(connection.publish(batch(chunk, "bench", number)))
            chunk.clear()
            if len(confirms) >= UNCONFIRMED:
                await confirms.pop(0)
    await asyncio.gather(*confirms)
    await connection.close()
    return well, failed


class Web:
    """`ackback web` as a process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "broker", "web", "--port", str(self.port), "--index", "index.db"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def until(self, path: str, status: int) -> float:
        """Seconds from the start until a path answers like that."""
        while time.perf_counter() - self.began < PATIENCE:
            try:
                if self.get(path)[0] == status:
                    return time.perf_counter() - self.began
            except OSError:
                pass
            time.sleep(0.02)
        raise RuntimeError(f"{path} did not answer with {status} in time")

    def resident(self) -> tuple[float, float]:
        """MiB: now, and at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        now, peak = (int(status.partition(name)[2].split()[0]) / 1024 for name in ("VmRSS:", "VmHWM:"))
        return now, peak

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def times(web: Web, path: str, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        status, _ = web.get(path)
        found.append((time.perf_counter() - began) * 1000)
        assert status == 200, f"{path}: {status}"
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="events")
    parser.add_argument("--times", type=int, default=200, help="requests for each page")
    arguments = parser.parse_args()
    with rabbitmq_for_figures() as (url, broker), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{broker}, {machine()}")
        (folder / "config.toml").write_text(f"[broker]\nurl = {json.dumps(url)}\n")
        well, failed = asyncio.run(write(url, arguments.count))
        web = Web(folder)
        try:
            first = web.until("/daemons", 200)
            indexed = web.until(f"/invocations/{well}", 200)
            size = sum(file.stat().st_size for file in folder.glob("index.db*")) / 1e6
            print(f"first page {first:.2f} s after the start")
            print(
                f"{arguments.count:,} events indexed {indexed:.1f} s after the start, in {size:.0f} MB; "
                f"at most {web.resident()[1]:.0f} MiB resident"
            )
            web.stop()
            web = Web(folder)
            first, whole = web.until("/daemons", 200), web.until(f"/invocations/{well}", 200)
            print(f"started again: first page {first:.2f} s after, and all of it is there {whole:.2f} s after")
            paths = {
                "overview": "/",
                "one service": "/services/shop7.price",
                "one service, 7 days": "/services/shop7.price?span=7d",
                "failures": "/failures",
                "invocations": "/invocations",
                "… of one service that failed": "/invocations?service=shop7.price&outcome=failed",
                "… of the last 10 minutes": "/invocations?since=10m",
                "… by the beginning of a CID": f"/invocations?cid={quote(failed[:8])}",
                "one invocation": f"/invocations/{well}",
                "one that failed": f"/invocations/{failed}",
                "daemons": "/daemons",
            }
            print(f"\n| page, {arguments.times} times, ms | p50 | p95 | most |\n|---|---|---|---|")
            for what, path in paths.items():
                found = times(web, path, arguments.times)
                p50, p95 = (found[int(len(found) * share)] for share in (0.5, 0.95))
                print(f"| {what} | {p50:.1f} | {p95:.1f} | {found[-1]:.1f} |")
            print(f"\n{web.resident()[0]:.0f} MiB resident after that, {web.resident()[1]:.0f} at most")
        finally:
            web.stop()
            asyncio.run(_forget(url))


async def _forget(url: str) -> None:
    connection = await create([url]).connect()
    await connection.delete(Queue(EVENTS))
    await connection.close()


if __name__ == "__main__":
    main()
