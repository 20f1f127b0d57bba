"""Every error that ackback raises, on one page, and the problem that a failure reply tells of."""

from __future__ import annotations

from dataclasses import dataclass

PROBLEM_TYPE = "urn:ackback:problem:"


def alarm_note(alarm: bool) -> str:
    """What to add to what was not done in time, if RabbitMQ has told that it takes no messages."""
    return (
        " (RabbitMQ has raised an alarm, as it is low on memory or disk space, and takes no messages)" if alarm else ""
    )


class AckbackError(Exception):
    """The base of all of ackback's errors."""


class ConfigurationError(AckbackError):
    """A setting, or what it leads to (a URL, a queue's arguments, a permission), is wrong."""


class ServiceDefinitionError(AckbackError):
    """A service class, its name or its module cannot be used as it is written."""


class BrokerUnavailableError(AckbackError):
    """RabbitMQ cannot be reached or does not let us in. Trying again later may help."""


class ConnectionLostError(BrokerUnavailableError):
    """The connection ended before the broker answered: what was under way may or may not be accepted."""


class OtherArgumentsError(ConfigurationError):
    """A queue or exchange exists with other arguments than those declared."""


class NotAcceptedError(AckbackError):
    """The broker did not take responsibility for a message.

    `rejected` is filled by `invoke_many`: one `Rejected` for each message that was not accepted.
    `accepted` holds the CIDs, in order, of those that were.
    """

    def __init__(
        self,
        message: str,
        *,
        rejected: list[Rejected] | None = None,
        accepted: list[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.rejected = rejected or []
        self.accepted = accepted or []

    @classmethod
    def refused(cls, queue: str) -> NotAcceptedError:
        """For a `basic.nack`, by which RabbitMQ gives no reason."""
        return cls(
            f"RabbitMQ refused a message for queue {queue!r} (basic.nack): the queue is full or has no majority of its nodes"
        )


class ConfirmTimeoutError(NotAcceptedError, TimeoutError):
    """The broker did not confirm in time: the message may or may not be accepted, now or later."""

    @classmethod
    def after(cls, seconds: float, *, alarm: bool, cid: str) -> ConfirmTimeoutError:
        """For one request; `alarm`: RabbitMQ has told that it takes nothing."""
        return cls(
            f"RabbitMQ has not confirmed the request within {seconds:g} s{alarm_note(alarm)}: it may or may not be accepted; "
            f"it is safe to send it again with the same cid ({cid})"
        )


class UnencodableError(NotAcceptedError):
    """AMQP, or the client library, cannot carry the message: a property that is too long, say. It was not sent."""

    def __init__(self, queue: str, reason: object) -> None:
        super().__init__(f"the message for {queue!r} does not fit into AMQP: {reason}")


class UnroutableError(NotAcceptedError):
    """There is no queue of that name: no daemon hosts the service."""

    def __init__(self, target: str) -> None:
        super().__init__(
            f"nothing is listening at {target!r}: there is no such queue, so no daemon hosts a service "
            "of that name (it is made when a daemon that hosts it first starts)"
        )
        self.target = target


class Rejected:
    """One message of an `invoke_many` that was not accepted."""

    __slots__ = ("cid", "error", "index")

    def __init__(self, index: int, cid: str, error: AckbackError) -> None:
        self.index = index
        self.cid = cid
        self.error = error

    def __repr__(self) -> str:
        return f"Rejected(index={self.index}, cid={self.cid!r}, error={str(self.error)!r})"


class InvalidInputError(AckbackError):
    """A message whose body or headers cannot be what the service takes. It is never retried.

    `errors` lists what is wrong and where, never the value itself: it may be a secret.
    """

    def __init__(self, detail: str, errors: list[dict[str, object]] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an invocation failed: what a failure reply says (RFC 9457, `application/problem+json`).

    `type` is a URN that ends in the reason (`urn:ackback:problem:invalid`), `title` names the error in a
    few words, `detail` says what happened. `attempts` counts the times the service was tried.
    """

    type: str
    title: str
    detail: str
    service: str
    attempts: int = 1
    errors: tuple[dict[str, object], ...] = ()

    @property
    def reason(self) -> str:
        """The last word of `type`: `error`, `rejected`, `invalid`, `expired`, `timeout`, …"""
        return self.type.removeprefix(PROBLEM_TYPE)


class RemoteError(AckbackError):
    """The service that was called answered with a failure; `problem` says which."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.service}: {problem.title}: {problem.detail}")
        self.problem = problem
