"""The parent of several workers, or of one that is restarted when its code changes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from broker.backoff import backoff
from broker.errors import ConfigurationError
from broker.log import logger
from broker.process import systemd

MAX_DEATHS = 5
RESTART_PAUSES = (0.3, 3.0)
CONFIGURATION_FAILED = 2
POLL = 0.1
KILL_AFTER_GRACE = 5.0
STUCK_AFTER = 30.0
"""Seconds after which a worker whose event loop has not turned is taken for stuck."""
READY = b"r"
NOBODY = -1
"""In place of the process ID of a worker that is to be started again."""


class Supervisor:
    """Starts `count` workers, restarts those that die, passes SIGTERM and SIGINT on.

    Five deaths in a row of workers that never came as far as to have their queues make the parent give up. One that did is always
    replaced: a message that kills its process may take several, until it is a dead letter.
    With `changed` they are restarted whenever it says so, and one that cannot start is no reason to give up.
    """

    def __init__(
        self, arguments: Sequence[str], count: int, grace: float, changed: Callable[[], bool] | None = None
    ) -> None:
        self._arguments = arguments
        self._changed = changed
        self._count = count
        self._grace = grace
        self._workers: dict[int, _Worker] = {}
        self._signals = 0
        self._deaths = 0
        self._pauses = backoff(*RESTART_PAUSES)
        self._restarts: dict[int, float] = {}
        self._told_ready = False
        self._tell_again_at = 0.0

    def workers(self) -> list[int]:
        """The process IDs of those that run, and NOBODY for one that is to be started again."""
        living = [one.process.pid for one in list(self._workers.values())]
        return living + [NOBODY] * (self._count - len(living))

    def run(self) -> int:
        """Keep the workers running until a signal, and return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for index in range(self._count):
            self._start(index)
        while not self._signals:
            time.sleep(POLL)
            self._tell_systemd()
            if self._changed is not None and self._changed():
                self._restart_all()
            for index, worker in list(self._workers.items()):
                code = worker.process.poll()
                if code is not None and not self._signals and not self._bury(index, worker, code):
                    self._stop_all()
                    return 1
            for index, when in list(self._restarts.items()):
                if time.monotonic() >= when and not self._signals:
                    self._start(index)
        return self._stop_all()

    def _tell_systemd(self) -> None:
        """Once all workers are ready, that this is; from then on that all live."""
        now = time.monotonic()
        for worker in self._workers.values():
            worker.hear()
        if not self._told_ready and all(one.ready for one in self._workers.values()):
            self._told_ready = True
            systemd.notify("READY=1", f"STATUS={self._count} workers host")
        if now < self._tell_again_at:
            return
        interval = systemd.watchdog_interval()
        if not self._told_ready:
            systemd.still_starting()
            interval = systemd.EXTEND_EVERY
        elif interval is not None and not any(one.is_stuck(now) for one in self._workers.values()):
            systemd.notify("WATCHDOG=1")
        self._tell_again_at = now + (interval or systemd.EXTEND_EVERY)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals += 1
        systemd.notify("STOPPING=1")
        for worker in self._workers.values():
            worker.send(number)

    def _start(self, index: int) -> None:
        # Python takes a file that changed twice within a second for unchanged: no bytecode where files change.
        environment = {"PYTHONDONTWRITEBYTECODE": "1"} if self._changed is not None else {}
        self._restarts.pop(index, None)
        self._workers[index] = _Worker(self._arguments, environment)

    def _bury(self, index: int, worker: _Worker, code: int) -> bool:
        """Plan another worker in the place of one that died; False if that has happened too often."""
        del self._workers[index]
        if code == CONFIGURATION_FAILED and self._changed is not None:
            logger.error("the worker cannot start (see above); waiting for a file to change")
            return True
        if code == CONFIGURATION_FAILED:
            logger.error("a worker cannot start (see above); stopping")
            return False
        self._deaths = 0 if worker.was_up() else self._deaths + 1
        if not self._deaths:
            self._pauses = backoff(*RESTART_PAUSES)
        worker.close()
        if self._deaths >= MAX_DEATHS:
            logger.error(
                "worker %d died (%s), the %dth in a row: giving up", worker.process.pid, how(code), self._deaths
            )
            return False
        pause = next(self._pauses)
        logger.warning("worker %d died (%s); starting another in %.1f s", worker.process.pid, how(code), pause)
        self._restarts[index] = time.monotonic() + pause
        return True

    def _restart_all(self) -> None:
        logger.info("files have changed: restarting")
        self._stop_all()
        self._restarts.clear()
        for index in range(self._count):
            self._start(index)

    def _stop_all(self) -> int:
        """End the workers, by force if they outlast their grace; 0 if all ended well."""
        ended_well = []
        deadline = time.monotonic() + self._grace + KILL_AFTER_GRACE
        for worker in self._workers.values():
            if not worker.is_told:  # as no signal has come, or one came while it was being started
                worker.send(signal.SIGTERM)
        for worker in self._workers.values():
            ended_well.append(worker.ends_well(deadline))
        self._workers.clear()
        return 0 if all(ended_well) else 1


