"""One message in, one outcome out. Runs the service and knows nothing of where messages come from or go to."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import traceback
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined

from broker.errors import ConnectionLostError, InvalidInputError
from broker.handling import events
from broker.handling.eager import directly
from broker.handling.invocation import Invocation
from broker.handling.invoker import Invoker
from broker.hosting.definition import ServiceDefinition
from broker.log import handling
from broker.protocol import bodies, problems
from broker.protocol import headers as h
from broker.protocol.cids import new_cid
from broker.protocol.headers import Headers
from broker.protocol.message import Message, Reply
from broker.protocol.outcomes import LATE, NOTHING, Outcome, failure, reply, retried
from broker.protocol.problems import problem
from broker.protocol.queues import is_call
from broker.retry import Reject
from broker.service import Request, Service

if TYPE_CHECKING:
    from opentelemetry.trace import Span

RunInThread = Callable[..., "asyncio.Future[Any]"]


class TimeoutExceeded(TimeoutError):
    """The handler took longer than the service's `timeout`."""


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
                arguments = _arguments(definition, message, is_reply)
                handed_over = 0.0 if deadline is None else time.monotonic()
                if definition.is_async and definition.timeout is None:
                    result = await handle(*arguments)
                else:
                    result = await self._run(definition, definition.is_async, handle, *arguments)
                if handed_over:
                    self._deadlines.took(definition.name, time.monotonic() - handed_over)
                answer = _answer(definition, message, invocation.payload if result is None else result)
            finally:
                ended()
            if invocation.sent:
                await invocation.confirmed()
            outcome = answer
            return outcome
        except ConnectionLostError:
            raise
        except BaseException as error:
            outcome = _failed(definition, message, reply_headers is not None, _failure_in(error))
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


class TooLarge(Exception):
    """A body of more bytes than the configuration allows."""

    def __init__(self, size: int, maximum: int) -> None:
        super().__init__(f"the body has {size} bytes; at most {maximum} are allowed ([worker] max_body)")


def _failure_in(error: BaseException) -> Exception:
    """What a handler raised, as its failure.

    Raises:
        BaseException: it is no failure: the handling was cancelled, or the process is to end.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, SystemExit):
        return RuntimeError(f"the handler called sys.exit({error.code!r})")
    if isinstance(error, asyncio.CancelledError) and not ((task := asyncio.current_task()) and task.cancelling()):
        return RuntimeError("the handler raised CancelledError")
    raise error


def _check_replier(allowed: tuple[str, ...], message: Message) -> None:
    replier = message.headers.get(h.SERVICE)
    if not isinstance(replier, str) or not any(fnmatchcase(replier, pattern) for pattern in allowed):
        raise Reject(f"it takes no replies from {replier!r} (callback_from)")


def _arguments(definition: ServiceDefinition, message: Message, is_reply: bool) -> tuple[Any, ...]:
    if not definition.has_parameter:
        return ()
    if not message.body and definition.default is not PydanticUndefined:
        return (definition.default,)
    assert definition.takes is not None
    return (bodies.validate(message, definition.takes, or_text=is_reply),)


def _answer(definition: ServiceDefinition, message: Message, response: Any) -> Outcome:
    """The reply, if one is wanted. The response is serialised in any case: a bad one should not depend on who asks."""
    content_type, headers = None, None
    returns = definition.returns
    if isinstance(response, Reply):
        content_type, headers, response, returns = response.content_type, response.headers, response.payload, None
    try:
        body, default_type = bodies.encode(response, returns)
    except bodies.UnserialisableError as error:
        raise TypeError(f"the response of {definition.name!r} cannot be serialised: {error}") from None
    answer = reply(message, definition.name, body, content_type or default_type, headers)
    return NOTHING if answer is None else Outcome(answer)


def _failed(definition: ServiceDefinition, message: Message, is_reply: bool, error: Exception) -> Outcome:
    """Another attempt at the message if there is one left, else its end."""
    name = definition.name
    attempt = message.headers.get(h.ATTEMPT, 1)
    attempt = attempt if isinstance(attempt, int) else 1
    wait = _wait(definition, attempt, error)
    if wait is None:
        outcome = _final(name, message, attempt, error)
        if is_reply and outcome.dead:
            outcome.dead.message.headers.setdefault(h.STATUS, h.OK)  # or it would be replayed as a request
        return outcome
    log = logging.getLogger(name)
    what = f"{type(error).__name__}: {error}"
    if message.expiration is not None and wait * 1000 >= message.expiration:
        log.warning("failed, and expires before attempt %d: %s", attempt + 1, what)
        detail = f"it expires before it can be tried again; attempt {attempt} failed: {what}"
        return failure(message, "expired", problem("expired", "Expired", detail, name, attempt))
    log.warning("attempt %d failed: %s; the next one in %d s", attempt, what, wait)
    told = problem("error", type(error).__name__, str(error), name, attempt)
    return retried(message, name, attempt + 1, wait, told, is_reply=is_reply)


def _wait(definition: ServiceDefinition, attempt: int, error: Exception) -> int | None:
    if definition.retry is None or isinstance(error, (InvalidInputError, TooLarge, Reject)):
        return None
    return definition.retry.wait(attempt, error)


def _final(name: str, message: Message, attempts: int, error: Exception) -> Outcome:
    """Say in the log, the reply and the dead letter why a message ends here."""
    log = logging.getLogger(name)
    if isinstance(error, InvalidInputError):
        log.warning("invalid input: %s", error)
        return failure(
            message,
            "invalid",
            problem("invalid", "Invalid input", str(error), name, attempts, errors=tuple(error.errors)),
        )
    if isinstance(error, TooLarge):
        log.warning("too large: %s", error)
        return failure(message, "too-large", problem("too-large", "Too large", str(error), name, attempts))
    if isinstance(error, Reject):
        log.warning("rejected: %s", error)
        return failure(message, "rejected", problem("rejected", "Rejected", str(error), name, attempts))
    if isinstance(error, TimeoutExceeded):
        log.error("timeout: %s", error)
        return failure(message, "error", problem("timeout", "Timeout", str(error), name, attempts))
    log.error("failed: %s: %s", type(error).__name__, error, exc_info=error)
    text = "".join(traceback.format_exception(error))
    return failure(message, "error", problem("error", type(error).__name__, str(error), name, attempts), text)
