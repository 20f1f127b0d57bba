"""Prometheus text for the whole cluster, as far as the record and the queues tell: daemons' own are at their `[metrics] port`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from broker.web.board import Moment
from broker.web.site import Site


class _Cluster:
    def __init__(self, moment: Moment) -> None:
        self._moment = moment

    def collect(self) -> Iterator[Metric]:
        moment = self._moment
        yield _gauge(
            "rate", "Handlings a second, over the last minute.", {one.name: one.rate for one in moment.services}
        )
        yield _gauge(
            "failure_rate",
            "Handlings a second that failed, over the last minute.",
            {one.name: one.failures / 60 for one in moment.services},
        )
        times = GaugeMetricFamily(
            "ackback_cluster_handling_seconds",
            "How long handlings took, over the last minute.",
            labels=["service", "percentile"],
        )
        for one in moment.services:
            for percentile, ms in (("50", one.p50), ("95", one.p95), ("99", one.p99)):
                if ms is not None:
                    times.add_metric([one.name, percentile], ms / 1000)
        yield times
        ready = {name: state.ready for name, state in moment.queues.items() if state is not None}
        yield _gauge("ready_messages", "Messages ready on a queue.", ready, "queue")
        yield _gauge("running", "Handlers that run.", {one.name: one.running for one in moment.services})
        yield _gauge(
            "hosting_daemons", "Daemons that host a service.", {one.name: one.daemons for one in moment.services}
        )
        silent = sum(one.silent for one in moment.daemons)
        alive = sum(one.hosts for one in moment.daemons)
        yield _gauge("daemons", "Daemons, by whether they are heard of.", {"lives": alive, "silent": silent}, "state")
        yield GaugeMetricFamily(
            "ackback_cluster_dead_letters", "Dead letters on their queue.", value=moment.dead_letters
        )
        grades = {grade: sum(one.grade == grade for one in moment.concerns) for grade in ("bad", "odd")}
        yield _gauge("concerns", "What the page points out.", grades, "grade")
        yield GaugeMetricFamily(
            "ackback_cluster_record_read", "1 while the record is being read.", value=moment.problem is None
        )


def _gauge(name: str, text: str, values: Any, label: str = "service") -> Metric:
    family = GaugeMetricFamily(f"ackback_cluster_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


async def metrics(site: Site, request: Request) -> Response:
    registry = CollectorRegistry()
    registry.register(_Cluster(site.board.moment))
    body = await run_in_threadpool(generate_latest, registry)
    return Response(body, headers={"content-type": CONTENT_TYPE_LATEST})
