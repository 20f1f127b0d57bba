"""What is done with the messages on ackback's own queues: each is for a service that is hosted here, or is published on."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

from broker.errors import InvalidInputError
from broker.handling.invoker import Invoker
from broker.log import logger
from broker.protocol import callbacks, deaths, delays, quarantine
from broker.protocol import headers as h
from broker.protocol.cids import new_cid
from broker.protocol.headers import Headers
from broker.protocol.message import Message
from broker.protocol.outcomes import DEAD_REASON, DEAD_SERVICE, NOTHING, Outcome, failure, forwards
from broker.protocol.problems import problem


class ForService(NamedTuple):
    """A message that a service of this process is to handle. `headers` are those of a reply that came to the callback queue."""

    name: str
    message: Message
    headers: Headers | None = None


class OwnQueues:
    """Decides, a method for each queue. `in_place` says whether a callback may be handled where its reply came in, `is_forgiving` whether
    this process has lost its connection lately."""

    def __init__(
        self,
        hosted: Container[str],
        in_place: Callable[[str], bool],
        is_forgiving: Callable[[], bool],
        invoker: Invoker,
    ) -> None:
        self._hosted = hosted
        self._in_place = in_place
        self._is_forgiving = is_forgiving
        self._callback_queue = invoker.callback_queue
        self._quarantine_queue = invoker.quarantine_queue
        self._chain = invoker.chain
        self._addressed = invoker.addressed
        self._deadlines = invoker.deadlines

    def reply(self, message: Message) -> ForService | Outcome:
        """One callback that is quick and has a free slot here runs here; otherwise each gets the reply on its own queue."""
        if callbacks.sent_to(message, self._callback_queue) is not None:
            message = self._by_address(message)
        cid = message.correlation_id = message.correlation_id or new_cid()
        try:
            headers = h.read(message)
        except InvalidInputError as error:
            logger.warning("a reply with invalid headers becomes a dead letter: %s", error, extra={"cid": cid})
            return callbacks.unreadable(message, error)
        names = callbacks.names_for(headers)
        if len(names) == 1 and self._in_place(names[0]):
            return ForService(names[0], message, headers)
        if names:
            return forwards(message, cid, names)
        logger.warning("a reply that names no callback becomes a dead letter", extra={"cid": cid})
        return callbacks.no_callback(message, callbacks.NONE_NAMED)

    def _by_address(self, message: Message) -> Message:
        named = callbacks.by_address(message, self._callback_queue)
        callback = named.headers[h.CALLBACK]
        if isinstance(callback, str) and callback in self._hosted:
            self._addressed.keep(str(message.headers[callbacks.SENT_TO]), callback)
        return named

    def dead(self, message: Message) -> Outcome:
        """What RabbitMQ gave up becomes a dead letter, but for calls that nobody waits for any more."""
        if (service := deaths.expired_call(message)) is not None:
            self._deadlines.let_go(service)
            return NOTHING
        outcome = deaths.bury(message)
        assert outcome.dead is not None
        told = outcome.dead.message.headers
        logger.warning(
            "RabbitMQ gave up a message of %r (%s): it becomes a dead letter",
            told[DEAD_SERVICE],
            told[DEAD_REASON],
            extra={"cid": outcome.dead.message.correlation_id},
        )
        return outcome

    def due(self, message: Message) -> Outcome:
        """What has waited goes to its queue."""
        try:
            publishing, refused, is_reply = delays.due(message)
        except InvalidInputError as error:
            return _unreadable(message, error)
        if publishing.exchange:
            self._chain.forget()  # it left the chain before its time: something is missing there
        if is_reply and not publishing.exchange:
            return Outcome(reply=publishing, refused=refused)
        return Outcome(again=publishing, refused=refused)

    def quarantined(self, message: Message) -> ForService | Outcome:
        """What is in quarantine is handled here if its service is, else it goes to where it may be."""
        try:
            name, deliveries, released = quarantine.released(message)
        except InvalidInputError as error:
            return _unreadable(message, error)
        extra = {"cid": message.correlation_id}
        if quarantine.may_be_innocent(message.headers, forgiving=self._is_forgiving()):
            logger.info("a message of %r was in hand when the connection was lost: it is put back", name, extra=extra)
            return quarantine.put_back(message, deliveries, self._quarantine_queue)
        if quarantine.is_convicted(message.headers):
            logger.error(
                "a message of %r ends the process that handles it, or its connection: it becomes a dead letter",
                name,
                extra=extra,
            )
            return deaths.convict(message)
        if name in self._hosted:
            logger.info("a message of %r is handled by itself (deliveries before: %d)", name, deliveries, extra=extra)
        return ForService(name, released) if name in self._hosted else quarantine.elsewhere(message, name)


def _unreadable(message: Message, error: InvalidInputError) -> Outcome:
    return failure(message, "invalid", problem("invalid", "Invalid headers", str(error), ""))
