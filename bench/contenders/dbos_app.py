"""DBOS Transact: workflows of three steps, each a function of its own process, so many at once; prints steps a second and the median
seconds of one workflow by itself.

    python -m bench.contenders.dbos_app SYSTEM_DATABASE_URL RUNS
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import time

from dbos import DBOS, DBOSConfig

from bench.durable import AT_ONCE, IDLE_RUNS, STEPS


@DBOS.step()
async def target(value: int) -> int:
    return value + 1


@DBOS.workflow()
async def three_steps(value: int) -> int:
    for _ in range(STEPS):
        value = await target(value)
    return value


async def measure(runs: int) -> tuple[float, float]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with slots:
            assert await three_steps(number) == number + STEPS

    await asyncio.gather(*map(one, range(AT_ONCE)))
    began = time.perf_counter()
    await asyncio.gather(*map(one, range(runs)))
    rate = STEPS * runs / (time.perf_counter() - began)
    alone = []
    for number in range(IDLE_RUNS):
        began = time.perf_counter()
        await one(number)
        alone.append(time.perf_counter() - began)
    return rate, statistics.median(alone)


def main() -> None:
    url, runs = sys.argv[1], int(sys.argv[2])
    DBOS(config=DBOSConfig(name="bench", system_database_url=url, run_admin_server=False, log_level="ERROR"))
    logging.getLogger("dbos").setLevel(logging.ERROR)
    DBOS.launch()
    try:
        print(*asyncio.run(measure(runs)))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main()
