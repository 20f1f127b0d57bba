"""Spans for OpenTelemetry, by its conventions for messaging (https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/).

A request is a `send` span where it is made, a handling a `process` span, current while the handler runs; headers `traceparent` and
`tracestate` carry the context. There are none where OpenTelemetry is not installed, or no tracer provider is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from broker.protocol import headers as h
from broker.protocol.message import Message, Publishing
from broker.protocol.outcomes import DEAD_REASON, Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


def tracing() -> Tracing | None:
    """What makes spans; None if nobody would see them."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    if isinstance(trace.get_tracer_provider(), (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return Tracing(trace.get_tracer("ackback"))


class Tracing:
    """Makes spans."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import context
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()
        self._attach, self._in_context = context.attach, set_span_in_context
        self._consumer, self._producer = SpanKind.CONSUMER, SpanKind.PRODUCER
        self._status, self._failed = Status, StatusCode.ERROR

    def process(self, service: str, message: Message, attempt: int, *, redelivered: bool) -> Span:
        """The span of a handling, current from now on in this context. Ended by `processed`."""
        carrier = {name: value for name in h.TRACING if isinstance(value := message.headers.get(name), str)}
        attributes = _attributes("process", service, message)
        if attempt > 1:
            attributes["ackback.attempt"] = attempt
        if redelivered:
            attributes["ackback.redelivered"] = True
        span = self._tracer.start_span(
            f"process {service}", self._propagator.extract(carrier), kind=self._consumer, attributes=attributes
        )
        # Every handling has a context of its own, which ends with it: nothing has to be put back.
        self._attach(self._in_context(span))
        return span

    def processed(self, span: Span, outcome: Outcome | None) -> None:
        """A handling has ended; without an outcome if it will come again."""
        if outcome is not None and outcome.error is not None:
            reason = "retried" if outcome.dead is None else str(outcome.dead.message.headers[DEAD_REASON])
            span.set_attributes({"error.type": outcome.error.title, "ackback.outcome": reason})
            span.set_status(self._status(self._failed, outcome.error.detail))
        span.end()

    def sent(self, publishing: Publishing, target: str) -> None:
        """A request is about to be published: its span is made, and is the parent of what comes of it."""
        message = publishing.message
        attributes = _attributes("send", target, message)
        with self._tracer.start_as_current_span(f"send {target}", kind=self._producer, attributes=attributes):
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
        message.headers = {**_without_context(message.headers), **carrier}


def _without_context(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name not in h.TRACING}


def _attributes(operation: str, queue: str, message: Message) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "messaging.rabbitmq.destination.routing_key": queue,
        "messaging.message.body.size": len(message.body),
    }
    if message.correlation_id is not None:
        attributes["messaging.message.conversation_id"] = message.correlation_id
    if message.message_id is not None:
        attributes["messaging.message.id"] = message.message_id
    return attributes
