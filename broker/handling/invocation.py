"""The handling of one message, as its service sees it, and the invocations that its handler makes meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from broker.errors import ConnectionLostError, NotAcceptedError, UnroutableError
from broker.handling.eager import directly
from broker.handling.invoker import Invoker, retrieved
from broker.hosting.definition import ServiceDefinition
from broker.protocol import bodies
from broker.protocol import headers as h
from broker.protocol.cids import check_cid, derived_cid, seed_of
from broker.protocol.message import Message, Publishing
from broker.protocol.requests import Template
from broker.service import Callbacks, Request, Response, Service, ServiceLogger

# Held for the moment that a thread takes to count: one for all is cheaper than one for each message.
_SCHEDULING = threading.Lock()


class Invocation:
    """One message being handled, as its service sees it, and the invocations that its handler makes meanwhile.

    `sent` says whether there are any.
    """

    # What few invocations change is set here, once for all.
    sent = False
    _ordinal = 0
    _scheduled = 0
    _ended = False
    _seed: bytes | None = None
    _outbox: list[Publishing] | None = None
    _response: Response | None = None

    def __init__(
        self,
        invoker: Invoker,
        definition: ServiceDefinition,
        message: Message,
        cid: str,
        request: Request,
    ) -> None:
        self._invoker = invoker
        self._definition = definition
        self._message = message
        if definition.outbox:
            self._outbox = []
        self._confirms: list[tuple[Publishing, asyncio.Future[None]]] = []
        self.cid = cid
        self.request = request

    @property
    def response(self) -> Response:
        if self._response is None:
            self._response = Response()
        return self._response

    @property
    def payload(self) -> Any:
        """What the handler left in `response.payload`."""
        return "" if self._response is None else self._response.payload

    @property
    def logger(self) -> ServiceLogger:
        name = self._definition.name
        extra = {"cid": self.cid, "service": name, "attempt": self.request.attempt}
        return ServiceLogger(logging.getLogger(name), extra)

    def invoke_async(
        self,
        name: str | type[Service],
        payload: Any,
        callback: Callbacks | None,
        delay: float | None,
        expiration: float | None,
        priority: int | None,
        headers: Mapping[str, Any] | None,
        cid: str | None,
    ) -> str:
        """See `Service.invoke_async`."""
        invoker, definition = self._invoker, self._definition
        target = invoker.registry.name_of(name)
        explicit = definition.callbacks if callback is None else invoker.names(callback)
        cid = check_cid(cid) if cid is not None else self._next_cid()
        if delay is None and expiration is None and priority is None and headers is None:
            template = invoker.template(definition, explicit)
        else:
            template = Template(
                callbacks=explicit,
                reply_to=invoker.reply_to(definition, explicit),
                delay=delay,
                expiration=expiration,
                priority=priority,
                headers=headers,
                source=definition.name,
            )
        publishing = self._request(template, target, payload, cid)
        if self._ended:
            raise RuntimeError(
                f"the handling of {self.cid} has ended (it took longer than its timeout): nothing was sent"
            )
        self.sent = True
        if self._outbox is not None:
            self._outbox.append(publishing)
        elif threading.get_ident() == self._invoker.loop_thread:
            self._publish(publishing)
        else:
            with _SCHEDULING:
                self._scheduled += 1
            self._invoker.loop.call_soon_threadsafe(self._publish_scheduled, publishing)
        return cid

    def invoke(self, name: str | type[Service], payload: Any, timeout: float) -> Any:
        """See `Service.invoke`."""
        if threading.get_ident() == self._invoker.loop_thread:
            raise RuntimeError(
                "invoke() waits, which would stop the event loop: use `await self.call(…)` in `async def`"
            )
        return asyncio.run_coroutine_threadsafe(self.call(name, payload, timeout), self._invoker.loop).result()

    async def call(self, name: str | type[Service], payload: Any, timeout: float) -> Any:
        """See `Service.call`."""
        target = self._invoker.registry.name_of(name)
        deadline = h.deadline(self._message)
        if deadline is not None:  # what is called for a caller is of no use when that waits no longer
            timeout = min(timeout, deadline - time.time())
            if timeout <= 0:
                raise TimeoutError(f"{target!r} was not called: whoever waits for {self.cid} waits no longer")
        template = Template(source=self._definition.name)
        publishing = self._request(template, target, payload, self._next_cid())
        connection = self._invoker.connection
        if connection is None:
            raise ConnectionLostError("there is no connection to RabbitMQ")
        return await self._invoker.calls.call(connection, publishing, timeout)

    async def confirmed(self) -> None:
        """Send what the outbox holds, and wait until the broker has confirmed everything that the handler sent.

        Raises:
            UnroutableError: there is no queue for one of the targets.
            NotAcceptedError: the broker refused one.
            ConnectionLostError: the connection ended; the message being handled will be delivered again.
        """
        for publishing in self._outbox or ():
            self._publish(publishing)
        self._outbox = None
        while self._scheduled:
            await asyncio.sleep(0)
        failed: NotAcceptedError | None = None
        for publishing, confirm in self._confirms:
            try:
                await directly(confirm)
            except UnroutableError as error:
                if self._invoker.hosts(publishing.routing_key):
                    await self._invoker.declare_own(publishing.routing_key)
                    await self._invoker.publish(publishing)
                else:
                    failed = failed or error
            except NotAcceptedError as error:
                failed = failed or error
        self._confirms.clear()
        if failed is not None:
            raise failed

    def end(self) -> None:
        """The attempt is over: a thread that still runs for it may send nothing more."""
        self._ended = True
        for _, confirm in self._confirms:
            confirm.add_done_callback(retrieved)

    def _request(self, template: Template, target: str, payload: Any, cid: str) -> Publishing:
        headers = {h.PARENT: self.cid}
        for name in h.TRACING:
            if name in self._message.headers:
                headers[name] = self._message.headers[name]
        try:
            return template.request(target, payload, cid, time.time(), self._invoker.max_body, headers)
        except bodies.UnserialisableError as error:
            raise TypeError(f"the payload for {target!r} cannot be serialised: {error}") from None

    def _next_cid(self) -> str:
        with _SCHEDULING:
            if self._seed is None:
                self._seed = seed_of(self._message, self._definition.name, self.cid)
            ordinal, self._ordinal = self._ordinal, self._ordinal + 1
        return derived_cid(self._seed, ordinal)

    def _publish(self, publishing: Publishing) -> None:
        self._confirms.append((publishing, self._invoker.publish(publishing)))

    def _publish_scheduled(self, publishing: Publishing) -> None:
        self._publish(publishing)
        with _SCHEDULING:
            self._scheduled -= 1
