"""Runs of a durable service while daemons are killed, connections cut, answers delivered three times, the broker and the store go and come
back: each ends as it would have undisturbed."""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pika
import pytest

from tests.faults.durable_services import LEDGER, PAGES, expected
from tests.faults.nodes import Node, cluster
from tests.faults.stage import Stage
from tests.stores import PostgresqlServer

RUNS = int(os.environ.get("ACKBACK_RUNS", "100"))
KILLS = 10
CUTS = 10
READERS = 10
"""Runs that begin anew with every page."""
PACE = 0.1
"""Seconds, at most, from one request to the next: so runs are at all their steps when something fails."""
PATIENCE = 60.0
"""Seconds in which no run ends and no target is asked for anything, after which what has not ended has not ended."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with cluster(1) as nodes:
        yield nodes[0]


class Clients:
    """Begin the runs, send their signals, and collect the replies. What is not confirmed is sent again, with the same CID."""

    def __init__(self, node: Node) -> None:
        self._url = node.url
        self.replies: dict[int, list[Any]] = defaultdict(list)
        self._connect()

    def _connect(self) -> None:
        while True:
            try:
                self._connection = pika.BlockingConnection(pika.URLParameters(self._url))
                self._channel = self._connection.channel()
                self._channel.confirm_delivery()
                self._channel.queue_declare("attack.replies", durable=True, arguments={"x-queue-type": "quorum"})
                return
            except (pika.exceptions.AMQPError, OSError):
                self.close()
                time.sleep(0.2)

    def close(self) -> None:
        with suppress(AttributeError, pika.exceptions.AMQPError, OSError):  # there may be none
            self._connection.close()

    def publish(
        self, order: int, body: Any, headers: dict[str, Any], message_id: str, target: str = "attack.checkout"
    ) -> None:
        properties = pika.BasicProperties(
            correlation_id=f"order-{order}",
            message_id=message_id,
            reply_to="attack.replies",
            content_type="application/json",
            delivery_mode=2,
            headers=headers,
        )
        while True:
            try:
                self._channel.basic_publish("", target, json.dumps(body).encode(), properties, mandatory=True)
                return
            except (pika.exceptions.AMQPError, OSError):
                self.close()
                self._connect()

    def collect(self) -> None:
        try:
            while (found := self._channel.basic_get("attack.replies", auto_ack=True))[0]:
                _, properties, body = found
                assert properties is not None
                self.replies[int(str(properties.correlation_id).removeprefix("order-"))].append(json.loads(body))
        except (pika.exceptions.AMQPError, OSError):
            self.close()
            self._connect()

    def dead_letters(self) -> list[Any]:
        """What they died of, taken off their queue."""
        reasons = []
        while (found := self._channel.basic_get("dead-letters", auto_ack=True))[0]:
            assert found[1] is not None
            reasons.append((found[1].headers or {}).get("dead-reason"))
        return reasons

    def collect_until(self, condition: Callable[[], bool], asked: Callable[[], int]) -> None:
        news, since = (-1, -1), time.monotonic()
        while not condition():
            self.collect()
            if (now := (len(self.replies), asked())) != news:
                news, since = now, time.monotonic()
            assert time.monotonic() - since < PATIENCE, (
                f"{sorted(set(range(RUNS + READERS)) - set(self.replies))} of {RUNS + READERS} runs have not ended"
            )
            time.sleep(0.1)


@pytest.fixture
def store_server(request: pytest.FixtureRequest) -> Iterator[PostgresqlServer | None]:
    if request.param == "sqlite":
        yield None
        return
    with PostgresqlServer() as server:
        yield server


@pytest.mark.parametrize(
    ("transport", "store_server"), [("lane", "sqlite"), ("aio-pika", "postgresql")], indirect=["store_server"]
)
def test_every_run_ends_as_it_would_have(
    transport: str, store_server: PostgresqlServer | None, node: Node, tmp_path: Path
) -> None:
    rng = random.Random(1)
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    stage = Stage([node.url], transport, rng)
    stage.environment[LEDGER] = str(ledger)
    url = store_server.url if store_server else f"sqlite://{stage.path}/ackback.db"
    (stage.path / "config.toml").write_text(
        f"[broker]\nurl = '{node.url}'\ntransport = '{transport}'\n[services]\npaths = ['tests.faults.durable_services']\n"
        f"[worker]\ngrace = 5.0\n[store]\nurl = '{url}'\n"
    )
    clients = Clients(node)
    try:
        daemons = [stage.daemon(), stage.daemon()]
        for order in range(RUNS):
            time.sleep(rng.uniform(0, PACE))
            clients.publish(order, order, {}, f"request-{order}")
            for again in range(3 if order % 10 == 0 else 1):
                clients.publish(order, f"by {order}", {"signal": "approved"}, f"signal-{order}")
                if again:
                    clients.publish(order, order, {}, f"request-{order}")
            if order < READERS:
                clients.publish(RUNS + order, [order, 1], {}, f"reader-{order}", "attack.reader")
            if order % (RUNS // KILLS) == RUNS // KILLS - 1:
                rng.choice(daemons).kill()
            if order % (RUNS // CUTS) == RUNS // CUTS - 5:
                node.ctl("close_all_connections", "attacked")
            if order == RUNS // 2:
                node.kill()
                node.start()
                if store_server is not None:
                    store_server.kill()
                    store_server.start()
        clients.collect_until(
            lambda: len(clients.replies) == RUNS + READERS,
            lambda: sum(file.stat().st_size for file in ledger.iterdir()),
        )
        for order, replies in clients.replies.items():
            assert [one for one in replies if one != (expected(order) if order < RUNS else ["read"])] == []
        assert "delivery-limit" not in clients.dead_letters()
        asked = cids_of(ledger)
        assert len(asked) >= RUNS * 7
        items = {
            f"attack.sink {order}.{page}.{item}"
            for order in range(READERS)
            for page in range(1, PAGES + 1)
            for item in range(3)
        }
        assert items <= asked.keys()
        assert {what: cids for what, cids in asked.items() if len(set(cids)) > 1} == {}
        handled, repeats = sum(map(len, asked.values())), sum(map(len, clients.replies.values())) - RUNS - READERS
        print(
            f"{transport}, {url.partition(':')[0]}: {RUNS + READERS} of {RUNS + READERS} runs ended as undisturbed; {len(asked)} requests to targets, handled "
            f"{handled} times, each under one CID; {repeats} runs replied more than once, with the same"
        )
    except AssertionError:
        print(stage.logs())
        raise
    finally:
        clients.close()
        stage.close()


def cids_of(ledger: Path) -> dict[str, list[str]]:
    """What targets were asked for, with the CID of each time: under several, they would have done it more than once by their own count."""
    cids: dict[str, list[str]] = defaultdict(list)
    for file in ledger.iterdir():
        for line in file.read_text().splitlines():
            what, _, cid = line.rpartition(" ")
            cids[what].append(cid)
    return cids
