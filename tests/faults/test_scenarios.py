"""A short form of every attack, on both transports that speak to RabbitMQ. `make soak` runs them long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.nodes import Node, cluster
from tests.faults.scenarios import CLUSTERED, SCENARIOS, run

SEED = 1


@pytest.fixture(scope="module")
def one_node() -> Iterator[list[Node]]:
    """A node that only one transport's attacks are played on, one after the other."""
    with cluster(1) as nodes:
        yield nodes


@pytest.mark.parametrize("transport", ["lane", "aio-pika"])
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in CLUSTERED])
def test_nothing_is_lost(name: str, transport: str, one_node: list[Node]) -> None:
    print(run(name, one_node, transport, SEED))


def test_nothing_is_lost_in_a_cluster() -> None:
    with cluster(3) as nodes:
        for name in CLUSTERED:
            print(run(name, nodes, "lane", SEED))
