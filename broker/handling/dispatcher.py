"""One message in, one outcome out. Runs the service and knows nothing of where messages come from or go to."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from broker.errors import ConnectionLostError
from broker.handling import events
from broker.handling.eager import directly
from broker.handling.invocation import Invocation
from broker.handling.invoker import Invoker
from broker.handling.responses import TimeoutExceeded, TooLarge, answer, arguments, failed, failure_in
from broker.hosting.definition import ServiceDefinition
from broker.log import handling
from broker.protocol import headers as h
from broker.protocol import problems
from broker.protocol.cids import new_cid
from broker.protocol.headers import Headers
from broker.protocol.message import Message
from broker.protocol.outcomes import LATE, NOTHING, Outcome, failure
from broker.protocol.problems import problem
from broker.protocol.queues import is_call
from broker.retry import Reject
from broker.service import Request, Service

if TYPE_CHECKING:
    from opentelemetry.trace import Span

RunInThread = Callable[..., "asyncio.Future[Any]"]


class Dispatcher:
    """Runs services on messages.

    `run_in_thread` runs a `def` handler.
    """

    def __init__(self, invoker: Invoker, run_in_thread: RunInThread) -> None:
        self._invoker = invoker
        self._run_in_thread = run_in_thread
        self._deadlines = invoker.deadlines
        self._max_body = invoker.max_body
        self._observer = invoker.observer
        self._tracing = invoker.tracing

    async def dispatch(
        self,
        definition: ServiceDefinition,
        message: Message,
        ended: Callable[[], None],
        *,
        redelivered: bool = False,
        reply_headers: Headers | None = None,
    ) -> Outcome:
        """Handle one message.

        `ended` is called once the handler has: after that only confirms are waited for. `reply_headers` are the headers, already
        read, of a reply that came to the callback queue; elsewhere header `status` tells a reply.

        Raises:
            ConnectionLostError: what the handler sent may not have been accepted; the message will come again.
        """
        cid = message.correlation_id
        if not cid:
            cid = message.correlation_id = new_cid()
        invocation: Invocation | None = None
        outcome: Outcome | None = None
        span: Span | None = None
        is_reply = reply_headers is not None
        handling.set((cid, definition.name, 1))
        began = time.time()
        try:
            try:
                if len(message.body) > self._max_body:
                    raise TooLarge(len(message.body), self._max_body)
                headers = h.read(message) if reply_headers is None else reply_headers
                if headers.attempt > 1:
                    handling.set((cid, definition.name, headers.attempt))
                is_reply = headers.status is not None or is_reply
                deadline = h.deadline(message)
                if self._tracing is not None:
                    span = self._tracing.process(definition.name, message, headers.attempt, redelivered=redelivered)
                if deadline is not None and self._deadlines.cannot_be_met(definition.name, message, deadline):
                    outcome = self._late(definition, message)
                    return outcome
                if is_reply and definition.callback_from is not None:
                    _check_replier(definition.callback_from, message)
                request = Request(message, headers.attempt, redelivered, headers.source, is_reply)
                invocation = Invocation(self._invoker, definition, message, cid, request)
                service = definition.cls()
                service._handling = invocation
                if headers.status == h.ERROR:
                    outcome = await self._handle_error(definition, service, invocation, message)
                    return outcome
                handle = service.handle  # type: ignore[attr-defined]
                args = arguments(definition, message, is_reply)
                handed_over = 0.0 if deadline is None else time.monotonic()
                if definition.is_async and definition.timeout is None:
                    result = await handle(*args)
                else:
                    result = await self._run(definition, definition.is_async, handle, *args)
                if handed_over:
                    self._deadlines.took(definition.name, time.monotonic() - handed_over)
                answered = answer(definition, message, invocation.payload if result is None else result)
            finally:
                ended()
            if invocation.sent:
                await invocation.confirmed()
            outcome = answered
            return outcome
        except ConnectionLostError:
            raise
        except BaseException as error:
            outcome = failed(definition, message, reply_headers is not None, failure_in(error))
            return outcome
        finally:
            if invocation is not None:
                invocation.end()
            if span is not None and self._tracing is not None:
                self._tracing.processed(span, outcome)
            if self._observer is not None and outcome is not None:
                sent = None if invocation is None else invocation.recorded
                name = definition.name
                self._observer.note(events.handled(name, message, began, outcome, sent, redelivered, is_reply))

    def _late(self, definition: ServiceDefinition, message: Message) -> Outcome:
        """The end of a request that is too late: a call is only counted, as nobody but its caller has lost anything."""
        if is_call(message):
            self._deadlines.let_go(definition.name)
            return LATE
        told = problem("expired", "Expired", "it was not handled before its deadline", definition.name)
        return failure(message, "expired", told)

    async def _handle_error(
        self, definition: ServiceDefinition, service: Service, invocation: Invocation, message: Message
    ) -> Outcome:
        error = problems.from_json(message.body, str(message.headers.get(h.SERVICE, "")))
        if not definition.handles_errors:
            logging.getLogger(definition.name).error(
                "%s failed and %s has no handle_error: %s: %s",
                error.service,
                definition.name,
                error.title,
                error.detail,
            )
            return NOTHING
        method = service.handle_error  # type: ignore[attr-defined]
        await self._run(definition, inspect.iscoroutinefunction(method), method, error)
        await invocation.confirmed()
        return NOTHING

    async def _run(self, definition: ServiceDefinition, is_async: bool, method: Callable[..., Any], *args: Any) -> Any:
        awaitable = method(*args) if is_async else self._run_in_thread(method, *args)
        if definition.timeout is None:
            return await (awaitable if is_async else directly(awaitable))
        scope = asyncio.timeout(definition.timeout)
        try:
            async with scope:
                return await awaitable
        except TimeoutError:
            if scope.expired():
                raise TimeoutExceeded(f"it took longer than its timeout of {definition.timeout:g} s") from None
            raise


def _check_replier(allowed: tuple[str, ...], message: Message) -> None:
    replier = message.headers.get(h.SERVICE)
    if not isinstance(replier, str) or not any(fnmatchcase(replier, pattern) for pattern in allowed):
        raise Reject(f"it takes no replies from {replier!r} (callback_from)")
