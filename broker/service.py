"""What service authors subclass, and what a service sees of the message it handles."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, ClassVar, Literal, Protocol, Union

from broker.protocol import bodies
from broker.protocol.message import Message
from broker.retry import Retry
from broker.schedule import Schedule

# The last second of 32 bits, in the year 2106.
LAST_SECOND = 0xFFFFFFFF

Callback = Union[str, type["Service"], "Service"]
Callbacks = Union[Callback, Sequence[Callback]]


class Request:
    """The message being handled. Only what is looked at is decoded."""

    __slots__ = ("_message", "_payload", "attempt", "is_reply", "redelivered", "source")
    _payload: Any

    def __init__(self, message: Message, attempt: int, redelivered: bool, source: str | None, is_reply: bool) -> None:
        self._message = message
        self.attempt = attempt
        self.redelivered = redelivered
        self.source = source
        self.is_reply = is_reply

    @property
    def payload(self) -> Any:
        """The parsed value of JSON, a `str` of text, `bytes` of anything else. In a callback, the response's text.

        Raises:
            InvalidInputError: the body is not what its content type says. Not caught, it ends the invocation as invalid.
        """
        try:
            return self._payload
        except AttributeError:
            self._payload = _lenient_text(self._message) if self.is_reply else bodies.decode(self._message)
            return self._payload

    @property
    def raw(self) -> bytes:
        """The body as it came."""
        return self._message.body

    @property
    def text(self) -> str:
        """The body as text, in the character set the message names, else UTF-8.

        Raises:
            InvalidInputError: it is not such text.
        """
        return bodies.text(self._message)

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers."""
        return self._message.headers

    @property
    def content_type(self) -> str | None:
        return self._message.content_type

    @property
    def reply_to(self) -> str | None:
        """The queue that the reply goes to; None if none is wanted."""
        return self._message.reply_to

    @property
    def expires_at(self) -> datetime | None:
        """When the message expires (UTC), if it says both when it was sent and how long it lives."""
        sent, lifetime = self._message.timestamp, self._message.expiration
        if sent is None or lifetime is None:
            return None
        if sent > LAST_SECOND:  # some clients send milliseconds
            sent //= 1000
        try:
            return datetime.fromtimestamp(sent, UTC) + timedelta(milliseconds=lifetime)
        except (ValueError, OverflowError, OSError):
            return None


def _lenient_text(message: Message) -> str:
    if bodies.is_amqp_value(message):
        return bodies.text(message)
    return message.body.decode("utf-8", "replace")


class Response:
    """Where a classic handler leaves its response: `self.response.payload = …`."""

    __slots__ = ("payload",)

    def __init__(self) -> None:
        self.payload: Any = ""


class ServiceLogger(logging.LoggerAdapter[logging.Logger]):
    """The logger named after the service; each record has `cid`, `service` and `attempt`."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class Handling(Protocol):
    """The handling of one message, as the service's instance sees it. What handles messages provides it."""

    cid: str
    request: Request

    @property
    def response(self) -> Response: ...
    @property
    def logger(self) -> ServiceLogger: ...
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
    ) -> str: ...
    def invoke_many(
        self,
        name: str | type[Service],
        payloads: Iterable[Any] | AsyncIterable[Any],
        callback: Callbacks | None,
        delay: float | None,
        expiration: float | None,
        priority: int | None,
        headers: Mapping[str, Any] | None,
    ) -> Any: ...
    def invoke(self, name: str | type[Service], payload: Any, timeout: float) -> Any: ...
    def call(self, name: str | type[Service], payload: Any, timeout: float | None) -> Coroutine[Any, Any, Any]: ...
    def wait_for(self, name: str) -> Coroutine[Any, Any, Any]: ...
    def step(self, function: Callable[..., Any], *args: Any, **options: Any) -> Coroutine[Any, Any, Any]: ...
    def again(self, payload: Any) -> Any: ...
    def now(self) -> datetime: ...
    @property
    def random(self) -> Random: ...


