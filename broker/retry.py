"""What an author says about trying again."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from broker.protocol.delays import MAXIMUM, whole_seconds

Errors = type[BaseException] | Iterable[type[BaseException]]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a service is tried, and how long it waits between: `first * factor ** n`, at most `maximum`.

    `first` and `maximum` are in seconds; `jitter` is the share of a wait by which it may be shorter or longer, 0 to 1. A wait is a whole
    number of seconds, as the broker does the waiting. `on` are the exceptions that are tried again, all if not given; `never` are those
    that are not, whatever `on` says.

    The default: five attempts, 3, 9, 27 and 81 seconds apart, so about two minutes in all.

    Raises:
        ValueError: a number is out of its range.
        TypeError: `on` or `never` holds something that is not an exception class.
    """

    attempts: int = 5
    first: float = 3.0
    factor: float = 3.0
    maximum: float = 300.0
    jitter: float = 0.1
    on: Errors = Exception
    never: Errors = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("Retry: attempts must be 1 or more")
        if not 0 <= self.first <= MAXIMUM or not 0 <= self.maximum <= MAXIMUM:
            raise ValueError("Retry: first and maximum must be from 0 to a year")
        if not 1 <= self.factor < math.inf:
            raise ValueError("Retry: factor must be 1 or more")
        if not 0 <= self.jitter <= 1:
            raise ValueError("Retry: jitter must be between 0 and 1")
        object.__setattr__(self, "on", _classes("on", self.on))
        object.__setattr__(self, "never", _classes("never", self.never))

    def wait(
        self, attempt: int, error: BaseException, uniform: Callable[[float, float], float] = random.uniform
    ) -> int | None:
        """Seconds until the next attempt, after `attempt` (from 1) has failed with `error`; None if it was the last."""
        if attempt >= self.attempts:
            return None
        if isinstance(error, RetryAfter):
            return whole_seconds(error.seconds)
        if isinstance(error, self.never) or not isinstance(error, self.on):  # type: ignore[arg-type]  # tuples, once made
            return None
        try:
            wait = min(self.first * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            wait = self.maximum
        return round(min(wait * uniform(1 - self.jitter, 1 + self.jitter), MAXIMUM))


def _classes(name: str, errors: Errors) -> tuple[type[BaseException], ...]:
    classes = (errors,) if isinstance(errors, type) else tuple(errors)
    for one in classes:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise TypeError(f"Retry: `{name}` takes exception classes, not {one!r}")
    return classes


class Reject(Exception):
    """Raised by a handler: this message can never succeed; do not try it again."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)


class RetryAfter(Exception):
    """Raised by a handler: try this message again after so many seconds, rounded up. It counts as an attempt.

    Raises:
        ValueError: the seconds are negative or more than a year.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"try again after {whole_seconds(seconds)} s")
        self.seconds = seconds
