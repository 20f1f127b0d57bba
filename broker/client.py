"""Invoking services from outside of a service: `AsyncClient`, and `Client` for blocking code."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from broker.errors import (
    AckbackError,
    BrokerUnavailableError,
    ConfirmTimeoutError,
    NotAcceptedError,
    Rejected,
    UnroutableError,
    alarm_note,
)
from broker.handling.addressed import AddressedQueues
from broker.handling.calls import Calls
from broker.handling.chain import DelayChain
from broker.handling.invoker import retrieved
from broker.handling.tracing import tracing
from broker.handling.unconfirmed import WINDOW, WINDOW_BYTES
from broker.hosting.naming import name_of
from broker.protocol.cids import check_cid, new_cid
from broker.protocol.events import SENT, SENT_ROW, Event
from broker.protocol.message import Publishing
from broker.protocol.requests import Template
from broker.protocol.runs import SIGNAL, check_signal
from broker.recording.connection import RecordConnection
from broker.service import Callback, Callbacks, Service
from broker.transport.factory import create
from broker.transport.interface import Connection, Transport

TIMEOUT = 30.0
"""Seconds to wait for the broker."""

if TYPE_CHECKING:
    from broker.settings import Settings

T = TypeVar("T")


class AsyncClient:
    """Invokes services over a connection of its own. Use it with `async with`.

    A lost connection is made again at the next call.

    Args:
        url: the broker; without it, what `config.toml` in the working directory and the environment say.
        settings: a whole configuration instead.
        transport: a transport instead of one made from the URL, such as a `MemoryBroker`.

    Raises:
        ConfigurationError: the URL or the configuration is wrong.
        BrokerUnavailableError: on entry, RabbitMQ cannot be reached.
    """

    def __init__(
        self, url: str | None = None, *, settings: Settings | None = None, transport: Transport | None = None
    ) -> None:
        if settings is None:
            from broker.settings import Settings  # slow to import, and `import broker` need not wait for it

            settings = Settings.load()
        self._settings = settings
        if url is not None:
            self._settings = self._settings.with_changes("broker", url=[url])
        self._transport = transport or create(self._settings.urls, self._settings.broker.transport)
        self._connection: Connection | None = None
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._calls = Calls()
        self._chain = DelayChain()
        self._addressed = AddressedQueues(self._settings.callbacks.queue)
        self._record_connection: RecordConnection | None = None
        self._tracing = tracing()

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection."""
        connection, self._connection = self._connection, None
        record, self._record_connection = self._record_connection, None
        await asyncio.gather(*(one.close() for one in (connection, record) if one is not None))

    async def invoke_async(
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
        timeout: float | None = TIMEOUT,
    ) -> str:
        """Invoke a service in the background; return the CID once the broker has confirmed the request.

        The arguments are those of `Service.invoke_async`; `timeout` is how many seconds to wait for the broker, None for no limit.

        Raises:
            ConfirmTimeoutError: (a TimeoutError) the broker did not confirm in time; the request may or may not be accepted.
            UnroutableError: nobody hosts the service.
            NotAcceptedError: the broker refused the request.
            ConnectionLostError: the connection ended first: the request may or may not have been accepted. It is safe to
                send it again with the same `cid` where the service is idempotent.
            TypeError: the payload cannot be serialised.
        """
        target, template = self._template(
            name, callback=callback, echo=echo, delay=delay, expiration=expiration, priority=priority, headers=headers
        )
        publishing = self._request(target, template, payload, cid)
        used = cast(str, publishing.message.correlation_id)
        began = time.time()
        await self._accepted(publishing, timeout)
        self._record(began, target, used, template.callbacks, delay)
        return used

    async def invoke_many(
        self,
        name: str | type[Service],
        payloads: Iterable[Any] | AsyncIterable[Any],
        *,
        callback: Callbacks | None = None,
        delay: float | None = None,
        expiration: float | None = None,
        priority: int | None = None,
        headers: Mapping[str, Any] | None = None,
        echo: bool | None = None,
        timeout: float | None = TIMEOUT,
    ) -> list[str]:
        """Invoke a service once for each payload; return the CIDs, in order, once the broker has confirmed all.

        `payloads` may be endless: no more than 2,000 requests, or 16 MiB and one request more, are ever unconfirmed, and
        the next payload is taken only when there is room. `timeout` is how many seconds the broker may confirm nothing.

        Raises:
            ConfirmTimeoutError: (a NotAcceptedError and a TimeoutError) it confirmed nothing for so long: those in `rejected` may or
                may not be accepted.
            NotAcceptedError: some were not accepted: `rejected` lists each with its index, CID and error, `accepted` has the
                CIDs of the others. All payloads were tried, except after a lost connection that cannot be made again.
            TypeError: a payload cannot be serialised; those before it are sent.
        """
        target, template = self._template(
            name, callback=callback, echo=echo, delay=delay, expiration=expiration, priority=priority, headers=headers
        )
        bulk = _Bulk(timeout, partial(self._record, target=target, callbacks=template.callbacks, delay=delay))
        try:
            if isinstance(payloads, AsyncIterable):
                async for payload in payloads:
                    await self._add(bulk, target, template, payload)
            else:
                for payload in payloads:
                    if bulk.is_full or not self._is_connected:
                        await self._add(bulk, target, template, payload)
                    else:
                        self._publish(bulk, target, template, payload)
            await bulk.all_confirmed()
        except _StalledError:
            raise bulk.timed_out(alarm=self._is_blocked) from None
        except BrokerUnavailableError as error:
            await bulk.all_confirmed()
            bulk.raise_if_rejected(str(error), always=True)
        except BaseException:
            await bulk.all_confirmed()
            raise
        bulk.raise_if_rejected()
        return bulk.accepted()

    async def call(self, name: str | type[Service], payload: Any = "", *, timeout: float = 30.0) -> Any:
        """Invoke a service, await and return its response: the parsed value of JSON, else text or bytes.

        Raises:
            RemoteError: the service answered with a failure.
            TimeoutError: no reply within `timeout` seconds.
            UnroutableError: nobody hosts the service.
            NotAcceptedError: the broker refused the request.
            ConnectionLostError: the connection ended while waiting.
        """
        publishing = self._request(*self._template(name), payload)
        if not self._is_connected:
            try:
                await asyncio.wait_for(self._connected(), timeout)
            except TimeoutError:
                raise TimeoutError(f"no connection to RabbitMQ within {timeout:g} s") from None
        connection, began = await self._connected(), time.time()
        accepted = True
        try:
            return await self._calls.call(connection, publishing, timeout)
        except (UnroutableError, NotAcceptedError):
            accepted = False
            raise
        finally:
            if accepted:
                cid = cast(str, publishing.message.correlation_id)
                self._record(began, publishing.routing_key, cid, call=True)

    async def signal(
        self,
        service: str | type[Service],
        cid: str,
        name: str,
        payload: Any = "",
        *,
        timeout: float | None = TIMEOUT,
    ) -> None:
        """Send a signal to a run of a durable service: what its `self.wait_for(name)` returns.

        `cid` is that of the request that began the run. Raises what `invoke_async` raises; that there is no such run, a dead letter tells.
        """
        target, template = self._template(service)
        publishing = self._request(target, template, payload, cid)
        publishing.message.message_id = new_cid()
        publishing.message.headers[SIGNAL] = check_signal(name)
        await self._accepted(publishing, timeout)

    async def consumers(self, name: str | type[Service]) -> int:
        """How many daemons consume a service's queue at the moment; 0, too, if there is no such queue.

        Raises:
            ConfigurationError: the user may not look at it.
            ConnectionLostError: the connection ended.
        """
        target, _ = self._template(name)
        seen = await (await self._connected()).look_at(target)
        return 0 if seen is None else seen.consumers

    async def _accepted(self, publishing: Publishing, timeout: float | None) -> None:
        """Publish, and wait for the broker's confirm for so many seconds."""
        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                await self._connected()
                await self._confirm(publishing)
        except TimeoutError:
            if scope.expired():
                cid = cast(str, publishing.message.correlation_id)
                raise ConfirmTimeoutError.after(timeout or 0, alarm=self._is_blocked, cid=cid) from None
            raise

    async def _add(self, bulk: _Bulk, target: str, template: Template, payload: Any) -> None:
        await bulk.room()
        await self._connected()
        self._publish(bulk, target, template, payload)

    def _publish(self, bulk: _Bulk, target: str, template: Template, payload: Any) -> None:
        publishing = self._request(target, template, payload)
        bulk.add(publishing, self._confirm(publishing))

    def _confirm(self, publishing: Publishing) -> asyncio.Future[None]:
        """Publish on the connection that there is."""
        assert self._connection is not None
        if publishing.exchange or publishing.message.reply_to in self._addressed.names:
            return asyncio.ensure_future(self._addressed.publish(self._connection, publishing, self._chain))
        return self._connection.publish(publishing)

    def _record(
        self,
        began: float,
        target: str,
        cid: str,
        callbacks: tuple[str, ...] = (),
        delay: float | None = None,
        *,
        call: bool = False,
    ) -> None:
        if self._record_connection is not None:
            note, at = self._record_connection.recorder.note, int(began * 1e6)
            if not delay and not call:
                note((SENT_ROW, at, cid, target, callbacks))
                return
            event: Event = {"event": SENT, "t": at, "cid": cid, "target": target, "callbacks": callbacks}
            if delay:
                event["delay"] = delay
            if call:
                event["call"] = True
            note(event)

    def _template(
        self, name: Callback, *, callback: Callbacks | None = None, echo: bool | None = None, **properties: Any
    ) -> tuple[str, Template]:
        """The target's name, and what is the same for all requests to it."""
        queue = self._settings.callbacks.queue
        own_queues = frozenset({queue})
        given = () if callback is None else callback if isinstance(callback, (list, tuple)) else (callback,)
        callbacks = tuple(dict.fromkeys(name_of(cast(Callback, one), {}, own_queues) for one in given))
        target = name_of(name, {}, own_queues)
        reply_to = queue if callbacks else None
        if callbacks and (target in self._settings.silent if echo is None else not echo):
            reply_to = self._addressed.reply_to(target, callbacks)
        return target, Template(callbacks=callbacks, reply_to=reply_to, **properties)

    def _request(self, target: str, template: Template, payload: Any, cid: str | None = None) -> Publishing:
        cid = new_cid() if cid is None else check_cid(cid)
        publishing = template.request(target, payload, cid, time.time(), self._settings.worker.max_body)
        if self._tracing is not None:
            self._tracing.sent(publishing, target)
        return publishing

    @property
    def _is_blocked(self) -> bool:
        return self._connection is not None and self._connection.blocked

    @property
    def _is_connected(self) -> bool:
        return self._connection is not None and not self._connection.lost.done()

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.lost.done():
            return self._connection
        async with self._connecting:
            if self._connection is None or self._connection.lost.done():
                if self._connection is not None:
                    await self._connection.close()
                self._connection = await self._transport.connect()
                if self._settings.events.enabled and self._record_connection is None:
                    self._record_connection = RecordConnection(self._transport)
                    self._record_connection.start()
            return self._connection


