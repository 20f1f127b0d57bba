"""What `/api/…` answers, as an OpenAPI 3.1 document."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

_TEXT = {"type": "string"}
_NUMBER = {"type": ["number", "null"]}
_WHOLE = {"type": "integer"}
_EVENT = {"type": "object", "description": "An event of the record: docs/operating.md, broker/protocol/events.py."}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_SERVICE = _object(
    name=_TEXT,
    rate={**_NUMBER, "description": "Handlings a second, over the last minute."},
    p50={**_NUMBER, "description": "ms"},
    p95={**_NUMBER, "description": "ms"},
    p99={**_NUMBER, "description": "ms"},
    failures={**_WHOLE, "description": "Of the last minute."},
    running=_WHOLE,
    waiting={**_WHOLE, "description": "In the daemons."},
    daemons=_WHOLE,
    ready={"type": ["integer", "null"], "description": "On the queue; null: there is none."},
)
_DEAD = _object(
    key=_TEXT,
    kind=_TEXT,
    cid=_TEXT,
    service=_TEXT,
    reason=_TEXT,
    title=_TEXT,
    detail=_TEXT,
    at=_NUMBER,
    attempts=_WHOLE,
    size=_WHOLE,
)
_KIND = _object(
    key=_TEXT, service=_TEXT, reason=_TEXT, title=_TEXT, detail=_TEXT, count=_WHOLE, first=_NUMBER, last=_NUMBER
)
_RUN = _object(run=_TEXT, service=_TEXT, cid=_TEXT, state=_TEXT, began=_NUMBER, changed=_NUMBER)
_SCHEDULE = _object(
    service=_TEXT,
    schedule=_TEXT,
    missed=_TEXT,
    paused={"type": "boolean"},
    last={"type": ["string", "null"]},
    next=_list(_TEXT),
    problem={"type": ["string", "null"]},
)
_STEP = {
    "$ref": "#/components/schemas/Step",
}
_PATHS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "/api/services": ("Every service: its last minute.", _list(_SERVICE), ()),
    "/api/services/{name}": (
        "One service: minutes, what daemons tell of it, its newest failures.",
        _object(
            name=_TEXT,
            now=_SERVICE,
            minutes=_list({"type": "object"}),
            about={"type": "object"},
            failures=_list({"type": "object"}),
        ),
        ("span",),
    ),
    "/api/failures": (
        "Dead letters, by service and error.",
        _object(as_of=_NUMBER, count=_WHOLE, groups=_list(_KIND)),
        (),
    ),
    "/api/failures/groups/{kind}": (
        "Those of one kind, the newest first.",
        _object(count=_WHOLE, page=_WHOLE, pages=_WHOLE, dead_letters=_list(_DEAD)),
        ("page",),
    ),
    "/api/failures/{key}": (
        "One of them: properties, headers, body (of a long one, the first 64 KiB).",
        _object(key=_TEXT, bytes=_WHOLE, is_cut={"type": "boolean"}, message={"type": "object"}),
        (),
    ),
    "/api/invocations": (
        "The newest handlings and dead letters that are like that, or the CIDs that begin so.",
        _object(
            events=_list(_EVENT),
            older={"type": ["integer", "null"], "description": "Give it as `before`."},
            cids=_list(_TEXT),
        ),
        ("cid", "service", "outcome", "since", "before"),
    ),
    "/api/invocations/{cid}": ("The tree that an invocation belongs to.", _STEP, ()),
    "/api/runs": ("Runs of durable services, the newest first.", _list(_RUN), ("cid", "service", "state")),
    "/api/runs/{cid}": (
        "One of them: its steps, of a long one the last.",
        _object(**_RUN["properties"], steps=_list({"type": "object"}), left_out=_WHOLE),
        ("service",),
    ),
    "/api/schedules": ("What is invoked by itself.", _list(_SCHEDULE), ()),
    "/api/daemons": ("Every daemon, and its last sign of life.", _list({"type": "object"}), ()),
    "/api/concerns": (
        "What somebody should know.",
        _list(_object(grade=_TEXT, word=_TEXT, text=_TEXT, link=_TEXT)),
        (),
    ),
    "/api/jobs": ("What is being replayed or dropped, or was.", _list({"type": "object"}), ()),
}


def document() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ackback",
            "version": version("ackback"),
            "description": "Times are in µs since 1970 (`t`, `requested`, `seen`), else in seconds.",
        },
        "paths": {path: {"get": _operation(path, *told)} for path, told in _PATHS.items()},
        "components": {
            "schemas": {
                "Step": _object(
                    cid=_TEXT,
                    target={"type": ["string", "null"]},
                    source={"type": ["string", "null"]},
                    requested={"type": ["integer", "null"]},
                    delay=_NUMBER,
                    callbacks=_list(_TEXT),
                    handlings=_list(_EVENT),
                    dead=_list(_EVENT),
                    children=_list({"$ref": "#/components/schemas/Step"}),
                )
            },
            "securitySchemes": {"password": {"type": "http", "scheme": "basic"}},
        },
    }


def _operation(path: str, summary: str, schema: dict[str, Any], query: tuple[str, ...]) -> dict[str, Any]:
    in_path = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    answers: dict[str, Any] = {"200": {"description": summary, "content": {"application/json": {"schema": schema}}}}
    if in_path:
        answers["404"] = {"description": "There is none."}
    return {
        "summary": summary,
        "operationId": "_".join(part.strip("{}") for part in path.split("/")[2:]),
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": _TEXT} for name in in_path),
            *({"name": name, "in": "query", "schema": _TEXT} for name in query),
        ],
        "responses": answers,
    }
