"""The attacks. Each does its worst to a stage and returns what has to hold at the end, besides that nothing is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from broker import Client
from tests.faults import garbage
from tests.faults.ledger import ACCEPTED, Account, cid_of
from tests.faults.load import CALLBACK
from tests.faults.nodes import Node
from tests.faults.proxy import BadNetwork
from tests.faults.stage import Stage

Check = Callable[[Account], object]
RATE = 250.0
MIXED = "raise:10"
FLAT = 32 << 20
MANY = """
from broker import Service

class Many(Service):
    name = 'faults.many.{0}'

    def handle(self) -> None:
        pass
"""


@dataclass
class Attack:
    """`scale` is 1 in the short form."""

    stage: Stage
    nodes: list[Node]
    scale: int
    network: BadNetwork | None = None

    @property
    def node(self) -> Node:
        return self.nodes[0]

    def load(self, seconds: float = 2.0, jobs: str = MIXED) -> None:
        self.stage.load(int(RATE * seconds * self.scale), RATE, jobs)


def no_more(_: Account) -> None:
    """Nothing is lost: that is all."""


def never_twice(account: Account) -> None:
    assert account.repeated == 0, f"{account.repeated} repeated"


def kill_daemons(attack: Attack) -> Check:
    for _ in range(2):
        attack.stage.daemon()
    attack.load()
    rng = attack.stage.rng
    attack.stage.break_things(3 * attack.scale + 1, lambda: rng.choice(attack.stage.daemons).kill(), (0.2, 1.0))
    return no_more


def kill_the_parent_of_workers(attack: Attack) -> Check:
    parent = attack.stage.daemon("--workers", "2")
    attack.load()
    attack.stage.break_things(attack.scale, parent.kill, (0.5, 2.0))
    return no_more


def drain_under_load(attack: Attack) -> Check:
    daemons = [attack.stage.daemon() for _ in range(2)]
    attack.load()

    def drain() -> None:
        daemon = attack.stage.rng.choice(daemons)
        ready = daemon.log.read_text().count("ready: ")
        daemon.terminate()
        daemon.wait_ready(ready + 1)

    attack.stage.break_things(2 * attack.scale, drain, (0.1, 0.5))

    def check(account: Account) -> None:
        never_twice(account)
        codes = [code for daemon in daemons for code in daemon.exit_codes]
        assert set(codes) == {0}, codes

    return check


def kill_a_client(attack: Attack) -> Check:
    attack.stage.daemon()
    attack.load()
    attack.stage.break_things(2, attack.stage.kill_a_load, (0.7, 1.5))
    return never_twice


def kill_the_broker(attack: Attack) -> Check:
    attack.stage.daemon()
    attack.load(4.0)

    def kill() -> None:
        attack.node.kill()
        attack.node.start()

    attack.stage.break_things(attack.scale, kill, (0.8, 1.5))
    return no_more


def close_every_connection(attack: Attack) -> Check:
    attack.stage.daemon()
    attack.load()
    close = ("close_all_connections", "attacked")
    attack.stage.break_things(2 * attack.scale, lambda: attack.node.ctl(*close) and None, (0.3, 1.0))
    return no_more


def once_each(attack: Attack) -> Check:
    """Connections are lost and messages come again, to the one daemon or the other: an idempotent service handles each once."""
    for _ in range(2):
        attack.stage.daemon()
    attack.load(jobs="once:1")
    close = ("close_all_connections", "attacked")
    attack.stage.break_things(2 * attack.scale, lambda: attack.node.ctl(*close) and None, (0.3, 1.0))

    def check(account: Account) -> None:
        others = {n: account.effects[n] for n in account.accepted if account.effects[n] != 1}
        assert not others, f"not handled once: {others}"

    return check


def delete_queues(attack: Attack) -> Check:
    """What was in a queue when it was deleted is gone: whoever deletes is told how many these were, and no more are lost."""
    attack.stage.daemon()
    attack.stage.patience = 8.0  # what is gone is not waited for
    attack.load()
    # Not ackback.due: what RabbitMQ is just moving to a queue that is deleted, it tries again three minutes later. It is not lost.
    queues = ["faults.work", "callbacks", "ackback.later.00", "faults.told"]

    def delete() -> None:
        attack.stage.delete_queue(queues[attack.stage.faults % len(queues)])

    attack.stage.break_things(len(queues) * attack.scale, delete, (0.2, 0.6))

    return no_more


def attack_the_record(attack: Attack) -> Check:
    """The flight recorder's stream is deleted again and again, or is a queue that refuses: no work is done twice, and nothing grows."""
    stage = attack.stage
    stage.delete_record()
    stage.refuse_to_record()
    daemon = stage.daemon()
    attack.load(2.0)
    stage.until(lambda account: len(account.ok) > 50)
    early = daemon.resident()
    stage.break_things(3 * attack.scale, stage.delete_record, (0.3, 0.6))

    def check(account: Account) -> None:
        never_twice(account)
        assert not daemon.exit_codes, daemon.exit_codes
        assert daemon.resident() < early + FLAT, f"{early >> 20} MiB at first, {daemon.resident() >> 20} MiB at last"

    return check


