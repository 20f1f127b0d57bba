"""One worker process: an event loop, a daemon on it, and the signals that stop it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable

from broker.hosting.registry import Registry
from broker.log import logger
from broker.process import systemd
from broker.process.daemon import Daemon
from broker.process.supervisor import READY
from broker.process.suspects import Suspects, in_forks
from broker.settings import Settings
from broker.transport.factory import create

STOPPED_AT_ONCE = 1
UP = b"u"
"""What a worker writes to its parent: that its queues are there, and, again and again, that it is or was ready, and that its loop turns."""
BEAT = 1.0
# Hundreds of messages in flight are thousands of young objects: by Python's defaults the collector would look at them again and again,
# which took a fifth of a busy worker's time. Reference counting frees nearly all that a message leaves behind.
GC_THRESHOLDS = (50_000, 20, 20)


def serve(
    settings: Settings,
    registry: Registry,
    suspects: Suspects | None = None,
    *,
    suspects_only: bool = False,
    parent_pipe: bool = False,
) -> int:
    """Run a daemon until SIGTERM or SIGINT; return the exit code. A second signal ends the process at once.

    `suspects` and `suspects_only` are the daemon's. With `parent_pipe` standard input is a socket to the parent: its end is a signal,
    too, as the parent has died; and what says that the queues are there is written to it.

    Raises:
        ConfigurationError: at the start, a queue cannot be used as it is.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

    def live() -> int:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, registry, suspects, suspects_only=suspects_only, parent_pipe=parent_pipe))
        return 0

    return in_forks(live) if suspects_only else live()


async def _serve(
    settings: Settings, registry: Registry, suspects: Suspects | None, *, suspects_only: bool, parent_pipe: bool
) -> None:
    transport = create(settings.urls, settings.broker.transport)
    daemon = Daemon(settings, registry, transport, suspects, suspects_only=suspects_only)
    signals = 0
    is_main = not parent_pipe and not suspects_only

    def on_signal(name: str) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            logger.warning("%s again: stopping at once; what is unfinished goes back to its queue", name)
            os._exit(STOPPED_AT_ONCE)
        logger.info("%s: draining; once more to stop at once", name)
        if is_main:
            systemd.notify("STOPPING=1")
        daemon.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    if parent_pipe:
        _watch_parent(loop, daemon.stop)
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(_tell_parent(daemon))
            await daemon.run()
            telling.cancel()
    elif is_main:
        accompanying = asyncio.ensure_future(systemd.accompany(daemon.ready))
        try:
            await daemon.run()
        finally:
            accompanying.cancel()
    else:
        await daemon.run()


async def _tell_parent(daemon: Daemon) -> None:
    await daemon.up.wait()
    with contextlib.suppress(OSError):
        os.write(sys.stdin.fileno(), UP)
    await daemon.ready.wait()
    while True:
        with contextlib.suppress(OSError):
            os.write(sys.stdin.fileno(), READY)
        await asyncio.sleep(BEAT)


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    def wait_for_the_end() -> None:
        with contextlib.suppress(ConnectionResetError):  # it died before it read what was written to it
            while os.read(sys.stdin.fileno(), 1024):
                pass
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=wait_for_the_end, name="ackback-parent", daemon=True).start()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed."""
    try:
        return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]
    except ImportError:
        return None
