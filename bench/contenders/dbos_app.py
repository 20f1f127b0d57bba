"""DBOS Transact: workflows of three steps, each a function of its own process, so many at once; prints steps a second and the median
seconds of one workflow by itself.

    python -m bench.contenders.dbos_app SYSTEM_DATABASE_URL RUNS
"""

from __future__ import annotations

import asyncio
import logging
import sys

from dbos import DBOS, DBOSConfig

from bench.durable import STEPS, figures_of


@DBOS.step()
async def target(value: int) -> int:
    return value + 1


@DBOS.workflow()
async def three_steps(value: int) -> int:
    for _ in range(STEPS):
        value = await target(value)
    return value


def main() -> None:
    url, runs = sys.argv[1], int(sys.argv[2])
    DBOS(config=DBOSConfig(name="bench", system_database_url=url, run_admin_server=False, log_level="ERROR"))
    logging.getLogger("dbos").setLevel(logging.ERROR)
    DBOS.launch()
    try:
        print(*asyncio.run(figures_of(three_steps, runs)))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main()