class Service:
    """A named unit of work. Subclass it and write `handle`, either `def` or `async def`.

    `handle` takes no argument, or one that has an annotation: the body is then validated against it. What it
    returns, or else `self.response.payload`, is the response. A callback service may also have
    `handle_error(self, error: Problem)`, which receives failures.

    An instance handles one message and is then thrown away.
    """

    name: ClassVar[str]
    """Given by the class, or made from its module and class name."""
    concurrency: ClassVar[int]
    """Messages handled at once, per process."""
    timeout: ClassVar[float | None]
    """Seconds that one attempt may take; None for no limit."""
    retry: ClassVar[Retry | None]
    """How failures are tried again; None for one attempt."""
    outbox: ClassVar[bool]
    """Send the handler's own invocations only once `handle` has returned."""
    idempotent: ClassVar[bool]
    """Keep the outcome of each message for a while, and answer a repeat with it instead of handling it again."""
    durable: ClassVar[bool]
    """`handle` is a run that outlives its process: what it awaits are steps, whose answers are kept."""
    callback: ClassVar[Callbacks | None]
    """The callback of every invocation that names none."""
    callback_from: ClassVar[Sequence[str] | None]
    """The services whose replies it takes as a callback, by name or pattern (`orders.*`); all if it is None, none if it is empty."""
    schedule: ClassVar[Schedule | str | None]
    """When it is invoked by itself: `every(minutes=5)`, `cron("0 3 * * mon-fri", tz="Europe/Amsterdam")`."""
    payload: ClassVar[Any]
    """The payload of what its schedule sends; nothing if it is not given."""
    missed: ClassVar[Literal["once", "all", "skip"]]
    """What becomes of the due times at which no daemon ran: the last is made up for, all are, or none."""

    _handling: Handling

    @property
    def cid(self) -> str:
        """The correlation ID of the invocation being handled; in a callback, the one `invoke_async` returned."""
        return self._handling.cid

    @property
    def request(self) -> Request:
        return self._handling.request

    @property
    def response(self) -> Response:
        return self._handling.response

    @property
    def logger(self) -> ServiceLogger:
        return self._handling.logger

    def invoke_async(
        self,
        name: str | type[Service],
        payload: Any = "",
        *,
        callback: Callbacks | None = None,
        delay: float | None = None,
        expiration: float | None = None,
        priority: int | None = None,
        headers: Mapping[str, Any] | None = None,
        cid: str | None = None,
        echo: bool | None = None,
    ) -> str:
        """Invoke a service in the background and return the invocation's CID at once.

        Works in `def` and `async def` alike. In `async def` it never waits; in `def` it does, when 2,000 invocations of the
        handler, or 16 MiB, are unconfirmed. The message being handled is
        acknowledged only after the broker has confirmed the invocation; if it does not (nobody hosts `name`, say), this
        attempt fails.

        Args:
            name: the service to invoke, by name or class.
            payload: `str` and `bytes` go as they are, anything else as JSON.
            callback: who gets the reply: a name, a class, `self`, or a list of those. Without it: the class's
                `callback`, else the service `<this one's name>-async-callback` if any daemon hosts it, else nobody.
            delay: seconds, rounded up, before the request reaches its service; at most a year. The wait is in the broker.
            expiration: seconds after which the request, if not handled yet, expires; with a delay they begin when it is over.
            priority: 0 to 9, as AMQP has it. Quorum queues treat 5 and above as high.
            headers: further AMQP headers for the request.
            cid: a CID of your own instead of a derived one.
            echo: False if `name` is a server that knows nothing of ackback, and echoes nothing but the correlation ID: there may be one
                callback then. None: as the configuration says (`[service."…"] echo`).

        Raises:
            TypeError: the payload cannot be serialised.
            ServiceDefinitionError: a name cannot be a service's name.
            NotAcceptedError: in `async def`, and with an outbox: 50,000 invocations of the handler, or 64 MiB, are unconfirmed;
                `invoke_many` waits instead.
        """
        return self._handling.invoke_async(name, payload, callback, delay, expiration, priority, headers, cid, echo)

    def invoke_many(
        self,
        name: str | type[Service],
        payloads: Iterable[Any] | AsyncIterable[Any],
        *,
        callback: Callbacks | None = None,
        delay: float | None = None,
        expiration: float | None = None,
        priority: int | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Any:
        """Invoke a service once for each payload, however many there are, in bounded memory; return the CIDs, in order.

        In an `async def` handler, `cids = await self.invoke_many(…)`; in a `def` handler the same without `await`. The next payload is
        taken when fewer than 2,000 invocations, or 16 MiB, are unconfirmed. All are confirmed before the message being handled is
        acknowledged; if one is not accepted, this attempt fails.

        Raises what `invoke_async` raises.
        """
        return self._handling.invoke_many(name, payloads, callback, delay, expiration, priority, headers)

    def invoke(self, name: str | type[Service], payload: Any = "", *, timeout: float = 30.0) -> Any:
        """Invoke a service, wait, and return its response. For `def` handlers.

        Raises:
            RemoteError: the service answered with a failure.
            TimeoutError: no answer within `timeout` seconds.
            UnroutableError: nobody hosts it.
            RuntimeError: called on the event loop; use `await self.call(…)` there.
        """
        return self._handling.invoke(name, payload, timeout)

    def call(
        self, name: str | type[Service], payload: Any = "", *, timeout: float | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Invoke a service, await and return its response. For `async def` handlers. Raises what `invoke` raises.

        `timeout` is in seconds; without one they are 30, and in a durable service there is no limit.
        """
        return self._handling.call(name, payload, timeout)

    def wait_for(self, name: str) -> Coroutine[Any, Any, Any]:
        """Await the next signal of that name, and return its payload. For durable services.

        A signal is sent by `ackback signal`, `Client.signal`, or any AMQP client: a message to the service's queue with the run's CID and a
        header `signal`. One that comes early is kept.
        """
        return self._handling.wait_for(name)

    def step(self, function: Callable[..., Any], *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        """Run a function, plain or `async`, once, and return its result: whenever the run goes on, it is the same. For durable services.

        The result is kept as JSON, and comes back as that. If the process dies meanwhile, the function is run again.

        Raises:
            RemoteError: it raised an exception; `problem` says which.
        """
        return self._handling.step(function, *args, **options)

    def again(self, payload: Any = "") -> Any:
        """`return self.again(payload)`: the run begins anew with this payload, the same CID and an empty journal. For durable services that
        go on without end."""
        return self._handling.again(payload)

    def now(self) -> datetime:
        """The time (UTC) at which a durable service's run was given what it goes on with: the same whenever it is run again."""
        return self._handling.now()

    @property
    def random(self) -> Random:
        """Random numbers for a durable service: the same whenever its run is run again."""
        return self._handling.random
