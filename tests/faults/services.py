"""What the daemons under attack host. Each invocation does what its number says, and its callback notes that it came back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from pydantic import BaseModel

from broker import Retry, Service
from tests.faults.ledger import EFFECT, ERROR, OK, Ledger, number_of

ledger = Ledger.of_environment()


class Job(BaseModel):
    number: int
    do: str = "ok"
    seconds: float = 0.005


class _Hears(Service):
    async def handle_error(self, error: object) -> None:
        ledger.note(ERROR, number_of(self.cid))
        ledger.note_garbage(self.request.raw)  # any text is a good enough failure reply


class Work(_Hears):
    name = "faults.work"
    concurrency = 20
    retry = Retry(attempts=2, first=1, jitter=0)

    async def handle(self, job: Job) -> int:
        _misbehave(job)
        if job.do == "linger":
            ledger.note(EFFECT, job.number)
            if not _first_time(job):
                return job.number
        await asyncio.sleep(job.seconds)
        return job.number


class WorkInThread(_Hears):
    name = "faults.work-in-thread"
    concurrency = 8
    retry = Retry(attempts=2, first=1, jitter=0)

    def handle(self, job: Job) -> int:
        _misbehave(job)
        time.sleep(job.seconds)
        return job.number


class Once(_Hears):
    name = "faults.once"
    concurrency = 20
    idempotent = True

    async def handle(self, job: Job) -> int:
        ledger.note(EFFECT, job.number if job.number == number_of(self.cid) else None)
        await asyncio.sleep(job.seconds)
        return job.number


class Told(_Hears):
    name = "faults.told"
    retry = Retry(attempts=2, first=1, jitter=0)

    async def handle(self, number: int) -> None:
        ledger.note(OK, number if number == number_of(self.cid) else None)


def _first_time(job: Job) -> bool:
    try:
        Path(f"lingered-{job.number}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _misbehave(job: Job) -> None:
    if job.do == "raise" or (job.do == "flaky" and Path("broken").exists()):
        raise ValueError(f"number {job.number} is no good")
    if job.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
