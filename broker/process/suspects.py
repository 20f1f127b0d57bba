"""Messages that may have ended a process are handled in one of their own.

It is started, by a process that hosts services, when something is in quarantine, and gone when that is empty. It consumes nothing
else, one message at a time: so what kills it is the culprit, and those that host services go on meanwhile.

A culprit may come every few milliseconds, and to start Python and import the services takes a third of a second. So it only imports,
and forks for each life that handles messages.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from broker.errors import ConfigurationError
from broker.log import logger
from broker.process.supervisor import CONFIGURATION_FAILED, how

POLL = 0.02
BROKEN = 70
"""Exit code for an error in ackback itself, as in sysexits.h: another fork would help nobody."""
STOPPING = (signal.SIGTERM, signal.SIGINT)


def in_forks(live: Callable[[], int]) -> int:
    """Call `live` in a fork of this process, and in another should that die, until one ends well or a signal has come.

    Returns the exit code: not 0 if `live` has raised.
    """
    if not hasattr(os, "fork"):
        return live()
    stopping = False
    pid = 0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if pid and not stopping:  # a second one would make it stop at once, and several may tell it
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        stopping = True

    for number in STOPPING:
        signal.signal(number, stop)
    while not stopping:
        # No signal comes before it is known whom it is for.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        pid = os.fork()
        if not pid:
            for number in STOPPING:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        if not pid:
            _live_and_exit(live)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code in (0, CONFIGURATION_FAILED, BROKEN):
            return code
        if stopping:
            break
        logger.warning("process %d for what is in quarantine died (%s)", pid, how(code))
    return 0


def _live_and_exit(live: Callable[[], int]) -> NoReturn:
    """End this fork as `live` ends."""
    code = BROKEN
    try:
        code = live()
    except ConfigurationError as error:
        logger.error("%s", error)
        code = CONFIGURATION_FAILED
    except Exception:
        logger.exception("an error in ackback itself, in the process for what is in quarantine")
    finally:
        os._exit(code)


class Suspects:
    """The child process with `arguments` for the command line, whose quarantine `place` tells from others: URLs and callback queue.

    There is one at most on this machine. It outlives the process that has started it, should that die, as its work goes on; so a file
    says which it is, and is locked while it lives. Where no file can be written (in a read-only container, say), each process knows
    only of its own.
    """

    def __init__(self, arguments: Sequence[str], place: Sequence[str]) -> None:
        self._arguments = arguments
        self._file: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        digest = hashlib.sha256(repr((Path.cwd(), *arguments, *place)).encode()).hexdigest()[:16]
        try:
            file = Path(tempfile.gettempdir()) / f"ackback-{os.getuid()}-{digest}.pid"
            _open(file).close()
            self._file = file
        except OSError as error:
            logger.debug("no file can say which process is for what is in quarantine: %s", error)

    def start(self) -> None:
        """Start it, unless it is there."""
        if self._is_own_there():
            return
        if self._process is not None and self._process.returncode:
            logger.warning("the process for what is in quarantine died (%s)", how(self._process.returncode))
        try:
            if self._file is None:
                self._process = self._popen()
                return
            with _locked(self._file) as file:
                if file is not None:
                    file.truncate(0)
                    self._process = self._popen(file.fileno())
                    file.write(str(self._process.pid))
        except OSError as error:
            logger.error("no process for what is in quarantine can be started: %s", error)

    def stop(self) -> None:
        """Let it finish the message that it has, and end."""
        self._send(os.kill, signal.SIGTERM)

    async def stopped(self, seconds: float) -> None:
        """Wait for its end, and force it after so many seconds."""
        deadline = time.monotonic() + seconds
        while self._pid() is not None:
            if time.monotonic() > deadline:
                self._send(os.killpg, signal.SIGKILL)  # with its fork
                return
            await asyncio.sleep(POLL)

    def _popen(self, *lock: int) -> subprocess.Popen[bytes]:
        """Start the process, which inherits the lock."""
        command = [sys.executable, "-m", "broker", *self._arguments]
        # In a group of its own: Ctrl-C on a terminal reaches only the parent.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, pass_fds=lock)  # noqa: S603
        logger.info("messages are in quarantine: process %d handles them, one at a time", process.pid)
        return process

    def _send(self, kill: Callable[[int, int], None], number: int) -> None:
        if pid := self._pid():
            with suppress(ProcessLookupError):
                kill(pid, number)

    def _is_own_there(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _pid(self) -> int | None:
        """Its process ID; 0 if it is there and that is not known yet, None if it is not there."""
        if self._is_own_there():
            assert self._process is not None
            return self._process.pid
        if self._file is None:
            return None
        try:
            with _locked(self._file) as file:
                return None if file is not None else int(self._file.read_text() or 0)
        except OSError as error:
            logger.debug("no file says which process is for what is in quarantine: %s", error)
            return None


def _open(file: Path) -> TextIO:
    # In a folder that all may write to: not through somebody else's link, nor into somebody else's file.
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_uid != os.getuid():
        os.close(descriptor)
        raise PermissionError(f"{file} belongs to another user")
    return os.fdopen(descriptor, "r+")


@contextmanager
def _locked(file: Path) -> Iterator[TextIO | None]:
    """The file, locked; None if another process has locked it."""
    import fcntl  # not on Windows, where daemons do not run

    with _open(file) as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield opened
