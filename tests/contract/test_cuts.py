"""Random durable handlers in two daemons whose connections end while they publish: each run ends as it would have undisturbed, and has asked
for the same, under the same CIDs."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from broker import RemoteError, Retry, Service, UnroutableError
from broker.process import daemon
from broker.protocol.message import Message
from broker.protocol.quarantine import queue_name
from broker.protocol.queues import DUE
from broker.transport.memory import MemoryBroker
from tests.support import Inbox, Running, running, unique, until

EXAMPLES = int(os.environ.get("ACKBACK_EXAMPLES", "40"))
pytestmark = pytest.mark.embedded
LOST, UNCONFIRMED, ELSEWHERE = "lost", "unconfirmed", "elsewhere"
"""What becomes of what is published as the connections end: it does not arrive; it arrives, and nobody hears of it; it arrives, as only the
other daemon's connection may end."""
THE_TESTS = "the test's"

cuts = st.dictionaries(st.integers(1, 30), st.sampled_from([LOST, UNCONFIRMED, ELSEWHERE]), min_size=1, max_size=3)
STEPS = [
    "call",
    "refused",
    "unroutable",
    "function",
    "together",
    "beside",
    "invoke",
    "sleep",
    "timeout",
    "signal",
    "fail",
    "again",
]
programs = st.lists(st.sampled_from(STEPS), min_size=1, max_size=6)


class CutBroker(MemoryBroker):
    """Ends connections of `daemons` at the publishes of theirs that have these numbers."""

    def __init__(self, cuts: Mapping[int, str]) -> None:
        super().__init__(hurried=True)
        self.daemons: list[Running] = []
        self._cuts = cuts
        self._count = 0

    def _publish(self, routing_key: str, message: Message, exchange: str, confirm: asyncio.Future[None]) -> None:
        if message.app_id == THE_TESTS or not self.daemons:
            message.app_id = None
            super()._publish(routing_key, message, exchange, confirm)
            return
        self._count += 1
        how = self._cuts.get(self._count)
        if how == UNCONFIRMED:
            unheard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            super()._publish(routing_key, message, exchange, unheard)
            unheard.exception()  # that nobody hosts the target, perhaps
        elif how != LOST:
            super()._publish(routing_key, message, exchange, confirm)
        if how is not None:
            for one in self.daemons if how != ELSEWHERE else self.daemons[self._count % 2 :][:1]:
                asyncio.get_running_loop().call_soon(_cut, one)

    def is_quiet(self, queues: Sequence[str]) -> bool:
        return self.idle() and not any(map(self.depth, queues)) and not any(one.daemon.busy() for one in self.daemons)


def _cut(one: Running) -> None:
    connection = one.daemon._connection
    if connection is not None and not connection.lost.done():
        connection._end("cut")  # type: ignore[attr-defined]


async def function(value: Any) -> Any:
    await asyncio.sleep(0)
    return ["returned", value]


