"""Which publishes the broker has yet to confirm, and what its confirms and returns say of them."""

from __future__ import annotations

import asyncio

from broker.errors import ConnectionLostError, NotAcceptedError, UnroutableError
from broker.transport import frames


class Confirms:
    """The publishes of one channel in confirm mode, numbered 1, 2, 3, … as both sides count them
    (https://www.rabbitmq.com/docs/confirms#publisher-confirms).

    A message that no queue takes comes back (Basic.Return) before its confirm, without a number: it is found by routing key and
    message ID. Of several in flight that are alike all count as returned: to publish one again is safe, to take a lost one for
    accepted is not.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[asyncio.Future[None], str, str | None]] = {}
        self._returned: set[int] = set()
        self._published = 0
        self._all_confirmed_up_to = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, future: asyncio.Future[None], routing_key: str, message_id: str | None) -> None:
        """The next publish; its future will be done."""
        self._published += 1
        self._waiting[self._published] = future, routing_key, message_id

    def on_return(self, routing_key: str, message_id: str | None) -> None:
        self._returned.update(
            number for number, (_, *known) in self._waiting.items() if known == [routing_key, message_id]
        )

    def on_confirm(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """A Basic.Ack (accepted) or Basic.Nack; `multiple`: for all up to the tag, 0 for all there are.

        Raises:
            MalformedFrameError: nothing with that tag was published, or it is confirmed already.
        """
        if not multiple:
            self._confirm(tag, accepted)
            return
        tag = tag or self._published
        if tag > self._published:
            raise _unknown(tag)
        for number in range(self._all_confirmed_up_to + 1, tag + 1):
            if number in self._waiting:
                self._confirm(number, accepted)
        self._all_confirmed_up_to = max(tag, self._all_confirmed_up_to)

    def _confirm(self, number: int, accepted: bool) -> None:
        try:
            future, routing_key, _ = self._waiting.pop(number)
        except KeyError:
            raise _unknown(number) from None
        if future.done():
            self._returned.discard(number)
        elif number in self._returned:
            self._returned.remove(number)
            future.set_exception(UnroutableError(routing_key))
        elif accepted:
            future.set_result(None)
        else:
            future.set_exception(NotAcceptedError.refused(routing_key))

    def fail(self, reason: str) -> None:
        """The connection has ended: nobody will confirm what is still waiting."""
        waiting, self._waiting = self._waiting, {}
        for future, _, _ in waiting.values():
            if not future.done():
                future.set_exception(ConnectionLostError(reason))


def _unknown(tag: int) -> frames.MalformedFrameError:
    return frames.MalformedFrameError(f"a confirm for {tag}, which was not published or is confirmed already")
