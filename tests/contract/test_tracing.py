"""Spans, by OpenTelemetry's own SDK: one trace from a foreign client through source, target, retry and callback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from broker import AsyncClient, Retry, Service
from broker.handling import tracing as tracing_module
from broker.protocol.message import Message
from broker.transport.interface import Transport
from tests.contract.services import Seen, collecting_callback
from tests.support import run, running, unique, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is exported. A provider can be set once in a process: so this one is put where it is looked for."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing_module, "tracing", lambda: tracing_module.Tracing(provider.get_tracer("ackback")))
    monkeypatch.setattr("broker.handling.invoker.tracing", tracing_module.tracing)
    monkeypatch.setattr("broker.client.tracing", tracing_module.tracing)
    yield exporter
    provider.shutdown()


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def test_one_trace_through_source_target_retry_and_callback(transport: Transport, spans: InMemorySpanExporter) -> None:
    seen = Seen()
    told = collecting_callback(seen)

    class Price(Service):
        name = unique("price")
        retry = Retry(attempts=2, first=1, jitter=0)

        def handle(self) -> str:
            with trace.get_tracer("of the user").start_as_current_span("looked up"):
                pass
            if self.request.attempt == 1:
                raise LookupError("not yet")
            return "3"

    class Order(Service):
        name = unique("order")

        async def handle(self) -> None:
            self.invoke_async(Price, callback=told)

    async def test() -> None:
        async with running(transport, Order, Price, told) as daemon:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
            await daemon.publish(Order.name, Message(b"", headers, correlation_id="c"))
            await seen.wait(1)
            await until(lambda: len(spans.get_finished_spans()) == 5)

    run(test())
    by_name: dict[str, list[ReadableSpan]] = {}
    for span in sorted(spans.get_finished_spans(), key=lambda one: one.start_time or 0):
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.context.trace_state.get("vendor") == "1"
        by_name.setdefault(span.name, []).append(span)
    (order,) = by_name[f"process {Order.name}"]
    (sent,) = by_name[f"send {Price.name}"]
    first, second = by_name[f"process {Price.name}"]
    (callback,) = by_name[f"process {told.name}"]
    assert parent_of(order) == SPAN
    assert parent_of(sent) == id_of(order)
    assert parent_of(first) == parent_of(second) == parent_of(callback) == id_of(sent)
    assert (order.kind, sent.kind) == (SpanKind.CONSUMER, SpanKind.PRODUCER)
    assert first.status.status_code == StatusCode.ERROR
    assert first.attributes is not None
    assert second.attributes is not None
    assert (first.attributes["error.type"], first.attributes["ackback.outcome"]) == ("LookupError", "retried")
    assert (second.attributes["ackback.attempt"], second.status.status_code) == (2, StatusCode.UNSET)
    assert order.attributes is not None
    assert {
        name: value
        for name, value in order.attributes.items()
        if name.startswith("messaging.") and not name.endswith(".id")
    } == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": Order.name,
        "messaging.rabbitmq.destination.routing_key": Order.name,
        "messaging.message.body.size": 0,
        "messaging.message.conversation_id": "c",
    }


def test_what_a_client_sends_is_a_child_of_its_own_span(transport: Transport, spans: InMemorySpanExporter) -> None:
    class Echo(Service):
        name = unique("echo")

        async def handle(self) -> str:
            return str(self.request.headers.get("traceparent"))

    provider = TracerProvider()

    async def test() -> None:
        async with (
            running(transport, Echo) as daemon,
            AsyncClient(settings=daemon.settings, transport=transport) as client,
        ):
            with provider.get_tracer("of the user").start_as_current_span("checkout") as checkout:
                header = await client.call(Echo)
            context = checkout.get_span_context()
            sent, processed = sorted(spans.get_finished_spans(), key=lambda one: one.start_time or 0)
            assert (sent.name, processed.name) == (f"send {Echo.name}", f"process {Echo.name}")
            assert parent_of(sent) == f"{context.span_id:016x}"
            assert parent_of(processed) == id_of(sent)
            assert header[:-2] == f"00-{context.trace_id:032x}-{id_of(sent)}-"

    run(test())


def test_without_a_provider_there_are_no_spans_and_headers_go_on_as_they_came(transport: Transport) -> None:
    assert tracing_module.tracing() is None

    class Echo(Service):
        name = unique("echo")

        async def handle(self) -> str:
            return str(self.request.headers.get("traceparent"))

    async def test() -> None:
        async with running(transport, Echo) as daemon:
            reply = await daemon.ask(Echo.name, Message(b"", {"traceparent": f"00-{TRACE}-{SPAN}-01"}))
            assert reply.body == f"00-{TRACE}-{SPAN}-01".encode()
            assert reply.headers["traceparent"] == f"00-{TRACE}-{SPAN}-01"

    run(test())
