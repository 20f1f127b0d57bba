"""The handling of one message, as its service sees it, and the invocations that its handler makes meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any, NoReturn

from broker.errors import ConnectionLostError
from broker.handling.events import Sent, sent_by
from broker.handling.invoker import Invoker
from broker.handling.unconfirmed import COUNTING, Unconfirmed
from broker.hosting.definition import ServiceDefinition
from broker.protocol import bodies
from broker.protocol import headers as h
from broker.protocol.cids import Cids, check_cid, derived_cid, seed_of
from broker.protocol.message import Message, Publishing
from broker.protocol.requests import Template
from broker.service import Callbacks, Request, Response, Service, ServiceLogger

MOST_RECORDED = 200
CALL_TIMEOUT = 30.0
"""Seconds."""


class Invocation:
    """One message being handled, as its service sees it, and the invocations that its handler makes meanwhile.

    `sent` says whether there are any.
    """

    # What few invocations change is set here, once for all.
    sent = False
    _ordinal = 0
    _ended = False
    _seed: bytes | None = None
    _outbox: list[Publishing] | None = None
    _response: Response | None = None
    _unconfirmed: Unconfirmed | None = None
    recorded: list[Sent] | None = None
    """What it has invoked, if that is recorded: the last of it, as much of it is recorded before the handler has ended."""

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
        echo: bool | None,
    ) -> str:
        """See `Service.invoke_async`."""
        invoker, definition = self._invoker, self._definition
        target = invoker.registry.name_of(name)
        explicit = definition.callbacks if callback is None else invoker.names(callback)
        cid = check_cid(cid) if cid is not None else self._next_cid()
        silent = target in invoker.silent if echo is None else not echo
        if delay is None and expiration is None and priority is None and headers is None and not silent:
            template = invoker.template(definition, explicit)
        else:
            silent_target = target if silent else None
            template = invoker.special(definition, explicit, silent_target, delay, expiration, priority, headers)
        publishing = self._request(template, target, payload, cid)
        on_loop = threading.get_ident() == invoker.loop_thread
        unconfirmed = self._unconfirmed or self._begin_to_send()
        if self._outbox is not None or on_loop:
            unconfirmed.check()
        elif unconfirmed.is_full:
            asyncio.run_coroutine_threadsafe(unconfirmed.room(), invoker.loop).result()
        if self._ended:
            raise RuntimeError(
                f"the handling of {self.cid} has ended (it took longer than its timeout): nothing was sent"
            )
        unconfirmed.expect(publishing)
        if invoker.observer is not None:
            self._record(target, cid, delay)
        if self._outbox is not None:
            self._outbox.append(publishing)
        elif on_loop:
            unconfirmed.publish(publishing)
        else:
            invoker.loop.call_soon_threadsafe(unconfirmed.publish, publishing)
        return cid

    def invoke_many(
        self,
        name: str | type[Service],
        payloads: Iterable[Any] | AsyncIterable[Any],
        callback: Callbacks | None,
        delay: float | None,
        expiration: float | None,
        priority: int | None,
        headers: Mapping[str, Any] | None,
    ) -> Any:
        """See `Service.invoke_many`."""

        def invoke_one(payload: Any) -> str:
            return self.invoke_async(name, payload, callback, delay, expiration, priority, headers, None, None)

        if threading.get_ident() == self._invoker.loop_thread:
            return self._invoke_many(payloads, invoke_one)
        if not isinstance(payloads, Iterable):
            raise TypeError("in a `def` handler the payloads of invoke_many are an iterable, not an asynchronous one")
        cids = Cids()
        for payload in payloads:
            cids.append(invoke_one(payload))
        return cids

    async def _invoke_many(
        self, payloads: Iterable[Any] | AsyncIterable[Any], invoke_one: Callable[[Any], str]
    ) -> Cids:
        cids = Cids()
        unconfirmed = self._unconfirmed or self._begin_to_send()
        if isinstance(payloads, AsyncIterable):
            async for payload in payloads:
                await self._room(unconfirmed)
                cids.append(invoke_one(payload))
        else:
            for payload in payloads:
                if unconfirmed.is_full:
                    await self._room(unconfirmed)
                cids.append(invoke_one(payload))
        return cids

    async def _room(self, unconfirmed: Unconfirmed) -> None:
        if self._outbox is None:  # what that holds is not sent before the handler has ended
            await unconfirmed.room()

    def _begin_to_send(self) -> Unconfirmed:
        with COUNTING:
            if self._unconfirmed is None:
                self._unconfirmed = Unconfirmed(self._invoker)
                self.sent = True
            return self._unconfirmed

    def invoke(self, name: str | type[Service], payload: Any, timeout: float) -> Any:
        """See `Service.invoke`."""
        if threading.get_ident() == self._invoker.loop_thread:
            raise RuntimeError(
                "invoke() waits, which would stop the event loop: use `await self.call(…)` in `async def`"
            )
        return asyncio.run_coroutine_threadsafe(self.call(name, payload, timeout), self._invoker.loop).result()

    async def call(self, name: str | type[Service], payload: Any, timeout: float | None) -> Any:
        """See `Service.call`."""
        timeout = CALL_TIMEOUT if timeout is None else timeout
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
        if self._invoker.observer is not None:
            self._record(target, str(publishing.message.correlation_id), None)
        return await self._invoker.calls.call(connection, publishing, timeout, deadline)

    def _not_durable(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"{self._definition.name!r} is not durable, and this is for services that are: set `durable = True`"
        )

    wait_for = step = again = now = _not_durable
    random = property(_not_durable)

    async def confirmed(self) -> None:
        """Send what the outbox holds, and wait until the broker has confirmed everything that the handler sent.

        Raises:
            UnroutableError: there is no queue for one of the targets.
            NotAcceptedError: the broker refused one.
            ConnectionLostError: the connection ended; the message being handled will be delivered again.
        """
        if self._unconfirmed is None:
            return
        for publishing in self._outbox or ():
            self._unconfirmed.publish(publishing)
        self._outbox = None
        await self._unconfirmed.all_confirmed()

    def end(self) -> None:
        """The attempt is over: a thread that still runs for it may send nothing more, and what an outbox still holds is never sent."""
        self._ended = True
        if self._outbox and self.recorded:
            unsent = {one.message.correlation_id for one in self._outbox}
            self.recorded = [one for one in self.recorded if one[2] not in unsent]
        if self._unconfirmed is not None:
            self._unconfirmed.forget()

    def _record(self, target: str, cid: str, delay: float | None) -> None:
        invoked: Sent = [int(time.time() * 1e6), target, cid]
        if delay:
            invoked.append(delay)
        if self.recorded is None:
            self.recorded = []
        self.recorded.append(invoked)
        # What an outbox holds may never be sent.
        if len(self.recorded) >= MOST_RECORDED and self._outbox is None:
            recorded, self.recorded = self.recorded, []
            event = sent_by(self._definition.name, self.cid, recorded)
            if self._invoker.observer is not None:
                self._invoker.loop.call_soon_threadsafe(self._invoker.observer.note, event)

    def _request(self, template: Template, target: str, payload: Any, cid: str) -> Publishing:
        headers = {h.PARENT: self.cid}
        for name in h.TRACING:
            if name in self._message.headers:
                headers[name] = self._message.headers[name]
        try:
            publishing = template.request(target, payload, cid, time.time(), self._invoker.max_body, headers)
            if self._invoker.tracing is not None:
                self._invoker.tracing.sent(publishing, target)
            return publishing
        except bodies.UnserialisableError as error:
            raise TypeError(f"the payload for {target!r} cannot be serialised: {error}") from None

    def _next_cid(self) -> str:
        with COUNTING:
            if self._seed is None:
                self._seed = seed_of(self._message, self._definition.name, self.cid)
            ordinal, self._ordinal = self._ordinal, self._ordinal + 1
        return derived_cid(self._seed, ordinal)
