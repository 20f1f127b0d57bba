"""The pytest plugin, as a user's project has it."""

from __future__ import annotations

from pathlib import Path

import pytest

SERVICES = """
from broker import Service

class Double(Service):
    name = "double"

    async def handle(self, number: int) -> int:
        self.logger.info("doubling %d", number)
        return 2 * number

class Start(Service):
    name = "start"

    def handle(self):
        self.invoke_async("double", int(self.request.payload))

class StartAsyncCallback(Service):
    def handle(self):
        self.logger.info("got %s", self.request.payload)
"""

TESTS = """
import pytest

async def test_call(services):
    assert await services.call("double", 21) == 42

async def test_flow(services):
    cid = await services.invoke_async("start", 4)
    await services.settle()
    assert [record.getMessage() for record in services.logged] == ["doubling 4", "got 8"]
    assert [record.service for record in services.logged] == ["double", "start-async-callback"]
    assert services.dead == []

async def test_dead(services):
    cid = await services.invoke_async("double", "no number")
    await services.settle()
    (dead,) = services.dead
    assert (dead.reason, dead.service, dead.cid) == ("invalid", "double", cid)
    assert dead.error.errors

@pytest.mark.parametrize("n", [1, 2])
async def test_parameters(services, n, tmp_path):
    assert await services.call("double", n) == 2 * n

async def test_fails(services):
    assert await services.call("double", 1) == 3
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    (pytester.path / "services").mkdir()
    (pytester.path / "services" / "numbers.py").write_text(SERVICES)
    pytester.makepyfile(TESTS)
    return pytester


def test_the_services_fixture_on_the_embedded_broker(project: pytest.Pytester) -> None:
    project.runpytest_subprocess().assert_outcomes(passed=5, failed=1)


def test_the_same_tests_on_rabbitmq(project: pytest.Pytester, rabbitmq_url: str) -> None:
    project.runpytest_subprocess("--ackback-url", rabbitmq_url).assert_outcomes(passed=5, failed=1)


def test_services_from_elsewhere(project: pytest.Pytester) -> None:
    (project.path / "services").rename(project.path / "elsewhere")
    project.makeini("[pytest]\nackback_services = elsewhere")
    project.runpytest_subprocess("-k", "call").assert_outcomes(passed=1)


def test_wrong_services_are_told(project: pytest.Pytester) -> None:
    Path(project.path / "services" / "bad.py").write_text(
        "from broker import Service\nclass A(Service):\n  def handel(self): pass"
    )
    result = project.runpytest_subprocess("-k", "call")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*has no `handle` method (it has `handel`)*"])


DURABLE = """
import asyncio, random
from broker import Service

class Price(Service):
    name = "price"

    async def handle(self, item: str) -> float:
        return 2.5

class Checkout(Service):
    name = "checkout"
    durable = True

    async def handle(self, item: str) -> dict:
        price = await self.call("price", item)
        began = self.now()
        await asyncio.sleep(3 * 86400)
        try:
            async with asyncio.timeout(86400):
                by = await self.wait_for("approved")
        except TimeoutError:
            by = "nobody"
        return {"price": price, "by": by, "days": (self.now() - began).days}

class Careless(Service):
    name = "careless"
    durable = True

    async def handle(self, item: str) -> float:
        await self.call("price", f"{item} {random.random()}")
        return await self.call("price", item)
"""

DURABLE_TESTS = """
import pytest
from broker import RemoteError

async def test_approved(services):
    run = await services.start("checkout", "tea")
    await services.settle()
    assert run.waiting_for == ["sleep"]
    await run.signal("approved", "Ann")
    assert await run.result() == {"price": 2.5, "by": "Ann", "days": 3}
    assert run.waiting_for == []

async def test_nobody(services):
    run = await services.start("checkout", "tea")
    assert await run.result() == {"price": 2.5, "by": "nobody", "days": 4}

async def test_careless(services):
    run = await services.start("careless", "tea")
    assert await run.result() == 2.5
"""


def test_durable_services_are_run_with_time_that_passes_at_once(pytester: pytest.Pytester) -> None:
    (pytester.path / "services").mkdir()
    (pytester.path / "services" / "shop.py").write_text(DURABLE)
    pytester.makepyfile(DURABLE_TESTS)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)
    replayed = pytester.runpytest_subprocess("--ackback-replay")
    replayed.assert_outcomes(passed=2, failed=1)
    replayed.stdout.re_match_lines(
        [r".*RemoteError: careless: ChangedError: step 1 was call price tea 0\..*, and is call price tea 0\."]
    )
