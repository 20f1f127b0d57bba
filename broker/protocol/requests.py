"""Requests: what many have in common is checked once, then each is a payload and a CID more."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from broker.errors import NotAcceptedError
from broker.protocol import bodies
from broker.protocol import headers as h
from broker.protocol.delays import delayed, whole_seconds
from broker.protocol.message import Message, Publishing

MAX_EXPIRATION = 366 * 86400
_NONE: Mapping[str, Any] = MappingProxyType({})


class Template:
    """What many requests have in common, checked once.

    `delay` and `expiration` are in seconds, `source` is the service that invokes, `headers` are the user's.

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
        source: str | None = None,
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
        self.callbacks = callbacks
        self._headers = dict(headers or {})
        if source is not None:
            self._headers[h.SOURCE] = source
        if callbacks:
            self._headers[h.CALLBACK] = callbacks[0] if len(callbacks) == 1 else list(callbacks)
        self._reply_to = reply_to
        self._delay = 0 if delay is None else whole_seconds(delay)
        self._expiration = None if expiration is None else round(expiration * 1000)
        self._priority = priority

    def request(
        self, target: str, payload: Any, cid: str, now: float, max_body: int, headers: Mapping[str, Any] = _NONE
    ) -> Publishing:
        """A request with this payload and some headers more, made `now` (seconds since 1970).

        Raises:
            bodies.UnserialisableError: the payload cannot be serialised.
            NotAcceptedError: it is larger than `max_body` bytes.
        """
        body, content_type = bodies.encode(payload)
        if len(body) > max_body:
            # The receiver would refuse it, or the broker, by closing the connection.
            raise NotAcceptedError(
                f"the payload for {target!r} has {len(body)} bytes; at most {max_body} are allowed ([worker] max_body)"
            )
        message = Message(
            body,
            {**self._headers, **headers},
            content_type,
            correlation_id=cid,
            message_id=cid,
            reply_to=self._reply_to,
            expiration=self._expiration,
            priority=self._priority,
            timestamp=int(now) + self._delay,
        )
        publishing = Publishing(target, message)
        return delayed(publishing, self._delay) if self._delay else publishing
