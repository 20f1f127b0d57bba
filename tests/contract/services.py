"""Services that several of the contract's tests use, and what their handlers leave to be looked at."""

from __future__ import annotations

from typing import Any

from broker import Service
from tests.support import named, unique, until


class Seen:
    """What handlers leave for the test to look at."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def add(self, event: Any) -> None:
        self.events.append(event)

    async def wait(self, count: int = 1) -> list[Any]:
        await until(lambda: len(self.events) >= count)
        return self.events


class Echo(Service):
    async def handle(self) -> Any:
        return self.request.payload


class ClassicEcho(Service):
    def handle(self) -> None:
        self.response.payload = self.request.payload


class Failing(Service):
    async def handle(self) -> None:
        raise KeyError("no such thing")


def echo(stem: str = "echo") -> type[Service]:
    return named(unique(stem), Echo)


def collecting_callback(seen: Seen, name: str | None = None) -> type[Service]:
    class Collecting(Service):
        async def handle(self) -> None:
            seen.add(("ok", self.cid, self.request.payload))

        async def handle_error(self, error: Any) -> None:
            seen.add(("error", self.cid, error))

    return named(name or unique("callback"), Collecting)
