"""A run as its service sees it: what the author calls becomes steps of the run."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import random
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from broker.durable.run import CALL, INVOKE, STEP, Run, place
from broker.handling.invoker import Invoker
from broker.hosting.definition import ServiceDefinition
from broker.protocol import bodies
from broker.protocol import headers as h
from broker.protocol.cids import check_cid
from broker.protocol.message import Publishing
from broker.protocol.requests import Template
from broker.protocol.runs import step_cid
from broker.service import Callbacks, Request, Response, Service, ServiceLogger

SHOWN = 200
"""Characters of a payload that the journal shows."""
_MUTE = logging.Logger("ackback.replay", logging.CRITICAL + 1)


class Again:
    """What `self.again` returns: the run begins anew with this payload."""

    def __init__(self, payload: Any) -> None:
        self.payload = payload


class DurableInvocation:
    """See `Service`; `run_id` is what the CIDs of its steps begin with."""

    def __init__(
        self, invoker: Invoker, definition: ServiceDefinition, run: Run, run_id: str, request: Request
    ) -> None:
        self._invoker = invoker
        self._definition = definition
        self._run = run
        self._run_id = run_id
        self._response = Response()
        self.request = request
        self.cid = str(request._message.correlation_id)
        self.random = random.Random(f"{run_id}.{run.first}")

    @property
    def response(self) -> Response:
        return self._response

    @property
    def logger(self) -> ServiceLogger:
        name = self._definition.name
        logger = _MUTE if self._run.is_replaying or self._run.loop.is_abandoned else logging.getLogger(name)
        return ServiceLogger(logger, {"cid": self.cid, "service": name, "attempt": self.request.attempt})

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._run.loop.now, UTC)

    def call(self, name: str | type[Service], payload: Any, timeout: float | None) -> Coroutine[Any, Any, Any]:
        # Begun by a task of its own, it would be asked for by nobody's line.
        return self._call(name, payload, timeout, place())

    async def _call(self, name: str | type[Service], payload: Any, timeout: float | None, at: str) -> Any:
        target = self._invoker.registry.name_of(name)
        own = self._definition.name
        publishing = self._request(_calls_of(own), target, payload, self._next_cid(target))
        question = self._ask(CALL, target, publishing, at)
        answer = self._run.answer(question)
        if timeout is None:
            return await answer
        async with asyncio.timeout(timeout):
            return await answer

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
        invoker, definition = self._invoker, self._definition
        target = invoker.registry.name_of(name)
        explicit = definition.callbacks if callback is None else invoker.names(callback)
        silent = target in invoker.silent if echo is None else not echo
        silent_target = target if silent else None
        template = invoker.special(definition, explicit, silent_target, delay, expiration, priority, headers)
        cid = self._next_cid(target) if cid is None else check_cid(cid)
        self._ask(INVOKE, target, self._request(template, target, payload, cid), place())
        return cid

    async def invoke_many(
        self,
        name: str | type[Service],
        payloads: Iterable[Any] | AsyncIterable[Any],
        callback: Callbacks | None,
        delay: float | None,
        expiration: float | None,
        priority: int | None,
        headers: Mapping[str, Any] | None,
    ) -> list[str]:
        options = (callback, delay, expiration, priority, headers, None, None)
        if isinstance(payloads, AsyncIterable):
            return [self.invoke_async(name, one, *options) async for one in payloads]
        return [self.invoke_async(name, one, *options) for one in payloads]

    def invoke(self, name: str | type[Service], payload: Any, timeout: float) -> Any:
        raise RuntimeError("invoke() waits, which would stop the event loop: use `await self.call(…)`")

    def wait_for(self, name: str) -> Coroutine[Any, Any, Any]:
        return self._wait_for(name, place())

    async def _wait_for(self, name: str, at: str) -> Any:
        return await self._run.wait_for(name, at)

    def step(self, function: Callable[..., Any], *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        return self._step(function, args, options, place())

    async def _step(self, function: Callable[..., Any], args: Any, options: Any, at: str) -> Any:
        named = function.func if isinstance(function, functools.partial) else function
        what = getattr(named, "__qualname__", type(named).__qualname__)
        return await self._run.answer(self._run.ask(STEP, what, what, (function, args, options), at).number)

    def again(self, payload: Any) -> Again:
        return Again(payload)

    def _next_cid(self, target: str) -> str:
        return step_cid(self._run_id, self._run.next_number, is_own=target == self._definition.name)

    def _ask(self, kind: str, target: str, publishing: Publishing, at: str) -> int:
        body = publishing.message.body
        digest = hashlib.blake2s(body, digest_size=8).hexdigest()
        shown = body[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]
        question = self._run.ask(kind, f"{target} {shown}" if shown else target, f"{target} {digest}", publishing, at)
        return question.number

    def _request(self, template: Template, target: str, payload: Any, cid: str) -> Publishing:
        message = self.request._message
        headers = {h.PARENT: self.cid, **{name: message.headers[name] for name in h.TRACING if name in message.headers}}
        try:
            return template.request(target, payload, cid, time.time(), self._invoker.max_body, headers)
        except bodies.UnserialisableError as error:
            raise TypeError(f"the payload for {target!r} cannot be serialised: {error}") from None


@lru_cache
def _calls_of(service: str) -> Template:
    """What the requests of a service's runs have in common."""
    return Template(callbacks=(service,), reply_to=service, source=service)
