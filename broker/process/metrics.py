"""Metrics for Prometheus, and health: what the workers of one `ackback run` write down, and what the first process of it serves.

    worker: events ─→ Metrics ─→ files in a folder that all share ─→ MetricsServer: /metrics, /healthz, /readyz

With several workers the parent serves, and the figures are the sums.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from broker.errors import ConfigurationError, ConnectionLostError, NotAcceptedError, UnroutableError
from broker.handling.arrivals import Arrivals
from broker.protocol.events import DEAD, HANDLED, Event, Row, expanded
from broker.settings import MetricsSection

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus_client knows that several processes write."""
NOBODY = -1
"""In place of the ID of a worker that is to be started again."""
EVERY = 1.0
STUCK_AFTER = 30.0
"""Seconds after which a worker whose event loop has not turned is taken for stuck."""
HANDLING_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
WAITING_BUCKETS = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400)
REQUEST_TIMEOUT = 5.0


class Metrics:
    """What one worker counts. `note` takes the flight recorder's events."""

    def __init__(self) -> None:
        # It decides how to keep its figures when it is imported.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        registry = CollectorRegistry()
        self._handled = Counter(
            "ackback_handled_total", "Handlings that have ended.", ["service", "outcome"], registry=registry
        )
        self._handling = Histogram(
            "ackback_handling_seconds",
            "How long handlings took.",
            ["service"],
            buckets=HANDLING_BUCKETS,
            registry=registry,
        )
        self._waiting = Histogram(
            "ackback_waiting_seconds",
            "How long requests waited before they were handled, by their timestamps, which have whole seconds.",
            ["service"],
            buckets=WAITING_BUCKETS,
            registry=registry,
        )
        self._dead = Counter(
            "ackback_dead_letters_total", "Dead letters filed.", ["service", "reason"], registry=registry
        )
        self._published = Counter("ackback_published_total", "Messages published.", ["result"], registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = (), mode: Any = "livesum") -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)

        self._running = gauge("ackback_running", "Handlers that run.", ("service",))
        self._connected = gauge("ackback_connected", "Workers that consume all of their queues.")
        self._turned = gauge(
            "ackback_loop_turned_timestamp_seconds",
            "When the worker's event loop last turned, since 1970.",
            (),
            "liveall",
        )

    def note(self, event: Event | Row) -> None:
        if isinstance(event, dict):
            self._count(event)
        elif (full := expanded(event)) is not None:
            self._count(full)

    def _count(self, event: Event) -> None:
        if event["event"] == HANDLED:
            service, took = event["service"], event["took_ms"] / 1000
            self._handled.labels(service, event.get("outcome", "ok")).inc()
            self._handling.labels(service).observe(took)
            if "reply" not in event and "attempt" not in event:
                published = event.get("published")
                waited = 0.0 if published is None else max(0.0, event["t"] / 1e6 - took - published)
                self._waiting.labels(service).observe(waited)
        elif event["event"] == DEAD:
            self._dead.labels(str(event["service"]), str(event["reason"])).inc()

    def published(self, confirm: asyncio.Future[None]) -> None:
        """A publish has been confirmed, or not."""
        error = None if confirm.cancelled() else confirm.exception()
        self._published.labels(_result(error)).inc()

    async def run(self, arrivals: Arrivals, ready: asyncio.Event) -> None:
        """Write down what is so at the moment, until cancelled."""
        while True:
            for definition, running, _ in arrivals.services():
                self._running.labels(definition.name).set(running)
            self._connected.set(ready.is_set())
            self._turned.set(time.time())
            await asyncio.sleep(EVERY)


def _result(error: BaseException | None) -> str:
    if error is None:
        return "confirmed"
    if isinstance(error, UnroutableError):
        return "unroutable"
    if isinstance(error, NotAcceptedError):
        return "refused"
    return "lost" if isinstance(error, ConnectionLostError) else "error"


@contextmanager
def served(section: MetricsSection, workers: Callable[[], list[int]]) -> Iterator[None]:
    """Serve the metrics of the processes that are started within, if a port is configured. `workers` are the IDs of those that are to live.

    Raises:
        ConfigurationError: the port cannot be listened on.
    """
    if section.port is None:
        yield
        return
    with _folder() as folder:
        os.environ[FOLDER] = folder
        try:
            server = _Server((section.host, section.port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"[metrics] port: {section.host}:{section.port} cannot be listened on: {error.strerror}"
            ) from None
        server.folder, server.workers = folder, workers
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="ackback-metrics", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            os.environ.pop(FOLDER, None)


@contextmanager
def _folder() -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="ackback-metrics-")
    except OSError as error:
        raise ConfigurationError(f"[metrics] needs a folder for temporary files (TMPDIR): {error.strerror}") from None
    with folder as name:
        yield name


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    folder: str
    workers: Callable[[], list[int]]

    def series(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        return {
            sample.name: [(one.labels, one.value) for one in family.samples if one.name == sample.name]
            for family in self.registry().collect()
            for sample in family.samples
        }

    def registry(self) -> Any:
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        living = set(self.workers())
        for path in Path(self.folder).glob("gauge_live*_*.db"):
            if (pid := int(path.stem.rpartition("_")[2])) not in living:
                mark_process_dead(pid, self.folder)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self.folder)  # type: ignore[no-untyped-call]
        return registry

    def problem(self, path: str) -> str | None:
        """Why the workers are not healthy, or not ready; None if they are."""
        workers = self.workers()
        if all(pid == NOBODY for pid in workers):
            return "no worker lives"
        series = self.series()
        turned = {labels.get("pid"): value for labels, value in series.get("ackback_loop_turned_timestamp_seconds", [])}
        for pid in workers:
            if (at := turned.get(str(pid))) is not None and time.time() - at > STUCK_AFTER:
                return f"worker {pid}: its event loop has not turned for {time.time() - at:.0f} s"
        if path == "/readyz":
            ready = int(sum(value for _, value in series.get("ackback_connected", [])))
            if ready < len(workers):
                return f"{ready} of {len(workers)} workers consume their queues"
        return None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT

    def do_GET(self) -> None:
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(self.server.registry()))
        elif path in ("/healthz", "/readyz"):
            problem = self.server.problem(path)
            self._answer(503 if problem else 200, "text/plain; charset=utf-8", f"{problem or 'ok'}\n".encode())
        else:
            self._answer(404, "text/plain; charset=utf-8", b"there are /metrics, /healthz and /readyz\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """A scrape every few seconds is no news."""
