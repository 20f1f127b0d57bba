"""How many messages of a queue a process has in hand at once: wide for quick services, narrow for slow ones.

RabbitMQ works in batches, and the wider the window (its prefetch), the larger these are: at 1,000 it needs a third less for a
message than at 50 (docs/performance.md). But a message that waits here for a free slot cannot be begun elsewhere. So what is
fetched beyond `concurrency` is at most what is done in 0.2 s, at the rate that is measured, in which is how long handlers take and
how long confirms do.

A window is widened when it was full. It is narrowed, and what waits is given back, as soon as something has waited for half a
second, whatever was measured before: a database that hangs shows so long before any handler has ended. To be widened again then
takes patience, longer each time.
"""

from __future__ import annotations

AHEAD = 0.2
"""Seconds of work that may wait here."""
TOO_LONG = 0.5
"""Seconds after which what waits is given back."""
WIDEST = 1000
MOST_BYTES = 64 * 1024 * 1024
"""Bodies that may be in hand beyond `concurrency`."""
WORTH_IT = 1.25
"""Consuming is interrupted when a window changes: by how much it has to grow for that."""
PATIENCE = 5.0
LONGEST_PATIENCE = 300.0


class Window:
    """One queue's window. `narrowest` is where it begins and what it is never below. Times are in seconds of a monotonic clock."""

    def __init__(self, narrowest: int) -> None:
        self.narrowest = narrowest
        self.size = narrowest
        self._patience = PATIENCE
        self._not_before = 0.0

    def after(self, now: float, *, rate: float, was_full: bool, bytes_each: float, longest_wait: float) -> int:
        """What the size should be now.

        `rate` is how many messages a second were finished since the last look, `was_full` whether as many as the window allows
        were in hand at some time, `bytes_each` the mean size of their bodies, `longest_wait` how long the first that waits for a
        slot has waited.
        """
        if longest_wait > TOO_LONG:
            if self.size > self.narrowest:
                self._not_before = now + self._patience
                self._patience = min(2 * self._patience, LONGEST_PATIENCE)
            return self.narrowest
        ahead = min(rate * AHEAD, MOST_BYTES / bytes_each if bytes_each else WIDEST)
        wanted = max(self.narrowest, min(WIDEST, self.narrowest + int(ahead)))
        if was_full and wanted >= self.size * WORTH_IT and now >= self._not_before:
            return wanted
        return self.size
