"""Which acknowledgements may go out together."""

from __future__ import annotations


class Acks:
    """The delivery tags of one channel: 1, 2, 3, … in the order of the deliveries.

    What is finished up to the first unfinished tag is acknowledged at once (`multiple`), what is finished
    beyond it one by one. A tag that is not finished is never covered.
    """

    def __init__(self) -> None:
        self._settled_up_to = 0
        self._settled_beyond: set[int] = set()
        self._finished: list[int] = []

    @property
    def settled(self) -> int:
        """How many are given back, or acknowledged by what `take` has returned."""
        return self._settled_up_to + len(self._settled_beyond)

    def finish(self, tag: int) -> None:
        """A delivery is dealt with; `take` acknowledges it."""
        self._finished.append(tag)

    def requeue(self, tag: int) -> None:
        """A delivery is given back."""
        self._settled_beyond.add(tag)

    def take(self) -> list[tuple[int, bool]]:
        """The acknowledgements, as tag and `multiple`, of everything finished since the last time."""
        self._finished.sort()
        taken, self._finished = self._finished, []
        beyond = self._settled_beyond
        prefix = 0
        out = []
        for tag in taken:
            while self._settled_up_to + 1 in beyond:
                self._settled_up_to += 1
                beyond.remove(self._settled_up_to)
            if tag == self._settled_up_to + 1:
                self._settled_up_to = prefix = tag
            else:
                beyond.add(tag)
                out.append((tag, False))
        if prefix:
            # The broker refuses a tag that it does not wait for, so this is one of those just finished, not one given back.
            out.append((prefix, True))
        return out
