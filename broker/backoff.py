"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Iterator

FIRST = 0.1
MAXIMUM = 30.0


def backoff(first: float = FIRST, maximum: float = MAXIMUM) -> Iterator[float]:
    """Endless waits in seconds that double up to `maximum`, each between half of it and all, so that many do not come at once."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(pause * 2, maximum)
