"""Callbacks by convention that other daemons host: `<source>-async-callback`, if there is a queue of that name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from broker.errors import ConfigurationError
from broker.hosting.definition import ServiceDefinition
from broker.hosting.registry import Registry
from broker.log import logger
from broker.transport.interface import Connection


class Convention:
    """Who gets the replies of invocations that name nobody. `changed` is called when there are others now."""

    def __init__(self, registry: Registry, changed: Callable[[], None]) -> None:
        self._registry = registry
        self._changed = changed
        self._names = {one.name: name for one in registry if (name := registry.convention_elsewhere(one))}
        self._elsewhere: frozenset[str] = frozenset()
        self._needed: set[str] = set()

    def callbacks(self, definition: ServiceDefinition) -> tuple[str, ...]:
        """The callbacks for a service's invocations; empty if there is nobody."""
        if name := self._names.get(definition.name):
            self._needed.add(name)
        return self._registry.default_callbacks(definition, self._elsewhere)

    async def look_for_all(self, connection: Connection) -> None:
        """Look for the callbacks of all services that have none here.

        Raises:
            ConnectionLostError: the connection ended.
        """
        await self._look(connection, self._names.values())

    async def look_again(self, connection: Connection) -> None:
        """Look again for those that have been needed, be they there or not: RabbitMQ logs each that it does not find.

        Raises:
            ConnectionLostError: the connection ended.
        """
        await self._look(connection, self._needed)

    async def _look(self, connection: Connection, names: Iterable[str]) -> None:
        looked_for = frozenset(names)
        elsewhere = (self._elsewhere - looked_for) | await existing(connection, looked_for)
        if elsewhere == self._elsewhere:
            return
        for name in sorted(elsewhere - self._elsewhere):
            logger.info("replies for which no callback is named go to %r, which other daemons host", name)
        for name in sorted(self._elsewhere - elsewhere):
            logger.warning("the queue of %r is gone: nobody is asked for its replies any more", name)
        self._elsewhere = elsewhere
        self._changed()


async def existing(connection: Connection, names: Iterable[str]) -> frozenset[str]:
    """Those of the names that there are queues of.

    Raises:
        ConnectionLostError: the connection ended.
    """
    looked_for = list(names)
    there = await asyncio.gather(*(_is_there(connection, name) for name in looked_for))
    return frozenset(name for name, is_there in zip(looked_for, there, strict=True) if is_there)


async def _is_there(connection: Connection, name: str) -> bool:
    with suppress(ConfigurationError):  # a user who may not look
        return await connection.look_at(name) is not None
    return False
