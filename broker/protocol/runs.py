"""Runs of durable services on the wire: the CIDs of their steps, and the header of a signal.

A run is told by its service and the CID of the request that began it. Its steps have CIDs of their own, from which the run is found: the
run's 32 letters (the last eight stand for its service), a dot, and the number of the step. So any server that replies with the correlation
ID of its request can be a step. Where a service is a step of its own run, `.0` follows: such a CID on its queue is an answer if it has a
header `status`, and else a request.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from broker.protocol import headers as h
from broker.protocol.message import Message

SIGNAL = "signal"
"""The header that makes a message to a run's service, with the run's CID, a signal: its name."""
CANCEL = "ackback.cancel"
"""The name of the signal that cancels a run."""

TIMER = "ackback.timer"
"""The type of the message by which a run's timer comes back."""

DUE = "due"
"""The header of such a message that says when that is, in seconds since 1970."""

_STEP = re.compile(r"([0-9a-f]{24}([0-9a-f]{8}))\.([0-9]{1,9})(\.0)?")


def check_signal(name: str) -> str:
    """Return the name of a signal.

    Raises:
        ValueError: it is empty, or longer than 200 bytes.
    """
    if not isinstance(name, str) or not name or len(name.encode()) > 200:
        raise ValueError(f"a signal's name is a string of 1 to 200 bytes, not {name!r:.60}")
    return name


def run_id(service: str, cid: str) -> str:
    """What stands for a run in its store, and in the CIDs of its steps."""
    return _hex(f"{service}\0{cid}", 12) + _tag(service)


def step_cid(run: str, number: int, *, is_own: bool = False) -> str:
    """The CID of a run's step; `is_own`: its target is the run's own service."""
    return f"{run}.{number}.0" if is_own else f"{run}.{number}"


def step_of(message: Message, service: str) -> tuple[str, int] | None:
    """The run and the number of the step that a message on a service's queue answers; None if it answers none."""
    found = _STEP.fullmatch(message.correlation_id or "")
    if found is None or found[2] != _tag(service) or (found[4] and h.STATUS not in message.headers):
        return None
    return found[1], int(found[3])


@lru_cache
def _tag(service: str) -> str:
    return _hex(service, 4)


def _hex(text: str, size: int) -> str:
    return hashlib.blake2s(text.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()