class _Worker:
    """A child process. It holds the other end of a socket: it says there that it is up, and notices if this process is killed."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "broker", *arguments]
        # In a group of its own: Ctrl-C on a terminal reaches only the parent, which passes it on once.
        merged = {**os.environ, **environment}
        self._socket, its_end = socket.socketpair()
        with its_end:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603
                command, stdin=its_end.fileno(), process_group=0, env=merged
            )
        self._socket.setblocking(False)
        self.is_told = False
        """Whether it was sent a signal."""
        self._up = False
        self._heard = time.monotonic()
        self.ready = False
        """Whether it consumes its queues, or once did."""

    def hear(self) -> None:
        """Read what it has written."""
        with suppress(OSError):
            if said := self._socket.recv(1024):
                self._up, self._heard = True, time.monotonic()
                self.ready = self.ready or READY in said

    def was_up(self) -> bool:
        """Whether it got as far as to find, or declare, its queues."""
        self.hear()
        return self._up

    def is_stuck(self, now: float) -> bool:
        """Whether it was ready once, and its event loop has not turned for long."""
        return self.ready and now - self._heard > STUCK_AFTER

    def send(self, number: int) -> None:
        self.is_told = True
        if self.process.poll() is None:
            self.process.send_signal(number)

    def ends_well(self, deadline: float) -> bool:
        """Wait for its end, and force it at the deadline. One that was only starting may end by the signal: it had nothing in hand."""
        try:
            code = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("worker %d does not stop: killing it", self.process.pid)
            self.process.kill()
            code = self.process.wait()
        ended_well = code == 0 or (code in (-signal.SIGTERM, -signal.SIGINT) and not self.was_up())
        self.close()
        return ended_well

    def close(self) -> None:
        self._socket.close()


def how(code: int) -> str:
    """How a process ended, by its exit code."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def watcher(paths: Sequence[Path]) -> Callable[[], bool]:
    """A function that says whether a Python or TOML file below `paths` has changed since it was last asked.

    Raises:
        ConfigurationError: watchfiles is not installed.
    """
    try:
        from watchfiles import DefaultFilter, watch
    except ImportError:
        raise ConfigurationError("--reload needs watchfiles: pip install 'ackback[reload]'") from None

    class Sources(DefaultFilter):
        def __call__(self, change: object, path: str) -> bool:
            return path.endswith((".py", ".toml")) and super().__call__(change, path)  # type: ignore[arg-type]

    changes = watch(
        *paths,
        watch_filter=Sources(),
        rust_timeout=1,
        yield_on_timeout=True,
        raise_interrupt=False,
        debounce=50,
        step=10,
    )
    return lambda: bool(next(changes, ()))
