"""What the daemon hosts while one party misbehaves and others, who are innocent, call."""

from __future__ import annotations

import asyncio
import os
import time

from broker import Service


class Innocent(Service):
    name = "innocent"

    async def handle(self, number: int) -> int:
        return number


class InnocentCallback(Service):
    name = "innocent.callback"

    async def handle(self, number: int) -> None:
        self.invoke_async("innocent.inbox", number)


class Killer(Service):
    name = "killer"

    async def handle(self, number: int) -> int:
        if number % 10 == 7:
            os._exit(11)
        return number


class SlowCallback(Service):
    name = "slow.callback"
    concurrency = 5000

    async def handle(self) -> None:
        await asyncio.sleep(30)


class Sleeper(Service):
    name = "sleeper"

    def handle(self) -> None:
        time.sleep(5)


class Hanging(Service):
    name = "hanging"
    idempotent = True

    async def handle(self) -> None:
        pass


class Invalid(Service):
    name = "invalid"

    async def handle(self, number: int) -> int:
        return number


class Delays(Service):
    name = "delays"

    async def handle(self, target: str) -> None:
        for number in range(300):
            self.invoke_async(target, number, delay=1)