def servers_that_echo_nothing(attack: Attack) -> Check:
    """Their replies come by way of a queue that names the callback: it is deleted, the server killed, the daemons are, and some callbacks
    nobody hosts."""
    stage = attack.stage
    for _ in range(2):
        stage.daemon()
    stage.serve("tests.faults.legacy", stage.urls[0])
    stage.load(int(100 * 2.0 * attack.scale), 100, "unheard:10,legacy:1", ("client", "async"))
    faults: list[Callable[[], object]] = [
        lambda: stage.delete_queue(f"callbacks.for.{CALLBACK}"),
        lambda: stage.serve("tests.faults.legacy", stage.urls[0]),
        lambda: stage.rng.choice(stage.daemons).kill(),
        lambda: attack.node.ctl("close_all_connections", "attacked"),
    ]
    stage.break_things(len(faults) * attack.scale, lambda: faults[stage.faults % len(faults)]() and None, (0.2, 0.5))

    def check(account: Account) -> None:
        assert not set(account.ok) & set(account.dead)
        assert all(number % 10 == 9 for number in account.dead), account.dead
        assert account.repeated >= len(account.ok) // 4, account.repeated

    return check


def poison(attack: Attack) -> Check:
    for _ in range(2):
        attack.stage.daemon()
    attack.load(2.0, "kill:150,raise:10")

    def check(account: Account) -> None:
        for number in account.accepted:
            innocent = number % 150 != 149 and number % 10 != 9
            assert innocent == (number in account.ok), f"number {number}"

    return check


def expired(attack: Attack) -> Check:
    stage = attack.stage
    daemon = stage.daemon(again=False)
    daemon.terminate()
    daemon.process.wait(30)
    with Client(stage.urls[0]) as client:
        numbers = range(100 * attack.scale)
        for number in numbers:
            job = {"number": number}
            client.invoke_async("faults.work", job, callback=CALLBACK, cid=cid_of(number, stage.run), expiration=0.2)
            stage.ledger.note(ACCEPTED, number)
    stage.until(lambda _: not stage.depth("faults.work"))
    stage.daemon()
    stage.until(
        lambda account: len(account.error) == len(numbers)
    )  # a dead letter may be there before its callback is done

    def check(account: Account) -> None:
        assert set(account.error) == set(account.dead) == set(numbers)
        never_twice(account)

    return check


