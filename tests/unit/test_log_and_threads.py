"""Log lines that cannot be forged, and threads that answer."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading

import pytest

from broker import log
from broker.handling.threads import Threads
from broker.settings import LogSection
from tests.support import run, until


@pytest.fixture(autouse=True)
def restore_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in log._NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(section: LogSection, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    log.setup(section, stream)
    logger = logging.getLogger("orders.price")
    log.handling.set(("c1", "orders.price", 2))
    logger.warning("a %s", "b\nFORGED\x1b[31m")
    try:
        raise ValueError("x\ny")
    except ValueError:
        logger.exception("failed")
    log.handling.set(None)
    logger.debug("not shown")
    return stream.getvalue()


def test_text_is_one_line_a_record_with_the_cid() -> None:
    lines = written(LogSection()).splitlines()
    assert lines[0].endswith("WARNING orders.price: a b\\nFORGED\\x1b[31m (CID c1)")
    assert lines[1].endswith("ERROR   orders.price: failed (CID c1)")
    assert all(line.startswith("    ") for line in lines[2:])
    assert "\x1b" not in "".join(lines)


def test_what_no_stream_can_encode_is_escaped() -> None:
    for section in (LogSection(), LogSection(format="json")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="utf-8")
        log.setup(section, stream)
        logging.getLogger("x").warning("from abroad: %s", "\udcff\u2028")
        stream.flush()
        assert b"from abroad: \\udcff" in raw.getvalue()
        assert len(raw.getvalue().splitlines()) == 1


def test_a_terminal_gets_colours() -> None:
    assert "\x1b[33mWARNING" in written(LogSection(), Terminal())


def test_json_is_one_object_a_line() -> None:
    first, second = (json.loads(line) for line in written(LogSection(format="json")).splitlines())
    assert first["message"] == "a b\nFORGED\x1b[31m"
    assert {key: first[key] for key in ("level", "logger", "cid", "service", "attempt")} == {
        "level": "warning",
        "logger": "orders.price",
        "cid": "c1",
        "service": "orders.price",
        "attempt": 2,
    }
    assert first["time"].endswith("Z")
    assert "ValueError" in second["traceback"]


def test_threads_answer_each_caller_and_a_slow_one_holds_up_nobody() -> None:
    async def test() -> None:
        threads = Threads(4)
        release = threading.Event()
        slow = threads.run(release.wait)
        results = await asyncio.gather(*(threads.run(lambda n=n: n * n) for n in range(1000)))
        assert results == [n * n for n in range(1000)]
        assert not slow.done()
        release.set()
        assert await slow is True
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)
        threads.close()

    run(test())


def test_no_more_threads_than_needed_and_never_more_than_allowed() -> None:
    async def test() -> None:
        threads = Threads(3)
        for _ in range(5):
            await threads.run(int)
            await until(lambda: threads._asleep == threads._started)
        assert threads._started == 1
        release = threading.Event()
        waiting = [threads.run(release.wait) for _ in range(10)]
        await until(lambda: threads._started == 3)
        release.set()
        await asyncio.gather(*waiting)
        threads.close()

    run(test())


def test_as_many_threads_as_jobs_that_wait_for_each_other() -> None:
    """Each job ends only when all have begun: one thread too few, and none ever would."""

    async def test() -> None:
        for count in (2, 20, 200):
            threads = Threads(count)
            for _ in range(5):
                all_here = threading.Barrier(count)
                await asyncio.gather(*(threads.run(all_here.wait) for _ in range(count)))
            assert threads._started == count
            threads.close()

    run(test())


def test_a_pool_that_is_closed_ends_its_threads() -> None:
    async def test() -> None:
        threads = Threads(5)
        all_here = threading.Barrier(5)
        await asyncio.gather(*(threads.run(all_here.wait) for _ in range(5)))
        threads.close()
        await until(lambda: not any(one.name.startswith("ackback-") for one in threading.enumerate()))

    run(test())


def test_a_pool_that_cannot_start_a_thread_says_so_and_can_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        threads = Threads(2)
        with monkeypatch.context() as no_more:
            no_more.setattr(threading.Thread, "start", _refused)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                threads.run(int)
        assert await threads.run(lambda: "now") == "now"
        threads.close()

    run(test())


def _refused(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