class _StalledError(Exception):
    """The broker has confirmed nothing for too long."""


class _Bulk:
    """The unconfirmed requests of one `invoke_many`, oldest first, and what became of the others."""

    def __init__(self, timeout: float | None, record: Callable[..., None]) -> None:
        self._timeout = timeout
        self._record = record
        self._cids: list[str] = []
        self._rejected: list[Rejected] = []
        self._unconfirmed: deque[tuple[asyncio.Future[None], int, int, float]] = deque()
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self._unconfirmed) >= WINDOW or self._bytes >= WINDOW_BYTES

    def add(self, publishing: Publishing, confirm: asyncio.Future[None]) -> None:
        size = len(publishing.message.body)
        self._unconfirmed.append((confirm, len(self._cids), size, time.time()))
        self._cids.append(cast(str, publishing.message.correlation_id))
        self._bytes += size

    async def room(self) -> None:
        """Wait until another request may be published."""
        while self.is_full:
            await self._first_confirmed()
            while self._unconfirmed and self._unconfirmed[0][0].done():
                self._settle_first()

    async def all_confirmed(self) -> None:
        try:
            while self._unconfirmed:
                if not self._unconfirmed[0][0].done():
                    await self._first_confirmed()
                self._settle_first()
        except asyncio.CancelledError:
            for confirm, *_ in self._unconfirmed:
                confirm.add_done_callback(retrieved)
            raise

    async def _first_confirmed(self) -> None:
        done, _ = await asyncio.wait([self._unconfirmed[0][0]], timeout=self._timeout)
        if not done:
            raise _StalledError

    def timed_out(self, *, alarm: bool) -> ConfirmTimeoutError:
        """The error for what is not confirmed in time."""
        for confirm, index, *_ in self._unconfirmed:
            confirm.add_done_callback(retrieved)
            cid = self._cids[index]
            error = ConfirmTimeoutError.after(self._timeout or 0, alarm=alarm, cid=cid)
            self._rejected.append(Rejected(index, cid, error))
        accepted = self.accepted()
        return ConfirmTimeoutError(
            f"RabbitMQ has confirmed nothing for {self._timeout:g} s{alarm_note(alarm)}: {len(accepted)} requests are accepted, "
            f"{len(self._unconfirmed)} may or may not be",
            rejected=self._rejected,
            accepted=accepted,
        )

    def _settle_first(self) -> None:
        confirm, index, size, began = self._unconfirmed.popleft()
        self._bytes -= size
        error = AckbackError("it was cancelled") if confirm.cancelled() else confirm.exception()
        if error is not None:
            known = error if isinstance(error, AckbackError) else AckbackError(repr(error))
            self._rejected.append(Rejected(index, self._cids[index], known))
        else:
            self._record(began, cid=self._cids[index])

    def accepted(self) -> list[str]:
        refused = {one.index for one in self._rejected}
        return [cid for index, cid in enumerate(self._cids) if index not in refused] if refused else self._cids

    def raise_if_rejected(self, reason: str = "", *, always: bool = False) -> None:
        if not self._rejected and not always:
            return
        why = reason or str(self._rejected[0].error)
        accepted = self.accepted()
        raise NotAcceptedError(
            f"{len(self._rejected)} of {len(self._cids)} requests were not accepted, {len(accepted)} were: {why}",
            rejected=self._rejected,
            accepted=accepted,
        )


