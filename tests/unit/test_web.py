"""What the page shows, as values: pictures, words, and what somebody should know."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from broker.protocol.deadletters import DeadLetter
from broker.protocol.message import Message
from broker.recording.lookup import Minute
from broker.recording.summary import DaemonLine, ServiceLine, Tally
from broker.recording.trace import tree
from broker.transport.interface import QueueState
from broker.web import charts, text
from broker.web.concerns import Backlog, concerns
from broker.web.server import is_loopback
from tests.unit.test_events import EVENTS

SECOND = 1_000_000
NOW = 1_000_000 * SECOND


def daemon(name: str, *, age: int = 1, state: str = "lives", version: str = "1.0", **services: str) -> DaemonLine:
    return DaemonLine(
        name, "host", 1, version, state, age > 12 and state != "stopped", NOW - age * SECOND, 0, 0.0, services
    )


def service(name: str, daemons: int = 1) -> ServiceLine:
    return ServiceLine(name, 0.0, None, None, None, 0, 0, 0, daemons)


def told(
    *, services: Any = (), daemons: Any = (), queues: Any = None, backlogs: Any = None
) -> list[tuple[str, str, str]]:
    return [one[:3] for one in concerns(services, daemons, queues or {}, backlogs or {}, NOW)]


def test_when_all_is_well_nothing_is_pointed_out() -> None:
    queues = {"a": QueueState(5, 1), "b": None, "dead-letters": QueueState(0, 0)}
    assert (
        told(
            services=[service("a")],
            daemons=[daemon("d", a="x"), daemon("gone", age=99, state="stopped", a="y")],
            queues=queues,
        )
        == []
    )


def test_what_is_bad_comes_before_what_is_odd() -> None:
    found = told(
        services=[service("a"), service("slow")],
        daemons=[daemon("d", a="x"), daemon("e", a="y", slow="s", version="2.0"), daemon("f", age=30)],
        queues={
            "a": QueueState(1, 1),
            "lost": QueueState(1, 0),
            "more": QueueState(4711, 0),
            "dead-letters": QueueState(1204, 0),
        },
        backlogs={
            "slow": Backlog(NOW - 100 * SECOND, NOW - 50 * SECOND, 2.0),
            "a": Backlog(NOW - 100 * SECOND, NOW - 50 * SECOND, 17.0),
        },
    )
    assert found == [
        ("bad", "silent", "f was last heard of 30 s ago, and has not said goodbye"),
        ("bad", "nobody", "1 message waits for lost, and no daemon hosts it"),
        ("bad", "nobody", "4,711 messages wait for more, and no daemon hosts it"),
        ("bad", "stalled", "slow has finished nothing for 50 s while messages wait; it usually takes 2 s"),
        ("odd", "two codes", "a is not the same code everywhere (module, class or input): d and e differ"),
        ("odd", "versions", "daemons run different versions of ackback: 1.0, 2.0"),
        ("odd", "dead letters", "1,204 to be replayed or dropped"),
    ]


def test_many_that_fell_silent_are_one_line() -> None:
    found = told(daemons=[daemon("a", age=30), daemon("b", age=20), daemon("c", age=40), daemon("d")])
    assert found == [
        ("bad", "silent", "3 daemons have not been heard of, and have not said goodbye, the last for 20 s")
    ]


@given(st.text())
def test_nothing_that_is_shown_is_markup_or_drives_anything(given_text: str) -> None:
    for shown in (text.shown(given_text), text.block(given_text)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert not {"<", ">", '"', "'"} & set(text.block(given_text))
    assert text.shown(Markup("<b>")) == "<b>"


@given(st.text())
def test_a_body_that_can_be_edited_comes_back_as_it_was(body: str) -> None:
    try:
        found = text.editable(body.encode())
    except UnicodeEncodeError:
        return
    if found is not None:
        as_browsers_send_it = str(text.field(found)).removeprefix("\n").replace("\n", "\r\n")
        assert Markup(as_browsers_send_it).unescape().replace("\r\n", "\n") == body


def test_what_no_form_can_hold_is_not_edited() -> None:
    assert [text.editable(body) for body in (b"a\r\nb", b"\x00", b"\xff", b"\x1b[31m")] == [None] * 4


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.millis(None), text.NOTHING),
        (text.millis(0.0258), "0.03"),
        (text.millis(26.44), "26.4"),
        (text.millis(12345.6), "12,346"),
        (text.decimal(0), "0"),
        (text.size(1), "1 byte"),
        (text.size(10_485_760), "10.0 MiB"),
        (text.size(2048), "2.0 KiB"),
        (text.count(1, "kind"), "1 kind"),
        (text.count(1204, "dead letter"), "1,204 dead letters"),
        (text.clock(SECOND * 86_400), "01-02 00:00:00"),
        (text.exactly(SECOND * 86_400 + 1000), "1970-01-02 00:00:00.001 UTC"),
        (text.readable(b"\xffa"), "\\xffa"),
    ],
)
def test_words(shown: str, expected: str) -> None:
    assert shown == expected


def minute(number: int, handled: int, failures: int = 0) -> Minute:
    tally = Tally()
    for at in range(handled):
        tally.add(10.0, at < failures)
    return Minute(number, tally)


def test_the_last_hour_as_columns() -> None:
    spark = charts.spark([minute(939, 9), minute(941, 10), minute(1000, 20, 5)], 1000)
    assert spark.text == "30 handled in the last hour, 5 of them failed"
    assert spark.handled == "M0 18v-9h2v9zM118 18v-18h2v18z"
    assert spark.failures == "M118 18v-4.5h2v4.5z"


def test_a_services_history() -> None:
    rates, times = charts.history([minute(1000, 120, 60)], 1000, "1h")
    assert (rates.top, times.top, rates.is_empty) == ("2 /s", "20 ms", False)
    assert rates.labels == ["60 min ago", "45 min ago", "30 min ago", "15 min ago", "now"]
    assert rates.lines["handled"].endswith("v-120h12v120z") and rates.lines["failures"].endswith("v-60h12v60z")
    assert charts.history([], 1000, "7d")[0].is_empty
    assert charts.history([], 1000, "7d")[0].labels[0] == "7 days ago"


@given(EVENTS, st.data())
def test_every_bar_of_a_timeline_is_within_it(events: list[dict[str, Any]], data: st.DataObject) -> None:
    cids = [one["cid"] for one in events if one["event"] != "daemon"]
    root = tree(events, data.draw(st.sampled_from(cids))) if cids else None
    if root is not None:
        drawn = charts.timeline(root, data.draw(st.integers(0, 2**53)))
        assert drawn.rows
        for bar in (bar for row in drawn.rows for bar in row.bars):
            assert bar.x >= 0 and bar.width > 0 and bar.x + bar.width <= 100.01


def dead(detail: str, service: str = "a", **more: Any) -> DeadLetter:
    error = f'{{"title": "LookupError", "detail": {json.dumps(detail)}}}'
    headers = {"dead-reason": "error", "dead-service": service, "dead-error": error}
    return DeadLetter.of(Message(b"", headers, correlation_id="4711", **more))


def test_kinds_of_dead_letters() -> None:
    same = [
        "no price for 'boat', article 17, order 9f86d081884c7d65 from 10.0.0.7:5672",
        "no price for 'tea', article 4,711, order 9f86d081-884c-7d65 from 10.0.0.8:5672",
    ]
    assert len({dead(one).kind.key for one in same}) == 1
    assert dead(same[0]).kind.detail == "no price for …, article …, order … from …"
    assert len({dead(one).kind.key for one in ("no price", "no stock")}) == 2
    assert dead("x").kind.key != dead("x", "b").kind.key
    assert dead("x", message_id="1").key != dead("x", message_id="2").key
    assert dead("x", message_id="1").key == dead("x", message_id="1").key


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("host.example", False),
    ],
)
def test_who_can_reach_an_address(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours
