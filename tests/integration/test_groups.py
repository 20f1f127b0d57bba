"""Two groups of daemons, each with a callback queue of its own, and clients that name either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest

from broker import Client
from broker.settings import Settings
from tests.integration.conftest import Process

GROUPS = ("north", "south")
SERVICES = """
    from broker import Service

    class Target(Service):
        name = 'target'

        def handle(self):
            return 'for ' + self.request.text
"""
TOLD = """
    from broker import Service

    class Told(Service):
        name = '{group}.told'

        def handle(self):
            self.logger.info('{group} was told %r', self.request.payload)
"""


def callbacks(group: str) -> str:
    return f"callbacks.{group}"


@pytest.fixture
def groups(
    project: Callable[..., Path], start: Callable[..., Process], rabbitmq_url: str
) -> Iterator[dict[str, Process]]:
    files = {f"{group}.py": TOLD.format(group=group) for group in GROUPS}
    folder = project({"target.py": SERVICES, **files})
    daemons = {}
    for group in GROUPS:
        services = (str(folder / "services" / f"{name}.py") for name in ("target", group))
        daemons[group] = start("run", *services, ACKBACK_CALLBACKS__QUEUE=callbacks(group))
    for group, daemon in daemons.items():
        assert f"callbacks on '{callbacks(group)}'" in daemon.wait_for("ready: ")[0]
    yield daemons
    for daemon in daemons.values():
        daemon.end()
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        for group in GROUPS:
            connection.channel().queue_delete(callbacks(group))
            connection.channel().queue_delete(f"ackback.quarantine.{callbacks(group)}")


def test_a_client_names_either_group_and_its_own_daemons_get_the_replies(
    groups: dict[str, Process], rabbitmq_url: str
) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        for group in GROUPS:
            properties = pika.BasicProperties(reply_to=callbacks(group), headers={"callback": f"{group}.told"})
            connection.channel().basic_publish("", "target", f"pika, {group}", properties)
    for group in GROUPS:
        settings = Settings.model_validate({"broker": {"url": rabbitmq_url}, "callbacks": {"queue": callbacks(group)}})
        with Client(settings=settings) as client:
            client.invoke_async("target", f"ackback, {group}", callback=f"{group}.told")
    for group in GROUPS:
        for who in ("pika", "ackback"):
            groups[group].wait_for(f"{group} was told 'for {who}, {group}'")


def test_a_callback_of_the_other_group_gets_its_reply_too(groups: dict[str, Process], rabbitmq_url: str) -> None:
    settings = Settings.model_validate({"broker": {"url": rabbitmq_url}, "callbacks": {"queue": callbacks("north")}})
    with Client(settings=settings) as client:
        client.invoke_async("target", "both", callback=["north.told", "south.told"])
    for group in GROUPS:
        groups[group].wait_for(f"{group} was told 'for both'")