def alarms(attack: Attack) -> Check:
    attack.stage.daemon()
    attack.load()
    ctl, rng = attack.node.ctl, attack.stage.rng
    policy = ("full", "^(faults.work|callbacks)$", '{"max-length": 10}', "--apply-to", "queues")
    hard = {
        "memory": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.6")),
        "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")),
        "full": (("set_policy", *policy), ("clear_policy", "full")),
    }

    def raise_and_clear() -> None:
        raised, cleared = list(hard.values())[attack.stage.faults % len(hard)]
        ctl(*raised)
        time.sleep(rng.uniform(0.5, 1.5))
        ctl(*cleared)

    attack.stage.break_things(len(hard) * attack.scale, raise_and_clear, (0.1, 0.3))
    return no_more


def malformed(attack: Attack) -> Check:
    daemon = attack.stage.daemon()
    attack.load(2.0)
    count = 250 if attack.scale == 1 else 10_000
    url, rng = attack.stage.urls[0], attack.stage.rng
    garbage.send(url, count // 5, rng)
    early = daemon.resident()
    garbage.send(url, count, rng, first=count // 5)
    attack.stage.faults = attack.stage.garbage = count

    def check(account: Account) -> None:
        assert not daemon.exit_codes, daemon.exit_codes
        assert daemon.resident() < early + FLAT, f"{early >> 20} MiB at first, {daemon.resident() >> 20} MiB at last"
        missing = set(range(count)) - set(account.garbage)
        assert not missing, f"{len(missing)} without a trace: {sorted(missing)[:5]}"

    return check


def replay_while_killed(attack: Attack) -> Check:
    stage = attack.stage
    broken = stage.path / "broken"
    broken.touch()
    daemon = stage.daemon()
    attack.load(1.0, "flaky:1")
    stage.until(lambda account: not stage.loading() and set(account.accepted) == set(account.error))
    stage.until(lambda _: stage.depth("dead-letters") == len(stage.ledger.account().accepted))
    broken.unlink()
    command = [sys.executable, "-m", "broker", "dead", "replay", "--all"]
    for turn in range(3 * attack.scale + 30):
        replay = subprocess.Popen(command, cwd=stage.path, env=stage.environment, stderr=subprocess.DEVNULL)
        if turn < 3 * attack.scale:
            with suppress(subprocess.TimeoutExpired):
                replay.wait(stage.rng.uniform(0.7, 1.0))
            replay.kill()
            daemon.kill()
            stage.faults += 2
        if replay.wait() == 0:
            break

    def check(account: Account) -> None:
        assert set(account.ok) == set(account.accepted)

    return check


def bad_network(attack: Attack) -> Check:
    network = attack.network
    assert network is not None
    attack.stage.daemon()
    attack.load(3.0)

    def black_hole(*directions: str) -> None:
        network.swallow(*directions)
        time.sleep(5.0)  # the heartbeat of 2 s finds out

    def stutter(latency: float, piece: int) -> None:
        network.slow(latency, piece)
        time.sleep(1.5)

    faults: list[Callable[[], None]] = [
        network.cut_in_a_frame,
        network.cut_in_a_frame,
        lambda: stutter(0.05, 65536),
        lambda: stutter(0.0, 1),
        lambda: black_hole("up", "down"),
    ]
    if attack.scale > 1:
        faults.append(lambda: black_hole("down"))

    def worsen() -> None:
        network.mend()
        faults[attack.stage.faults % len(faults)]()
        network.mend()

    attack.stage.break_things(len(faults) * attack.scale, worsen, (0.3, 0.6))
    return no_more


def cluster_nodes(attack: Attack) -> Check:
    stage, nodes = attack.stage, attack.nodes
    stage.daemon()
    attack.load(8.0)
    in_turn = nodes if attack.scale > 1 else nodes[:1]
    for node in in_turn:  # whoever leads is among them; the clients are connected to the first
        time.sleep(stage.rng.uniform(0.5, 1.5))
        node.kill()
        time.sleep(stage.rng.uniform(0.5, 1.5))
        node.start()
        node.ctl("await_startup")
        stage.faults += 1
    for node in nodes if attack.scale > 1 else ():
        node.stop()
        node.start()
        node.ctl("await_startup")
        stage.faults += 1
    for node in nodes[1:]:
        node.kill()
        stage.faults += 1
    time.sleep(1.0)
    before = len(stage.ledger.account().accepted)
    time.sleep(2.0)
    after = len(stage.ledger.account().accepted)
    for node in nodes[1:]:
        node.start()
    assert after == before, f"{after - before} accepted without a majority"
    return no_more


def node_death(attack: Attack) -> Check:
    """One of three nodes dies and stays away, with its share of the connections and leaders of six daemons and thirty services."""
    stage, nodes = attack.stage, attack.nodes
    files = [stage.path / f"many{number}.py" for number in range(30)]
    for number, file in enumerate(files):
        file.write_text(MANY.format(number))
    for number in range(6):
        stage.daemon("tests.faults.services", *map(str, files[number::6]))
    listed = {
        "leaders": nodes[0].ctl("list_queues", "name", "leader"),
        "connections": nodes[0].ctl("list_connections", "pid"),
    }
    shares = {what: [text.count(node.name) for node in nodes] for what, text in listed.items()}
    attack.load(4.0)
    time.sleep(stage.rng.uniform(1.0, 2.0))
    nodes[1].kill()
    stage.faults += 1
    print(f"on the three nodes: {shares}")
    for what, counts in shares.items():
        assert sum(counts) >= 30 or what == "connections"
        assert max(counts) <= sum(counts) / 2, f"{what} on the nodes: {counts}"

    def bring_back(_: Account) -> None:
        nodes[1].start()
        nodes[1].ctl("await_startup")

    return bring_back


def maintenance(attack: Attack) -> Check:
    """Nodes are put into maintenance and back, first the one that the clients are connected to."""
    stage, nodes = attack.stage, attack.nodes
    for _ in range(2):
        stage.daemon()
    attack.load(4.0)
    for node in nodes if attack.scale > 1 else nodes[:1]:
        time.sleep(stage.rng.uniform(0.5, 1.0))
        node.ctl("drain", tool="rabbitmq-upgrade")
        time.sleep(stage.rng.uniform(1.0, 2.0))
        node.ctl("revive", tool="rabbitmq-upgrade")
        stage.faults += 1
    return no_more


SCENARIOS: dict[str, Callable[[Attack], Check]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        kill_daemons,
        kill_the_parent_of_workers,
        drain_under_load,
        kill_a_client,
        kill_the_broker,
        close_every_connection,
        once_each,
        delete_queues,
        attack_the_record,
        servers_that_echo_nothing,
        poison,
        expired,
        alarms,
        malformed,
        replay_while_killed,
        bad_network,
        node_death,
        maintenance,
        cluster_nodes,
    )
}
CLUSTERED = ("node-death", "maintenance", "cluster-nodes")
HAS_NETWORK = ("bad-network",)


def run(name: str, nodes: list[Node], transport: str, seed: int, scale: int = 1) -> dict[str, object]:
    """Play a scenario and return its row of the table.

    Raises:
        AssertionError: an invocation was lost, or something else did not hold.
    """
    rng = random.Random(f"{name} {transport} {seed}")
    urls = [node.url for node in nodes]
    network = BadNetwork(urls[0], rng) if name in HAS_NETWORK else None
    through = [f"{network.url}?heartbeat=2"] if network else None
    stage = Stage(urls, transport, rng, through)
    try:
        stage.purge()
        check = SCENARIOS[name](Attack(stage, nodes, scale, network))
        account = stage.settle()
        row = {"scenario": name, "transport": transport, "seed": seed, **stage.row(account)}
        assert not row["lost"], f"lost {sorted(account.lost)[:20]}, row {row}\n{stage.logs()}"
        try:
            check(account)
        except AssertionError as error:
            raise AssertionError(f"{error}, row {row}\n{stage.logs()}") from None
        return row
    finally:
        stage.close()
        if network:
            network.close()
