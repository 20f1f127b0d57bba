"""Serves what the workers of one `ackback run` have counted, and how they are: /metrics, /healthz, /readyz.

It is the first process that serves. With several workers that is their parent, and the figures are the sums.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from broker.errors import ConfigurationError
from broker.process.metrics import CONNECTED, LOOP_TURNED
from broker.process.supervisor import NOBODY, STUCK_AFTER
from broker.settings import MetricsSection

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus_client knows that several processes write."""
REQUEST_TIMEOUT = 5.0


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
        samples = [sample for family in self.registry().collect() for sample in family.samples]
        for sample in samples:
            if sample.name == LOOP_TURNED and (stands := time.time() - sample.value) > STUCK_AFTER:
                return f"worker {sample.labels['pid']}: its event loop has not turned for {stands:.0f} s"
        ready = int(sum(sample.value for sample in samples if sample.name == CONNECTED))
        if path == "/readyz" and ready < len(workers):
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
