"""Dead letters as text: nothing of them reaches a terminal unescaped."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from broker.log import escaped
from broker.protocol.deadletters import DeadLetter


def summary(dead: DeadLetter) -> dict[str, Any]:
    """What `list --json` says of one."""
    return {
        "cid": dead.cid,
        "reason": dead.reason,
        "service": dead.service,
        "attempts": dead.attempts,
        "at": dead.at.isoformat().replace("+00:00", "Z") if dead.at else None,
        "title": dead.error.get("title"),
        "detail": dead.error.get("detail"),
        "message_id": dead.message.message_id,
        "bytes": len(dead.message.body),
    }


def table_row(dead: DeadLetter, now: datetime) -> str:
    """What `list` says of one."""
    error = f"{dead.error.get('title', '')}: {dead.error.get('detail', '')}"
    return _row(dead.cid or "-", dead.reason, dead.service or "-", str(dead.attempts), _short(dead.age(now)), error)


def _row(cid: str, reason: str, service: str, tried: str, age: str, error: str) -> str:
    cut = escaped(error) if len(error) <= 60 else escaped(error[:59]) + "…"
    return f"{escaped(cid):<32}  {escaped(reason):<14}  {escaped(service):<24}  {tried:>5}  {age:>4}  {cut}"


def _short(age: timedelta | None) -> str:
    if age is None:
        return "-"
    seconds = max(0, int(age.total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def shown(dead: DeadLetter) -> str:
    """All of a dead letter, as `show` prints it."""
    message = dead.message
    lines = [f"CID         {dead.cid}", f"died of     {dead.reason} in {dead.service or '-'}, tried {dead.attempts}"]
    lines.append(f"at          {dead.at.isoformat() if dead.at else '-'}")
    lines.append(f"error       {dead.error.get('title', '-')}: {dead.error.get('detail', '')}")
    lines += [f"{name:<11} {value}" for name, value in dead.properties()]
    for name, value in message.headers.items():
        if name != "dead-error":
            lines.append(f"header      {name} = {value!r}")
    lines = [escaped(line) for line in lines]
    if traceback := dead.error.get("traceback"):
        lines += ["traceback", *(f"    {escaped(line)}" for line in str(traceback).splitlines())]
    try:
        body = [
            f"body ({len(message.body)} bytes)",
            *(f"    {escaped(one)}" for one in message.body.decode().splitlines()),
        ]
    except UnicodeDecodeError:
        body = [f"body ({len(message.body)} bytes, not text; `ackback dead export` keeps it)"]
    return "\n".join(lines + body)


HEADER = _row("CID", "REASON", "SERVICE", "TRIED", "AGE", "ERROR")
