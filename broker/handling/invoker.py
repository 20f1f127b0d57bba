"""What all invocations of a process share: its services, its calls, and the connection of the moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from broker.errors import ConnectionLostError
from broker.handling.addressed import AddressedQueues
from broker.handling.calls import Calls
from broker.handling.chain import DelayChain
from broker.handling.convention import Convention
from broker.handling.deadlines import Deadlines
from broker.handling.tracing import tracing
from broker.hosting.definition import ServiceDefinition
from broker.hosting.registry import Registry
from broker.protocol import quarantine
from broker.protocol.message import Publishing
from broker.protocol.names import DEAD_LETTERS
from broker.protocol.queues import DUE, UNDERTAKER, own_queue, with_what_leads_there
from broker.protocol.requests import Template
from broker.recording.recorder import Observer
from broker.service import Callback, Callbacks
from broker.transport.interface import Connection

MAX_TEMPLATES = 4096


class Invoker:
    """What all invocations of a process share. `silent` are the targets that echo nothing, `published` is told of every confirm."""

    def __init__(
        self,
        registry: Registry,
        callback_queue: str,
        max_body: int,
        silent: frozenset[str],
        observer: Observer | None = None,
        published: Callable[[asyncio.Future[None]], None] | None = None,
    ) -> None:
        self.registry = registry
        self.callback_queue = callback_queue
        self.quarantine_queue = quarantine.queue_name(callback_queue)
        self.max_body = max_body
        self.silent = silent
        self.observer = observer
        self._published = published
        self.tracing = tracing()
        self.addressed = AddressedQueues(callback_queue)
        self._own_queues = frozenset((callback_queue, self.quarantine_queue, DEAD_LETTERS, UNDERTAKER, DUE))
        self.calls = Calls()
        self.chain = DelayChain()
        self.deadlines = Deadlines()
        self.loop = asyncio.get_running_loop()
        self.loop_thread = threading.get_ident()
        self.connection: Connection | None = None
        self._templates: dict[tuple[str, tuple[str, ...]], Template] = {}
        self.convention = Convention(registry, self._templates.clear)

    def reply_to(
        self, definition: ServiceDefinition, callbacks: tuple[str, ...], silent_target: str | None = None
    ) -> str | None:
        """The queue that a service's invocations ask replies on; None if there is nobody who would get them."""
        if silent_target is not None:
            return self.addressed.reply_to(silent_target, callbacks or self.convention.callbacks(definition))
        return self.callback_queue if callbacks or self.convention.callbacks(definition) else None

    def template(self, definition: ServiceDefinition, callbacks: tuple[str, ...]) -> Template:
        """What a service's plain invocations with these callbacks have in common."""
        key = definition.name, callbacks
        if (template := self._templates.get(key)) is None:
            reply_to = self.reply_to(definition, callbacks)
            template = Template(callbacks=callbacks, reply_to=reply_to, source=definition.name)
            if len(self._templates) < MAX_TEMPLATES:
                self._templates[key] = template
        return template

    def special(
        self,
        definition: ServiceDefinition,
        callbacks: tuple[str, ...],
        silent_target: str | None,
        delay: float | None,
        expiration: float | None,
        priority: int | None,
        headers: Mapping[str, Any] | None,
    ) -> Template:
        """What a service's invocation has that is not plain; see `Template`, and `reply_to` for `silent_target`."""
        return Template(
            callbacks=callbacks,
            reply_to=self.reply_to(definition, callbacks, silent_target),
            delay=delay,
            expiration=expiration,
            priority=priority,
            headers=headers,
            source=definition.name,
        )

    def publish(self, publishing: Publishing) -> asyncio.Future[None]:
        """Publish on the connection of the moment; see `Connection.publish` and `DelayChain.publish`."""
        if self.connection is None:
            refused: asyncio.Future[None] = self.loop.create_future()
            refused.set_exception(ConnectionLostError("there is no connection to RabbitMQ"))
            return refused
        confirm: asyncio.Future[None]
        if publishing.exchange or publishing.message.reply_to in self.addressed.names:
            confirm = self.loop.create_task(self.addressed.publish(self.connection, publishing, self.chain))
        else:
            confirm = self.connection.publish(publishing)
        if self._published is not None:
            confirm.add_done_callback(self._published)
        return confirm

    def hosts(self, queue: str) -> bool:
        """Whether the queue is one that this process declares."""
        return queue in self.registry or queue in self._own_queues

    async def declare_own(self, queue: str) -> None:
        """Declare a queue of our own again, as somebody has deleted it."""
        if self.connection is None:
            raise ConnectionLostError("there is no connection to RabbitMQ")
        await self.connection.declare(*with_what_leads_there(own_queue(queue)))

    def names(self, callback: Callbacks) -> tuple[str, ...]:
        """The names that the `callback` argument stands for."""
        if isinstance(callback, str):
            return (self.registry.name_of(callback),)
        given = callback if isinstance(callback, (list, tuple)) else [callback]
        return tuple(dict.fromkeys(self.registry.name_of(cast(Callback, one)) for one in given))


def retrieved(confirm: asyncio.Future[None]) -> None:
    """A callback for a confirm that nobody waits for any more: its error is no news."""
    if not confirm.cancelled():
        confirm.exception()
