"""What is scheduled while the daemons that fire it are killed. Each handling is a line of the ledger."""

from __future__ import annotations

import os
from pathlib import Path

from broker import Service, every

LEDGER = "TICK_LEDGER"


class Tick(Service):
    name = "tick"
    schedule = every(seconds=1)

    async def handle(self) -> None:
        with Path(os.environ[LEDGER]).open("a") as ledger:  # noqa: ASYNC230  # a line at a time, whoever writes
            ledger.write(f"{self.cid}\n")
