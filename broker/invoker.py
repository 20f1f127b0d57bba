"""Invoking services: from a handler, tracked until the broker has confirmed, and by calls that wait for the reply."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

from broker import codec, quarantine
from broker import headers as h
from broker.calls import Calls
from broker.chain import DelayChain
from broker.cid import derived_cid, seed_of
from broker.delay import delayed, whole_seconds
from broker.errors import ConnectionLostError, NotAcceptedError, UnroutableError
from broker.message import Message, Publishing
from broker.registry import Registry, ServiceDefinition
from broker.service import Callback, Callbacks, Request, Response, Service, ServiceLogger
from broker.topology import own_queue, with_what_leads_there
from broker.transport import Connection


class Template:
    """What many requests have in common, checked once.

    `delay` and `expiration` are in seconds; `own_headers` are the protocol's, `headers` the user's.

    Raises:
        TypeError: a header has a value that AMQP has no type for.
        ValueError: an argument is out of its range, or a header is one of the protocol's own.
    """

    def __init__(
        self,
        *,
        callbacks: tuple[str, ...] = (),
        reply_to: str | None = None,
        delay: float | None = None,
        expiration: float | None = None,
        priority: int | None = None,
        headers: Mapping[str, Any] | None = None,
        own_headers: Mapping[str, Any] | None = None,
    ) -> None:
        if expiration is not None and not 0 <= expiration <= MAX_EXPIRATION:
            raise ValueError(f"expiration is in seconds, from 0 to a year, not {expiration!r}")
        if priority is not None and not 0 <= priority <= 255:
            raise ValueError(f"priority is 0 to 255, not {priority!r}")
        if len(callbacks) > h.MAX_CALLBACKS:
            raise ValueError(f"{len(callbacks)} callbacks; {h.MAX_CALLBACKS} are allowed")
        if headers:
            if not h.OWN.isdisjoint(headers):
                taken = ", ".join(sorted(h.OWN.intersection(headers)))
                raise ValueError(f"headers that the protocol itself sets cannot be given: {taken}")
            h.check_encodable(dict(headers), "headers")
        self._headers = {**(headers or {}), **(own_headers or {})}
        if callbacks:
            self._headers[h.CALLBACK] = callbacks[0] if len(callbacks) == 1 else list(callbacks)
        self._reply_to = reply_to
        self._delay = 0 if delay is None else whole_seconds(delay)
        self._expiration = None if expiration is None else round(expiration * 1000)
        self._priority = priority

    def request(self, target: str, payload: Any, cid: str, max_body: int) -> Publishing:
        """A request with this payload.

        Raises:
            codec.UnserialisableError: the payload cannot be serialised.
            NotAcceptedError: it is larger than `max_body` bytes.
        """
        body, content_type = codec.encode(payload)
        if len(body) > max_body:
            # The receiver would refuse it, or the broker, by closing the connection.
            raise NotAcceptedError(
                f"the payload for {target!r} has {len(body)} bytes; at most {max_body} are allowed ([worker] max_body)"
            )
        message = Message(
            body,
            self._headers,
            content_type,
            correlation_id=cid,
            message_id=cid,
            reply_to=self._reply_to,
            expiration=self._expiration,
            priority=self._priority,
            timestamp=int(time.time()) + self._delay,
        )
        publishing = Publishing(target, message)
        return delayed(publishing, self._delay) if self._delay else publishing


def check_cid(cid: str) -> str:
    """Return a CID that a user gave, if AMQP can carry it.

    Raises:
        ValueError: it is empty or longer than 200 bytes.
    """
    if not isinstance(cid, str) or not cid or len(cid.encode()) > 200:
        raise ValueError(f"a CID is a string of 1 to 200 bytes, not {cid!r:.60}")
    return cid


MAX_EXPIRATION = 366 * 86400

# Held for the moment that a thread takes to count: one for all is cheaper than one for each message.
_SCHEDULING = threading.Lock()


class Invoker:
    """What all invocations of a process share: its services, its calls, and the connection of the moment."""

    def __init__(self, registry: Registry, callback_queue: str, max_body: int) -> None:
        self.registry = registry
        self.callback_queue = callback_queue
        self.quarantine_queue = quarantine.queue_name(callback_queue)
        self.max_body = max_body
        self.calls = Calls()
        self.chain = DelayChain()
        self.loop = asyncio.get_running_loop()
        self.loop_thread = threading.get_ident()
        self.connection: Connection | None = None

    def publish(self, publishing: Publishing) -> asyncio.Future[None]:
        """Publish on the connection of the moment; see `Connection.publish` and `DelayChain.publish`."""
        if self.connection is None:
            refused: asyncio.Future[None] = self.loop.create_future()
            refused.set_exception(ConnectionLostError("there is no connection to RabbitMQ"))
            return refused
        if publishing.exchange:
            return self.loop.create_task(self.chain.publish(self.connection, publishing))
        return self.connection.publish(publishing)

    def hosts(self, queue: str) -> bool:
        """Whether the queue is one that this process declares."""
        return queue in self.registry or queue in (self.callback_queue, self.quarantine_queue)

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
        *,
        callback: Callbacks | None,
        delay: float | None,
        expiration: float | None,
        priority: int | None,
        headers: Mapping[str, Any] | None,
        cid: str | None,
    ) -> str:
        """See `Service.invoke_async`."""
        target = self._invoker.registry.name_of(name)
        explicit = self._invoker.names(callback) if callback is not None else self._definition.callbacks
        wanted = explicit or self._invoker.registry.default_callbacks(self._definition)
        cid = check_cid(cid) if cid is not None else self._next_cid()
        publishing = self._compose(
            target,
            payload,
            cid=cid,
            callbacks=explicit,
            reply_to=self._invoker.callback_queue if wanted else None,
            delay=delay,
            expiration=expiration,
            priority=priority,
            headers=headers,
        )
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

    def invoke(self, name: str | type[Service], payload: Any, *, timeout: float) -> Any:
        """See `Service.invoke`."""
        if threading.get_ident() == self._invoker.loop_thread:
            raise RuntimeError(
                "invoke() waits, which would stop the event loop: use `await self.call(…)` in `async def`"
            )
        return asyncio.run_coroutine_threadsafe(self.call(name, payload, timeout=timeout), self._invoker.loop).result()

    async def call(self, name: str | type[Service], payload: Any, *, timeout: float) -> Any:
        """See `Service.call`."""
        target = self._invoker.registry.name_of(name)
        publishing = self._compose(target, payload, cid=self._next_cid())
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
                await confirm
            except UnroutableError as error:
                if self._invoker.hosts(publishing.routing_key):
                    await self._invoker.declare_own(publishing.routing_key)
                    await self._invoker.publish(publishing)
                else:
                    failed = failed or error
            except NotAcceptedError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def end(self) -> None:
        """The attempt is over: a thread that still runs for it may send nothing more."""
        self._ended = True
        for _, confirm in self._confirms:
            confirm.add_done_callback(retrieved)

    def _compose(self, target: str, payload: Any, cid: str, **properties: Any) -> Publishing:
        request = self._message
        tracing = {key: request.headers[key] for key in h.TRACING if key in request.headers}
        own_headers = {h.SOURCE: self._definition.name, h.PARENT: self.cid, **tracing}
        try:
            template = Template(own_headers=own_headers, **properties)
            return template.request(target, payload, cid, self._invoker.max_body)
        except codec.UnserialisableError as error:
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


def retrieved(confirm: asyncio.Future[None]) -> None:
    """A callback for a confirm that nobody waits for any more: its error is no news."""
    if not confirm.cancelled():
        confirm.exception()
