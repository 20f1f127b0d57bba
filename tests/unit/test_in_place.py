"""What is handled in place leaves room in the callback queue's window, however wide or narrow that is at the moment."""

from __future__ import annotations

import asyncio
from typing import Any

from broker.handling.in_place import InPlace
from broker.handling.windows import Window


class Callback:
    free = True


class Replies:
    def __init__(self) -> None:
        self.window = Window(200)


def test_in_place_runs_no_more_than_half_of_what_the_window_may_narrow_to() -> None:
    async def test() -> None:
        replies, callback = Replies(), Callback()
        replies.window.size = 1000
        in_place = InPlace(replies, hosts := {"slow": callback})  # type: ignore[arg-type]
        taken: list[Any] = []
        while in_place.takes("slow"):
            taken.append(object())
            in_place.take(taken[-1])
            if len(taken) % 2:  # the others wait for their turn, and need their room meanwhile
                in_place.begin(taken[-1], hosts["slow"])  # type: ignore[arg-type]
        assert len(taken) == 100
        in_place.ended(taken[0])
        assert in_place.takes("slow")
        assert not in_place.takes("elsewhere")

    asyncio.run(test())
