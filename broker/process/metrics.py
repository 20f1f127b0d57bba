"""Metrics for Prometheus: what a worker counts.

events ─→ Metrics ─→ files in a folder that all workers share ─→ metrics_server.py
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from broker.errors import ConnectionLostError, NotAcceptedError, UnroutableError
from broker.handling.arrivals import Arrivals
from broker.protocol.events import DEAD, HANDLED, Event, Row, expanded

CONNECTED, LOOP_TURNED = "ackback_connected", "ackback_loop_turned_timestamp_seconds"
EVERY = 1.0
HANDLING_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
WAITING_BUCKETS = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400)


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
        self._connected = gauge(CONNECTED, "Workers that consume all of their queues.")
        self._turned = gauge(
            LOOP_TURNED,
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
