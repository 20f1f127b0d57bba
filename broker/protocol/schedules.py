"""Who fires what is scheduled, and when: all that daemons tell each other on the queue `ackback.schedules`.

The queue has a single active consumer: RabbitMQ elects the daemon that fires (https://www.rabbitmq.com/docs/consumers#single-active-consumer).
What it knows it keeps in one message of this queue that it holds unacknowledged, so that the next one has it when this one goes. When
something changes, it publishes the whole anew, and acknowledges what it held as soon as the new one is there.

    type            body
    announcement    what a daemon's services have as schedules, and since when that daemon runs: of two the younger is right
    state           what is kept
    beginning       by who has just become the active one: all that was here before has come when this comes back
    (none)          a command, with a reply queue: {"command": "list"}, or pause, resume, fire, drop with the service's name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from broker.errors import InvalidInputError
from broker.protocol.bodies import JSON
from broker.protocol.message import Message, Publishing
from broker.protocol.names import SCHEDULES

ANNOUNCEMENT, STATE, BEGINNING = "announcement", "state", "beginning"
VERSION = 1

Missed = Literal["once", "all", "skip"]
Do = Literal["list", "pause", "resume", "fire", "drop"]


class Plan(BaseModel):
    """A service's schedule as its daemons announce it; `payload` is the body of its requests."""

    model_config = ConfigDict(frozen=True)

    schedule: str
    payload: Any = ""
    missed: Missed = "once"


class Announcement(BaseModel):
    """`since` is when the daemon began (s since 1970), `plans` has all of its services, None for those without a schedule."""

    since: float
    plans: dict[str, Plan | None]


class Entry(BaseModel):
    """One schedule. What was due by `until` has been dealt with, `fired` is the last due time that was; `since` is its announcer's."""

    plan: Plan
    since: float
    until: datetime
    fired: datetime | None = None
    paused: bool = False
    problem: str | None = None


class State(BaseModel):
    """All schedules. Of two states, the one with the higher number is the later."""

    version: int = VERSION
    number: int = 0
    entries: dict[str, Entry] = {}


class Command(BaseModel):
    command: Do
    service: str = ""


class Line(BaseModel):
    """What is told of a schedule; `next` are the times at which it will be due, none while it is paused."""

    service: str
    schedule: str
    missed: Missed
    paused: bool
    last: datetime | None
    next: list[datetime]
    problem: str | None


def cid_of(service: str, due: datetime) -> str:
    """The CID of the request for a due time (UTC): the same, whoever fires it."""
    return f"{service}/{due.astimezone(UTC).isoformat().replace('+00:00', 'Z')}"


def announcement(since: float, plans: Mapping[str, Plan | None]) -> Publishing:
    return _publishing(ANNOUNCEMENT, Announcement(since=since, plans=dict(plans)))


def state(kept: State) -> Publishing:
    return _publishing(STATE, kept)


def beginning(token: str) -> Publishing:
    return Publishing(SCHEDULES, Message(b"", {}, None, correlation_id=token, type=BEGINNING))


def command(do: Do, service: str = "") -> dict[str, str]:
    """The payload of a command."""
    return {"command": do, "service": service}


def lines(told: Sequence[Line]) -> bytes:
    """The reply to a command."""
    return to_json(told)


def fired(cid: str) -> bytes:
    """The reply to a command to fire."""
    return to_json({"cid": cid})


def read(message: Message) -> Announcement | State | Command:
    """What a message of the queue says, but for a beginning, which says nothing.

    Raises:
        InvalidInputError: it is none of these.
    """
    models: dict[str | None, type[Announcement | State | Command]] = {ANNOUNCEMENT: Announcement, STATE: State}
    try:
        return models.get(message.type, Command).model_validate_json(message.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInputError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def _publishing(kind: str, body: BaseModel) -> Publishing:
    return Publishing(SCHEDULES, Message(body.model_dump_json().encode(), {}, JSON, type=kind))
