"""How a run, or an attempt of it, ends: what its journal has of that, what is published, and what is told whoever comes too late."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from broker.durable import journal
from broker.durable.journal import CANCELLED, DONE, END, FAILED, OK, Entry
from broker.handling import responses
from broker.hosting.definition import ServiceDefinition
from broker.protocol import headers as h
from broker.protocol import problems
from broker.protocol.message import Message
from broker.protocol.outcomes import DEAD_ERROR, DEAD_REASON, NOTHING, Outcome, failure, reply, retried
from broker.protocol.problems import problem


def done(body: bytes, content_type: str | None, headers: dict[str, Any] | None) -> Entry:
    return [END, time.time(), DONE, *_kept(body), content_type, headers]


def cancelled() -> Entry:
    return [END, time.time(), CANCELLED, OK, "", None, None]


def failed(
    definition: ServiceDefinition, request: Message, attempt: int, error: Exception, step: int | None, *, is_last: bool
) -> Entry:
    """An attempt failed with `error`; `step` is the one that raised it, if one did, and `is_last` if its answer was the last that came."""
    name = definition.name
    # What a step has answered it will always have answered: to try again would change nothing.
    seconds = None if step is not None else responses.wait(definition, attempt, error)
    if seconds is None:
        dead = responses.final(name, request, attempt, error).dead
        assert dead is not None
        headers = dead.message.headers
        return [
            FAILED,
            time.time(),
            attempt,
            headers[DEAD_REASON],
            headers[DEAD_ERROR],
            None,
            step if is_last else None,
        ]
    told = problems.to_json(problem("error", type(error).__name__, str(error), name, attempt)).decode()
    logging.getLogger(name).warning("attempt %d failed: %s; the next one in %d s", attempt, error, seconds)
    return [FAILED, time.time(), attempt, "error", told, seconds, None]


def died(name: str, attempt: int, reason: str, error: Exception) -> Entry:
    """A run cannot go on."""
    told = problem(reason, type(error).__name__, str(error), name)
    logging.getLogger(name).error("%s: %s", told.title, told.detail)
    return [FAILED, time.time(), attempt, reason, problems.to_json(told).decode(), None, None]


def outcome(request: Message, name: str, end: Entry) -> Outcome:
    """What is to be published as a run, or an attempt of it, ended like this."""
    if end[0] == FAILED:
        _, _, attempt, reason, kept, wait, _ = end
        error = problems.from_json(kept.encode(), name)
        if wait is not None:
            return retried(request, name, attempt + 1, wait, error, is_reply=h.STATUS in request.headers)
        return failure(request, reason, error, str(json.loads(kept).get("traceback", "")))
    _, _, state, kind, value, content_type, headers = end
    if state == CANCELLED:
        told = problem("cancelled", "Cancelled", "the run was cancelled", name)
        return failure(request, "cancelled", told)._replace(dead=None)
    body = journal.payload(kind, value)
    replied = reply(request, name, body if isinstance(body, bytes) else body.encode(), content_type, headers)
    return NOTHING if replied is None else Outcome(replied)


def is_over(message: Message, name: str, end: Entry) -> Outcome:
    """A message for a run came after its end."""
    _, at, state, *_ = end
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return _not_answered(message, name, f"the run that it is for is over: {state} at {when}")


def no_run(message: Message, name: str) -> Outcome:
    """A message came for a run that was not found."""
    detail = (
        f"there is no run of {name!r} that it is for: has it ended long ago, do all daemons that host the service share one "
        "store ([store] url)?"
    )
    return _not_answered(message, name, detail)


def _not_answered(message: Message, name: str, detail: str) -> Outcome:
    return failure(message, "no-run", problem("no-run", "No run", detail, name))._replace(reply=None)


def _kept(body: bytes) -> tuple[str, Any]:
    try:
        return OK, body.decode()
    except UnicodeDecodeError:
        return journal.value(body)
