"""Events as lines for people. Nothing of them reaches a terminal unescaped."""

from __future__ import annotations

from typing import Any

from broker.log import escaped
from broker.protocol.events import DEAD, HANDLED, SENT, Event
from broker.recording.reading import when


def line(event: Event) -> str | None:
    """`time kind service outcome … (CID …)`; None for what is of no interest on its own."""
    time = when(event["t"]).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
    if event["event"] == HANDLED:
        what = "handled" if "reply" not in event else "callback"
        outcome = _text(event.get("outcome", "ok"))
        tail = f"{_text(event.get('took_ms'))} ms{_attempt(event)}{_error(event)}"
        return f"{time}  {what:<8}  {_text(event.get('service')):<28}  {outcome:<10}  {tail} (CID {_text(event.get('cid'))})"
    if event["event"] == SENT and "cid" in event:
        return f"{time}  sent      {_text(event.get('target')):<28}  {'':<10}  (CID {_text(event.get('cid'))})"
    if event["event"] == DEAD:
        service, reason = _text(event.get("service")), _text(event.get("reason"))
        return f"{time}  dead      {service:<28}  {reason:<10} {_error(event)} (CID {_text(event.get('cid'))})"
    return None


def _attempt(event: Event) -> str:
    attempt = event.get("attempt", 1)
    again = f", again in {event['retry_in']} s" if "retry_in" in event else ""
    return (f", attempt {_text(attempt)}" if attempt != 1 else "") + again


def _error(event: Event) -> str:
    error = event.get("error")
    return f"  {_text(error[0])}: {_text(error[1])}" if isinstance(error, list) and len(error) == 2 else ""


def _text(value: Any) -> str:
    return escaped(str(value))
