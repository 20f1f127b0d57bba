"""Asking the daemon that fires what is scheduled."""

from __future__ import annotations

import time
from typing import Any

from broker.errors import AckbackError, UnroutableError
from broker.handling.calls import Calls
from broker.protocol import schedules
from broker.protocol.cids import new_cid
from broker.protocol.names import SCHEDULES
from broker.protocol.requests import Template
from broker.protocol.schedules import Do, Line
from broker.transport.interface import Connection

TIMEOUT = 10.0
MAX_BODY = 1 << 20


class NobodyFiresError(AckbackError):
    """No daemon is there that fires what is scheduled."""


class ScheduleCommands:
    """Commands on a connection, and their replies."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._calls = Calls()

    async def lines(self) -> list[Line]:
        """What there is. Raises what `tell` raises."""
        return [Line.model_validate(one) for one in await self.tell("list")]

    async def tell(self, do: Do, service: str = "") -> Any:
        """Give a command, and return the reply: the schedules, or what was fired.

        Raises:
            NobodyFiresError: no daemon is there to hear it.
            RemoteError: there is no such schedule, or it could not be fired.
            TimeoutError: the daemon has not answered for ten seconds.
        """
        seen = await self._connection.look_at(SCHEDULES)
        if seen is None:
            raise NobodyFiresError("no daemon whose services have a schedule has been here yet")
        if not seen.consumers:
            raise NobodyFiresError("no daemon is running that knows of schedules: start one (ackback run)")
        request = Template().request(SCHEDULES, schedules.command(do, service), new_cid(), time.time(), MAX_BODY)
        try:
            return await self._calls.call(self._connection, request, TIMEOUT)
        except UnroutableError:
            raise NobodyFiresError("the schedules have just been deleted") from None
