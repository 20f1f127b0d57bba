"""Durable handlers do the same whenever they are run again: random handlers, random orders of what comes."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.durable.journal import AGAIN, CANCEL, DUE, ERROR, GOT, OK, SIGNAL, Entry, Journal
from broker.durable.loop import DurableLoop, NeverWaitsError
from broker.durable.run import CALL, TIMER, ChangedError, Run
from broker.errors import RemoteError

EXAMPLES = int(os.environ.get("ACKBACK_EXAMPLES", "300"))
PROBLEM = '{"type": "urn:ackback:problem:error", "title": "Boom", "detail": "", "service": "x", "attempts": 1}'
NAMES = ("approved", "paid")


def call(run: Run, name: str) -> Coroutine[Any, Any, Any]:
    async def asked() -> Any:
        return await run.answer(run.ask(CALL, name, name, None).number)

    return asked()


# A program: a tree of what handlers are made of. Each node is what it is, and its parts.
leaves = st.one_of(
    st.tuples(st.just("call"), st.sampled_from("abc")),
    st.tuples(st.just("sleep"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.sampled_from(NAMES)),
    st.tuples(st.just("raise")),
)
programs = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.tuples(st.just("seq"), st.lists(parts, min_size=1, max_size=4)),
        st.tuples(st.just("gather"), st.lists(parts, min_size=1, max_size=4)),
        st.tuples(st.just("group"), st.lists(parts, min_size=1, max_size=4)),
        st.tuples(st.just("timeout"), st.integers(1, 5), parts),
        st.tuples(st.just("try"), parts, parts, parts),
        st.tuples(st.just("loop"), st.sampled_from("abc"), parts),
        st.tuples(st.just("abandon"), parts, parts),
        st.tuples(st.just("first"), st.lists(parts, min_size=1, max_size=3)),
    ),
    max_leaves=12,
)


async def perform(run: Run, program: Any, log: list[Any]) -> Any:
    """Run a program, and note in which order its parts end."""
    kind, *parts = program
    value: Any = None
    if kind == "call":
        value = await call(run, parts[0])
    elif kind == "sleep":
        await asyncio.sleep(parts[0])
    elif kind == "wait":
        value = await run.wait_for(parts[0], "")
    elif kind == "raise":
        raise ValueError(len(log))
    elif kind == "seq":
        value = [await perform(run, one, log) for one in parts[0]]
    elif kind == "gather":
        value = await asyncio.gather(*(perform(run, one, log) for one in parts[0]))
    elif kind == "group":
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(perform(run, one, log)) for one in parts[0]]
        value = [task.result() for task in tasks]
    elif kind == "timeout":
        async with asyncio.timeout(parts[0]):
            value = await perform(run, parts[1], log)
    elif kind == "try":
        try:
            value = await perform(run, parts[0], log)
        except* (RemoteError, ValueError, TimeoutError):
            value = await perform(run, parts[1], log)
        finally:
            await perform(run, parts[2], log)
    elif kind == "loop":
        for _ in range(await call(run, parts[0]) % 4):
            value = await perform(run, parts[1], log)
    elif kind == "abandon":
        task = asyncio.create_task(perform(run, parts[0], log))
        value = await perform(run, parts[1], log)
        task.cancel()
        await asyncio.wait([task])
    elif kind == "first":
        tasks = [asyncio.create_task(perform(run, one, log)) for one in parts[0]]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=3)
        for one in pending:
            one.cancel()
        value = [tasks.index(one) for one in tasks if one in done]
    log.append((kind, value, asyncio.get_running_loop().time()))
    return value


@contextmanager
def new_run(program: Any) -> Iterator[tuple[Run, list[Any]]]:
    log: list[Any] = []
    run = Run(lambda run: perform(run, program, log), 1000.0)
    try:
        yield run, log
    finally:
        run.abandon()


def end_of(run: Run) -> Any:
    if not run.is_done:
        return "waits", [one.number for one in run.waits_for]
    if run.task.cancelled():
        return "cancelled"
    error = run.task.exception()
    return ("failed", repr(error)) if error else ("done", run.task.result())


def something_happens(draw: Callable[[Any], Any], run: Run, number: int) -> Entry:
    """The next answer, signal or cancellation for a run."""
    t = 1000.0 + number
    open_steps = [q for q in run.questions if run.takes(q.number) and q.kind in (CALL, TIMER)]
    what = draw(st.sampled_from(["answer"] * 12 + ["signal"] * 3 + ["cancel"]))
    if what == "answer" and open_steps:
        question = draw(st.sampled_from(open_steps))
        if question.kind == TIMER:
            return [GOT, t, question.number, DUE, None]
        if draw(st.integers(0, 5)) == 0:
            return [GOT, t, question.number, ERROR, PROBLEM]
        return [GOT, t, question.number, OK, draw(st.integers(0, 9))]
    if what == "cancel":
        return [CANCEL, t, ""]
    return [SIGNAL, t, draw(st.sampled_from(NAMES)), OK, number, str(number)]


# A program that is let go of in the middle may have a `finally` that begins something.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=EXAMPLES, deadline=None)
@given(programs, st.data())
def test_a_replay_asks_and_ends_as_the_run_did(program: Any, data: st.DataObject) -> None:
    with new_run(program) as (run, log):
        entries: list[Entry] = []
        run.begin()
        entries += [question.entry for question in run.questions]
        for number in range(40):
            with new_run(program) as (again, log_again):
                again.replay(entries)
                assert [q.entry for q in again.questions] == [q.entry for q in run.questions]
                assert end_of(again) == end_of(run)
                assert log_again == log
            if run.is_done:
                break
            entries.append(something_happens(data.draw, run, number))
            asked = len(run.questions)
            run.feed(entries[-1])
            entries += [question.entry for question in run.questions[asked:]]


def replayed(handler: Callable[[Run], Coroutine[Any, Any, Any]], entries: list[Entry]) -> Run:
    run = Run(handler, 0.0)
    run.replay(entries)
    return run


def kept(*questions: str) -> list[Entry]:
    return [["ask", number, CALL, name, name, "shop.py:7"] for number, name in enumerate(questions)]


async def two_steps(run: Run) -> Any:
    return [await call(run, "price"), await call(run, "stock")]


async def three_steps(run: Run) -> Any:
    return [await call(run, "price"), await call(run, "stock"), await call(run, "credit")]


async def both_at_once(run: Run) -> Any:
    return await asyncio.gather(call(run, "price"), call(run, "stock"))


def answered(number: int) -> Entry:
    return [GOT, 1.0, number, OK, 1]


FIRST, SECOND = kept("price", "stock")


def test_a_step_that_is_added_at_the_end_changes_nothing() -> None:
    run = replayed(three_steps, [FIRST, answered(0), SECOND])
    run.feed(answered(1))
    assert [q.what for q in run.waits_for] == ["credit"]


@pytest.mark.parametrize(
    ("handler", "entries", "told"),
    [
        (
            lambda run: call(run, "stock"),
            [FIRST],
            r"step 1 was call price \(shop.py:7\), and is call stock now \(.*test_durable.py:",
        ),
        (
            lambda run: call(run, "price"),
            [FIRST, answered(0), SECOND],
            r"step 2 was call stock \(shop.py:7\), and the handler does not",
        ),
        (
            both_at_once,
            [FIRST, answered(0), SECOND],
            r"step 2 is new: the handler asks for call stock where it went on",
        ),
        (two_steps, [*kept("stock", "price")], r"step 1 was call stock \(shop.py:7\), and is call price now"),
    ],
    ids=["another", "removed", "at once", "reordered"],
)
def test_other_questions_are_noticed(handler: Any, entries: list[Entry], told: str) -> None:
    with pytest.raises(ChangedError, match=told):
        replayed(handler, entries)


def test_after_a_failed_attempt_the_handler_may_go_on_with_other_code() -> None:
    async def failing(run: Run) -> Any:
        await call(run, "price")
        raise ValueError

    run = Run(failing, 0.0)
    run.replay([FIRST, answered(0)])
    assert isinstance(run.task.exception(), ValueError)
    mended = replayed(two_steps, [FIRST, answered(0), ["failed", 2.0, 1, "error", "", None, None], [AGAIN, 3.0, 1, []]])
    assert [q.what for q in mended.waits_for] == ["stock"]


def test_the_answer_that_a_run_died_of_is_forgotten_when_it_is_tried_again() -> None:
    entries = [
        FIRST,
        [GOT, 1.0, 0, ERROR, PROBLEM],
        ["failed", 2.0, 1, "error", "", None, 0],
        [AGAIN, 3.0, 1, [0]],
    ]
    run = replayed(two_steps, entries)
    assert [q.what for q in run.waits_for] == ["price"]
    run = replayed(two_steps, [*entries, answered(0)])
    assert [q.what for q in run.waits_for] == ["stock"]


def test_a_journal_says_what_its_run_is() -> None:
    journal = Journal()
    assert journal.state is None
    for entry in (["begin", 1.0, "shop", "{}", 0, 0, []], FIRST):
        journal.add(entry)
    journal.close(10)
    journal.add(answered(0))
    assert (journal.state, journal.chunk_of(0), journal.asked_in(0), journal.asked_in(1)) == ("running", 1, [0], [])
    journal.add(["failed", 2.0, 1, "error", "", 3, None])
    assert (journal.state, journal.kept_state) == ("failing", "running")


REFUSED: dict[str, Callable[[], Any]] = {
    "to_thread": lambda: asyncio.to_thread(len, ""),
    "run_in_executor": lambda: asyncio.get_running_loop().run_in_executor(None, len, ""),
    "open_connection": lambda: asyncio.open_connection("127.0.0.1", 1),
    "start_server": lambda: asyncio.start_server(lambda *_: None),
    "create_subprocess_exec": lambda: asyncio.create_subprocess_exec("true"),
    "getaddrinfo": lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1),
    "sock_recv": lambda: asyncio.get_running_loop().sock_recv(None, 1),  # type: ignore[arg-type]
    "add_reader": lambda: asyncio.get_running_loop().add_reader(0, print),
    "add_signal_handler": lambda: asyncio.get_running_loop().add_signal_handler(1, print),
    "call_soon_threadsafe": lambda: asyncio.get_running_loop().call_soon_threadsafe(print),
    "run_until_complete": lambda: asyncio.get_running_loop().run_until_complete(None),  # type: ignore[arg-type],
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_what_cannot_be_done_again_alike_is_refused(name: str) -> None:
    async def handler(run: Run) -> Any:
        await REFUSED[name]()

    run = Run(handler, 0.0)
    run.begin()
    with pytest.raises(RuntimeError, match=r"is not to be had in a durable handler.*await self.step\(function\)"):
        run.task.result()


def test_a_handler_that_goes_round_in_circles_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.durable.loop.LONGEST_TURN", 0.05)

    async def handler(run: Run) -> Any:
        while True:
            await asyncio.sleep(0)

    run = Run(handler, 0.0)
    with pytest.raises(NeverWaitsError, match="without waiting for anything"):
        run.begin()
    run.abandon()


def test_what_is_let_go_of_does_nothing_more() -> None:
    done: list[str] = []

    async def handler(run: Run) -> Any:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(call(run, "a"))
                await call(run, "b")
        finally:
            done.append("closed")
            await call(run, "undo")
            done.append("undone")

    run = Run(handler, 0.0)
    run.begin()
    run.abandon()
    questions = run.questions
    del run
    assert done == ["closed"]
    assert sorted(q.what for q in questions) == ["a", "b"]


def test_the_outer_loop_is_as_it_was() -> None:
    async def handler(run: Run) -> Any:
        assert isinstance(asyncio.get_running_loop(), DurableLoop)
        return await call(run, "a")

    async def outer() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        run = Run(handler, 0.0)
        run.begin()
        run.feed(answered(0))
        assert (asyncio.get_running_loop(), asyncio.current_task(), run.task.result()) == (loop, task, 1)

    asyncio.run(outer())


async def _sleeps(run: Run) -> None:
    await asyncio.sleep(100)


async def _gathers(run: Run) -> None:
    await asyncio.gather(*(run.answer(run.ask(CALL, "a", str(number), None).number) for number in range(3)))


async def _has_a_group(run: Run) -> None:
    async with asyncio.TaskGroup() as group:
        for seconds in (1, 2, 3):
            group.create_task(asyncio.sleep(seconds))


async def _has_a_time_limit(run: Run) -> None:
    async with asyncio.timeout(50):
        await run.wait_for("approved", "")


async def _is_done(run: Run) -> None:
    pass


@pytest.mark.parametrize("handle", [_sleeps, _gathers, _has_a_group, _has_a_time_limit, _is_done])
def test_what_is_abandoned_is_freed_without_the_collector(handle: Callable[[Run], Coroutine[Any, Any, None]]) -> None:
    gc.collect()
    gc.disable()
    try:
        run = Run(handle, 1.0)
        run.begin()
        run.abandon()
        left = [weakref.ref(one) for one in (run, run.loop, run.task)]
        del run
        assert [one() for one in left] == [None, None, None]
    finally:
        gc.enable()
