"""Problems on the wire: the body of a failure reply, `application/problem+json` (RFC 9457), both ways."""

from __future__ import annotations

import json
from typing import Any

from broker.errors import PROBLEM_TYPE, Problem

CONTENT_TYPE = "application/problem+json"
MAX_DETAIL = 2 * 1024


def problem(reason: str, title: str, detail: str, service: str, attempts: int = 1, **more: Any) -> Problem:
    """A problem of ackback's own kind; the detail is cut at 2 KiB."""
    if len(detail) > MAX_DETAIL:
        detail = detail[:MAX_DETAIL] + "…"
    return Problem(PROBLEM_TYPE + reason, title, detail, service, attempts, **more)


def to_json(error: Problem, **more: object) -> bytes:
    """The problem as a JSON object, with `more` members added."""
    members: dict[str, object] = {
        "type": error.type,
        "title": error.title,
        "detail": error.detail,
        "service": error.service,
        "attempts": error.attempts,
    }
    if error.errors:
        members["errors"] = list(error.errors)
    return json.dumps(members | more, default=str).encode()


def from_json(body: bytes, service: str) -> Problem:
    """Read a failure reply. A body of any other shape, as a foreign replier may send, becomes the detail."""
    try:
        members = json.loads(body)
    except ValueError:
        members = None
    if not isinstance(members, dict):
        members = {"detail": body.decode("utf-8", "replace")}
    attempts, errors = members.get("attempts"), members.get("errors")
    return Problem(
        type=str(members.get("type", "about:blank")),
        title=str(members.get("title", "The service failed")),
        detail=str(members.get("detail", "")),
        service=str(members.get("service", service)),
        attempts=attempts if isinstance(attempts, int) else 1,
        errors=tuple(one for one in errors if isinstance(one, dict)) if isinstance(errors, list) else (),
    )
