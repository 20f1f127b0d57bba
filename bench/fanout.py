"""One handler that makes a million invocations: the most memory that its worker takes, and how long it is at it.

bench/fanout.py [--count N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import common
from broker import Client

SERVICES = """
from broker import Service

class ByDef(Service):
    name = "fanout.def"
    def handle(self, count: int) -> int:
        for number in range(count):
            self.invoke_async("fanout.target", number)
        return count

class ByAsync(Service):
    name = "fanout.async"
    async def handle(self, count: int) -> int:
        return len(await self.invoke_many("fanout.target", range(count)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    count = parser.parse_args().count
    with common.rabbitmq_for_figures() as (url, version), tempfile.TemporaryDirectory() as folder:
        services = Path(folder) / "fanout.py"
        services.write_text(SERVICES)
        print(version)
        common.declare_quorum_queue(url, "fanout.target")
        print(f"\n| {count:,} invocations from one handler | seconds | most resident, MiB |\n|---|---:|---:|")
        for name, how in (("fanout.def", "`def`, `invoke_async`"), ("fanout.async", "`async def`, `invoke_many`")):
            with common.process("-m", "broker", "run", str(services), ACKBACK_BROKER__URL=url) as daemon:
                common.wait_for_consumers(url, name)
                began = time.monotonic()
                with Client(url) as client:
                    assert client.invoke(name, count, timeout=common.PATIENCE) == count
                took = time.monotonic() - began
                print(f"| {how} | {took:.0f} | {common.resident(daemon.pid, 'VmHWM'):.0f} |")
            common.delete_queues(url, "fanout.target", name)
            common.declare_quorum_queue(url, "fanout.target")


if __name__ == "__main__":
    main()