class Client:
    """The blocking client. Use it with `with`; it may be shared by threads.

    Its connection lives on a thread of its own, so it is of no use in a forked child: there, make another. The arguments, methods and
    errors are those of `AsyncClient`; `call` is called `invoke`.
    """

    def __init__(
        self, url: str | None = None, *, settings: Settings | None = None, transport: Transport | None = None
    ) -> None:
        self._client = AsyncClient(url, settings=settings, transport=transport)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self._run(self._client._connected())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and its thread."""
        if os.getpid() != self._pid:
            return  # the connection is the parent's
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._client.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

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
        timeout: float | None = TIMEOUT,
    ) -> str:
        """See `AsyncClient.invoke_async`."""
        return self._run(
            self._client.invoke_async(
                name,
                payload,
                callback=callback,
                delay=delay,
                expiration=expiration,
                priority=priority,
                headers=headers,
                cid=cid,
                echo=echo,
                timeout=timeout,
            )
        )

    def invoke_many(
        self,
        name: str | type[Service],
        payloads: Iterable[Any],
        *,
        callback: Callbacks | None = None,
        delay: float | None = None,
        expiration: float | None = None,
        priority: int | None = None,
        headers: Mapping[str, Any] | None = None,
        echo: bool | None = None,
        timeout: float | None = TIMEOUT,
    ) -> list[str]:
        """See `AsyncClient.invoke_many`. The payloads are taken on the client's thread."""
        return self._run(
            self._client.invoke_many(
                name,
                payloads,
                callback=callback,
                delay=delay,
                expiration=expiration,
                priority=priority,
                headers=headers,
                echo=echo,
                timeout=timeout,
            )
        )

    def invoke(self, name: str | type[Service], payload: Any = "", *, timeout: float = 30.0) -> Any:
        """Invoke a service, wait, and return its response. See `AsyncClient.call`."""
        return self._run(self._client.call(name, payload, timeout=timeout))

    def signal(
        self,
        service: str | type[Service],
        cid: str,
        name: str,
        payload: Any = "",
        *,
        timeout: float | None = TIMEOUT,
    ) -> None:
        """See `AsyncClient.signal`."""
        self._run(self._client.signal(service, cid, name, payload, timeout=timeout))

    def consumers(self, name: str | type[Service]) -> int:
        """See `AsyncClient.consumers`."""
        return self._run(self._client.consumers(name))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            loop = self._running_loop()
        except BaseException:
            coroutine.close()
            raise
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if os.getpid() != self._pid:
            raise AckbackError(
                "this Client was made before the process forked, and its connection belongs to the parent: make another one here"
            )
        if self._thread is threading.current_thread():
            raise AckbackError("a blocking Client cannot be used from within its own payloads")
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="ackback-client", daemon=True)
                self._thread.start()
            return self._loop
