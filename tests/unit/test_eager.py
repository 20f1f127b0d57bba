"""Coroutines begun in place behave as tasks do."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from broker.handling.eager import Eager, directly
from tests.support import run, until

marked: ContextVar[str] = ContextVar("marked", default="nothing")


def test_what_does_not_wait_is_done_at_once_and_takes_no_task() -> None:
    async def test() -> None:
        eager, done = Eager(), []

        async def handle(number: int) -> None:
            assert asyncio.current_task() is not test_task
            done.append(number)

        test_task = asyncio.current_task()
        eager.begin(handle(0))
        tasks = asyncio.all_tasks()
        for number in range(1, 100):
            eager.begin(handle(number))
        assert done == list(range(100))
        assert asyncio.all_tasks() == tasks
        assert asyncio.current_task() is test_task
        await eager.cancel()

    run(test())


def test_what_waits_goes_on_in_the_task_that_it_began_with() -> None:
    async def test() -> None:
        eager, seen = Eager(), []

        async def handle(number: int) -> None:
            before = asyncio.current_task()
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            await asyncio.sleep(0.001 * number)
            assert asyncio.current_task() is before
            seen.append(before)

        for number in range(10):
            eager.begin(handle(number))
        await until(lambda: len(seen) == 10)
        assert len(set(seen)) == 10
        await eager.cancel()

    run(test())


def test_a_timeout_that_was_begun_in_place_holds() -> None:
    async def test() -> None:
        eager, seen = Eager(), []

        async def handle() -> None:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                seen.append("in time")

        eager.begin(handle())
        await until(lambda: seen)
        await eager.cancel()

    run(test())


def test_each_has_a_context_of_its_own_before_and_after_it_waits() -> None:
    async def test() -> None:
        eager, seen = Eager(), []

        async def handle(name: str) -> None:
            assert marked.get() == "nothing"
            marked.set(name)
            await asyncio.sleep(0)
            await directly(asyncio.get_running_loop().create_task(asyncio.sleep(0)))
            seen.append((name, marked.get()))

        for name in "abc":
            eager.begin(handle(name))
        await until(lambda: len(seen) == 3)
        assert all(name == mark for name, mark in seen)
        assert marked.get() == "nothing"
        await eager.cancel()

    run(test())


def test_an_error_of_the_first_step_is_raised_where_it_was_begun() -> None:
    async def test() -> None:
        eager = Eager()

        async def handle() -> None:
            raise ValueError("no good")

        with pytest.raises(ValueError, match="no good"):
            eager.begin(handle())
        await eager.cancel()

    run(test())


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_awaited_directly_goes_on_without_a_task(fails: bool) -> None:
    async def test() -> None:
        eager, seen = Eager(), []
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def handle() -> None:
            try:
                seen.append(await directly(future))
            except ValueError as error:
                seen.append(str(error))

        eager.begin(handle())
        tasks = asyncio.all_tasks()
        if fails:
            future.set_exception(ValueError("no good"))
        else:
            future.set_result(5)
        await until(lambda: seen)
        assert seen == ["no good" if fails else 5]
        assert asyncio.all_tasks() == tasks
        await eager.cancel()

    run(test())


def test_cancel_ends_all_that_waits_however_it_waits() -> None:
    async def test() -> None:
        eager, seen = Eager(), []
        loop = asyncio.get_running_loop()

        async def handle(waiting: Any) -> None:
            try:
                await waiting()
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # a handler may still tidy up
                seen.append("cancelled")
                raise

        async def yielding() -> None:
            while True:
                await asyncio.sleep(0)

        for waiting in (asyncio.Event().wait, lambda: directly(loop.create_future()), loop.create_future, yielding):
            eager.begin(handle(waiting))
        await eager.cancel()
        assert seen == ["cancelled"] * 4
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(test())
