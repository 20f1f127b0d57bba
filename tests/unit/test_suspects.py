"""The process for what is in quarantine: one of it, a fork for each life, and how it is ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from broker.process.suspects import Suspects
from tests.support import run


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a process that only waits for its end in the place of `ackback`."""
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: popen(command, **options))


def test_there_is_one_for_the_same_settings_whoever_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping(monkeypatch)

    async def test() -> None:
        first, second = Suspects(["run"], ["amqp://a/"]), Suspects(["run"], ["amqp://a/"])
        elsewhere = Suspects(["run"], ["amqp://b/"])
        first.start()
        second.start()
        assert second._process is None
        assert second._pid() == first._pid() != 0
        elsewhere.start()
        assert elsewhere._pid() not in (None, first._pid())
        second.stop()  # by whom it was started does not matter
        await first.stopped(30)
        assert first._pid() is None and second._pid() is None
        assert first._process is not None and first._process.returncode == -signal.SIGTERM
        elsewhere.stop()
        await elsewhere.stopped(30)

    run(test())


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping(monkeypatch)

    async def test() -> None:
        suspects = Suspects(["run"], [])
        suspects.start()
        await suspects.stopped(0.1)
        assert suspects._process is not None and suspects._process.wait(30) == -signal.SIGKILL

    run(test())


def test_where_no_file_can_be_written_each_process_has_its_own(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping(monkeypatch)
    file = Suspects(["run"], [])._file
    assert file is not None and file.parent == own_folder
    file.unlink()
    file.mkdir()

    async def test() -> None:
        suspects = Suspects(["run"], [])
        assert suspects._file is None
        suspects.start()
        assert suspects._pid()
        suspects.stop()
        await suspects.stopped(30)
        assert suspects._pid() is None

    run(test())


def forking(script: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_a_fork_that_dies_is_followed_by_another_until_one_ends_well(tmp_path: Path) -> None:
    script = """
        import os
        from broker.process.suspects import in_forks

        def live():
            with open("lives", "a") as file:
                file.write("x")
            if os.path.getsize("lives") < 4:
                os._exit(11)
            return 0

        raise SystemExit(in_forks(live))
    """
    process = forking(script, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "lives").read_text() == "xxxx"


def test_a_signal_reaches_the_fork_once_and_no_other_follows(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from broker.process.suspects import in_forks

        def live():
            signals = []
            signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
            print(os.getppid(), flush=True)
            while not signals:
                signal.pause()
            os.kill(os.getppid(), signal.SIGTERM)  # a second one, which is not to come back
            print(len(signals), flush=True)
            return 3

        raise SystemExit(in_forks(live))
    """
    process = forking(script, tmp_path)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert rest == "1\n"
    assert process.returncode == 0
