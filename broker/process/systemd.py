"""What systemd is told, by its socket protocol (https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html): ready, alive,
stopping. Without systemd, nobody is told anything."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

EXTEND_EVERY = 10.0
EXTENSION = 30.0
"""Seconds more that systemd waits for READY, as RabbitMQ may take as long as it likes."""


def notify(*lines: str) -> None:
    """Tell it. What does not reach it is lost, as a daemon must not end because of that."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(lines).encode(), "\0" + address[1:] if address.startswith("@") else address)


def watchdog_interval() -> float | None:
    """Seconds after which systemd wants to hear again that this process lives, halved as its manual advises; None if it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        micros = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return micros / 2e6 if micros > 0 else None


def still_starting() -> None:
    notify(f"EXTEND_TIMEOUT_USEC={EXTENSION * 1e6:.0f}", "STATUS=waiting for RabbitMQ")


async def accompany(ready: asyncio.Event) -> None:
    """Say when the daemon is ready, and from then on that its event loop turns; until cancelled."""
    while not ready.is_set():
        still_starting()
        with suppress(TimeoutError):
            async with asyncio.timeout(EXTEND_EVERY):
                await ready.wait()
    notify("READY=1", "STATUS=hosting")
    while (interval := watchdog_interval()) is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