class Stage:
    """A durable service that does what its request says, and the targets of that."""

    def __init__(self) -> None:
        self.sunk: set[tuple[str, str]] = set()
        stage, sunk = self, self.sunk
        self.target, self.sink, self.durable, self.nobody = (
            unique(name) for name in ("target", "sink", "durable", "nobody")
        )

        class Target(Service):
            name = self.target

            async def handle(self, value: Any) -> Any:
                if value == "refused":
                    raise ValueError("refused")
                return ["got", value]

        class Sink(Service):
            name = self.sink

            async def handle(self, value: Any) -> None:
                sunk.add((json.dumps(value), self.cid))

        class Durable(Service):
            name = self.durable
            durable = True
            retry = Retry(attempts=2, first=1, jitter=0)

            async def handle(self, program: list[str]) -> Any:
                done: list[Any] = []
                self.invoke_async(stage.sink, ["begin", len(program)])
                for at, what in enumerate(program):
                    rest = program[at + 1 :]
                    if what == "again" and done:
                        return self.again(rest)
                    await stage.do(self, what, len(rest), done)
                self.invoke_async(stage.sink, ["end", done])
                return done

        self.services = (Target, Sink, Durable)

    async def do(self, service: Any, what: str, number: int, done: list[Any]) -> None:
        if what == "call":
            done.append(await service.call(self.target, number))
        elif what == "refused":
            try:
                await service.call(self.target, "refused")
            except RemoteError as error:
                service.invoke_async(self.sink, [error.problem.detail, number])
        elif what == "unroutable":
            try:
                await service.call(self.nobody, number)
            except UnroutableError:
                done.append(what)
        elif what == "function":
            done.append(await service.step(function, number))
        elif what == "together":
            calls = service.call(self.target, 1), service.step(function, 2), service.call(self.target, 3)
            done.append(await asyncio.gather(*calls))
        elif what == "beside":
            task = asyncio.ensure_future(service.step(function, number))
            done.append(await service.call(self.target, number))
            done.append(await task)
        elif what == "invoke":
            service.invoke_async(self.sink, [number, done])
        elif what == "sleep":
            await asyncio.sleep(1)
        elif what == "timeout":
            try:
                async with asyncio.timeout(5):
                    await service.wait_for("never")
            except TimeoutError:
                done.append(what)
        elif what == "signal":
            done.append(await service.wait_for(f"signal {number}"))
        elif what == "fail" and service.request.attempt == 1:
            raise ValueError("not yet")

    async def play(self, program: Sequence[str], cuts: Mapping[int, str]) -> tuple[Any, set[tuple[str, str]]]:
        """The reply, and what the sink was asked for, under which CIDs."""
        self.sunk.clear()
        broker, shared = CutBroker(cuts), {"queue": unique("callbacks")}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "runs.db"
            sections = {"callbacks": shared, "store": {"url": f"sqlite://{path}"}}
            async with (
                running(broker, *self.services, **sections) as first,
                running(broker, *self.services, **sections) as second,
            ):
                inbox = await first.inbox()
                broker.daemons = [first, second]
                await self._request(first, inbox, program)
                return await self._watch(broker, inbox, shared["queue"]), set(self.sunk)

    async def _request(self, client: Running, inbox: Inbox, program: Sequence[str]) -> None:
        """Begin a run, and send it its signals."""
        body = json.dumps(program).encode()
        await self._publish(client, Message(body, message_id="request", reply_to=inbox.queue))
        await until(lambda: self.sunk)  # a signal finds its run at once, as its waits take no time here
        for number in [len(program) - 1 - at for at, what in enumerate(program) if what == "signal"]:
            await self._publish(client, Message(b"1", {"signal": f"signal {number}"}, message_id=f"signal {number}"))

    async def _publish(self, client: Running, message: Message) -> None:
        message.correlation_id, message.content_type, message.app_id = "cid", "application/json", THE_TESTS
        await client.publish(self.durable, message)

    async def _watch(self, broker: CutBroker, inbox: Inbox, callbacks: str) -> Any:
        queues = [self.target, self.sink, self.durable, callbacks, queue_name(callbacks), DUE]
        reply = asyncio.ensure_future(inbox.next())

        def has_replied() -> bool:
            if broker.is_quiet(queues):
                broker.pass_time()
            return reply.done()

        await until(has_replied)
        await until(lambda: broker.is_quiet(queues))
        return json.loads(reply.result().body)


# The same examples every time, but for the soak. A run that stands still takes its time: smaller examples would take minutes to be found.
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    derandomize="ACKBACK_EXAMPLES" not in os.environ,
)
@given(programs, cuts)
def test_a_run_ends_as_it_would_have_though_connections_end(program: list[str], cuts: dict[int, str]) -> None:
    stage = Stage()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "RECONNECT_FIRST", 0.001)
        undisturbed = asyncio.run(stage.play(program, {}))
        assert asyncio.run(stage.play(program, cuts)) == undisturbed
