"""How long things took, in little memory: how often between which powers of 2 ** (1/8). A percentile is right to 5 %."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

STEPS = 8
"""Buckets for each doubling."""


class Histogram:
    """Counts of times in milliseconds."""

    __slots__ = ("counts",)

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self.counts = {} if counts is None else counts

    def add(self, ms: float) -> None:
        bucket = int(STEPS * math.log2(ms * 1000)) if ms > 0.001 else 0
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def add_all(self, other: Histogram) -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def percentiles(self, shares: Iterable[float]) -> list[float | None]:
        """The times, in ms, that so large shares of all are not above; None if nothing was counted. Shares are given in ascending order."""
        total, seen, found = sum(self.counts.values()), 0, list[float | None]()
        wanted = list(shares)
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            while len(found) < len(wanted) and seen > wanted[len(found)] * (total - 1):
                found.append(2 ** ((bucket + 0.5) / STEPS) / 1000)
        return found + [None] * (len(wanted) - len(found))

    def dumps(self) -> str:
        return json.dumps([*self.counts.items()], separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Histogram:
        return cls(dict(json.loads(text)))
