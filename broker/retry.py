"""What an author says about trying again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a service is tried, and how long it waits between: `first * factor ** n`, at most `maximum`.

    `first` and `maximum` are in seconds; `jitter` is the share of a wait that is random, 0 to 1.

    Raises:
        ValueError: a number is out of its range.
    """

    attempts: int = 5
    first: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("Retry: attempts must be 1 or more")
        if self.first < 0 or self.maximum < 0:
            raise ValueError("Retry: first and maximum must not be negative")
        if self.factor < 1:
            raise ValueError("Retry: factor must be 1 or more")
        if not 0 <= self.jitter <= 1:
            raise ValueError("Retry: jitter must be between 0 and 1")


class Reject(Exception):
    """Raised by a handler: this message can never succeed; do not try it again."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)


class RetryAfter(Exception):
    """Raised by a handler: try this message again after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"try again after {seconds:g} s")
        self.seconds = seconds
