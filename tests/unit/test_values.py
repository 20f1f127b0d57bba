"""Names, bodies, headers, CIDs and outcomes: pure functions of plain values."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from broker import Retry
from broker.backoff import backoff
from broker.errors import InvalidInputError, ServiceDefinitionError
from broker.protocol import amqp_value, bodies, deaths, outcomes, problems
from broker.protocol import headers as h
from broker.protocol.cids import derived_cid, new_cid, seed_of
from broker.protocol.message import Message
from broker.protocol.names import check_name, default_name, kebab_case, name_problem

names = st.text(alphabet="abcXYZ019._:/-", min_size=1, max_size=200).filter(lambda name: name_problem(name) is None)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


class Order(BaseModel):
    item: str
    quantity: int = 1


# Names


@pytest.mark.parametrize(
    ("class_name", "kebab"),
    [
        ("MyService", "my-service"),
        ("VATLookup", "vat-lookup"),
        ("HTTPServer2Client", "http-server2-client"),
        ("A", "a"),
        ("My_Thing", "my-thing"),
        ("XAsyncCallback", "x-async-callback"),
    ],
)
def test_kebab_case(class_name: str, kebab: str) -> None:
    assert kebab_case(class_name) == kebab


def test_default_names() -> None:
    assert default_name("billing.tax_rates", "VATLookup") == "billing.tax-rates.vat-lookup"
    assert default_name("", "Ping") == "ping"


@given(names)
def test_good_names_are_taken_as_they_are(name: str) -> None:
    assert check_name(name) == name


@given(st.text(max_size=300) | st.integers() | st.none())
def test_any_other_name_is_refused_or_fits_amqp(name: object) -> None:
    try:
        checked = check_name(name)
    except ServiceDefinitionError as error:
        assert "cannot be a service's name" in str(error)
        assert len(str(error)) < 300
    else:
        assert 1 <= len(checked.encode("ascii")) <= 200


def test_own_queues_are_taken() -> None:
    for name in ("callbacks", "dead-letters", "ackback.undertaker", "amq.topic"):
        with pytest.raises(ServiceDefinitionError):
            check_name(name, frozenset({"callbacks"}))


# Bodies


@given(json_values)
def test_what_is_encoded_decodes_to_the_same(value: Any) -> None:
    body, content_type = bodies.encode(value)
    assert bodies.decode(Message(body, content_type=content_type)) == value
    assert content_type == ("text/plain" if isinstance(value, str) else "application/json")


@given(st.binary())
def test_bytes_go_through_untouched(value: bytes) -> None:
    body, content_type = bodies.encode(value)
    assert (bodies.decode(Message(body, content_type=content_type)), content_type) == (
        value,
        "application/octet-stream",
    )


@given(
    st.binary(),
    st.sampled_from([None, "application/json", "text/plain", "text/xml; charset=latin-1", "image/png", "x", ";"]),
)
def test_any_body_decodes_or_is_invalid(body: bytes, content_type: str | None) -> None:
    message = Message(body, content_type=content_type)
    try:
        bodies.decode(message)
    except InvalidInputError:
        assert content_type is not None


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "payload"),
    [
        (b'{"a": 1}', None, None, {"a": 1}),
        (b"{broken", None, None, "{broken"),
        (b"\xff", None, None, b"\xff"),
        (b"", None, None, ""),
        (b"", "application/json", None, ""),
        (b"", "image/png", None, b""),
        (b"[1]", "application/vnd.api+json; charset=utf-8", None, [1]),
        (b"[1]", "text/csv", None, "[1]"),
        ("ä".encode("latin-1"), "text/plain; charset=latin-1", None, "ä"),
        (b"text", "text/plain", "utf-8", "text"),
        (b"[1]", "application/json", "binary", [1]),
        (b"<a/>", "application/xml", None, b"<a/>"),
    ],
)
def test_the_content_type_decides(body: bytes, content_type: str | None, encoding: str | None, payload: Any) -> None:
    assert bodies.decode(Message(body, content_type=content_type, content_encoding=encoding)) == payload


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "words"),
    [
        (
            b"{",
            "application/json",
            None,
            "not JSON: Expecting property name enclosed in double quotes at line 1 column 2",
        ),
        (b"\xff", "application/json", None, "not JSON"),
        (b"[" * 100_000, "application/json", None, "nested too deeply"),
        (b"\xff", "text/plain", None, "not text in utf-8"),
        (b"x", "text/plain; charset=klingon", None, "character set 'klingon' is not known"),
        (b"x", "text/plain; charset=zlib", None, "character set 'zlib' is not known"),
        (b"x", None, "gzip", "content encoding 'gzip' is not supported"),
    ],
)
def test_what_is_not_what_it_says_is_invalid(body: bytes, content_type: str, encoding: str | None, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        bodies.decode(Message(body, content_type=content_type, content_encoding=encoding))


@pytest.mark.parametrize(
    ("annotation", "body", "content_type", "value"),
    [
        (Order, b'{"item": "x"}', "application/json", Order(item="x")),
        (Order, b'{"item": "x"}', "text/plain", Order(item="x")),
        (Order, b'{"item": "x"}', None, Order(item="x")),
        (str, b"5", "text/plain", "5"),
        (str, b"plain", None, "plain"),
        (str, b"5", None, "5"),
        (int, b"5", "text/plain", 5),
        (bytes, b"\xff", None, b"\xff"),
        (bytes, b"\xff", "image/png", b"\xff"),
        (Any, b"{}", None, {}),
        (Order | None, b"null", "application/json", None),
        (Decimal, b"1.10", "application/json", Decimal("1.10")),
    ],
)
def test_bodies_are_validated_against_the_annotation(
    annotation: Any, body: bytes, content_type: str | None, value: Any
) -> None:
    assert bodies.validate(Message(body, content_type=content_type), TypeAdapter(annotation)) == value


def test_an_invalid_body_is_told_by_place_and_never_by_value() -> None:
    with pytest.raises(InvalidInputError) as caught:
        bodies.validate(Message(b'{"item": ["hunter2"], "quantity": "hunter2"}'), TypeAdapter(Order))
    assert [one["loc"] for one in caught.value.errors] == [["item"], ["quantity"]]
    assert "hunter2" not in str(caught.value) + json.dumps(caught.value.errors)


def test_what_json_does_not_know_but_pydantic_does() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    value = {
        "point": Point(1),
        "id": UUID(int=1),
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "sum": Decimal("1.10"),
        "nan": math.nan,
    }
    assert json.loads(bodies.encode(value)[0]) == {
        "point": {"x": 1},
        "id": "00000000-0000-0000-0000-000000000001",
        "at": "2026-01-01T00:00:00Z",
        "sum": "1.10",
        "nan": None,
    }
    with pytest.raises(bodies.UnserialisableError, match="a dict cannot be sent as JSON"):
        bodies.encode({"x": object()})


# Headers

header_values = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.text() | st.integers())
)


@given(st.dictionaries(st.sampled_from(sorted(h.OWN)), header_values))
def test_headers_are_read_or_refused_and_what_is_echoed_can_be_read(headers: dict[str, Any]) -> None:
    try:
        h.read(Message(headers=headers))
    except InvalidInputError as error:
        assert "header '" in str(error)
    echoed = h.echoed_if_readable(headers)
    assert set(echoed) <= set(h.ECHOED)
    echoed.pop(h.SOURCE, None)  # any text is echoed, and read as no source by the next
    h.read(Message(headers=echoed))


def test_callback_names_are_taken_once_each_in_order() -> None:
    assert h.read(Message(headers={"callback": ["b", "a", "b"]})).callbacks == ("b", "a")
    assert h.read(Message(headers={"callback": "a"})).callbacks == ("a",)
    assert h.read(Message(headers={})).callbacks == ()


# CIDs


def test_new_cids_are_128_random_bits_in_hex() -> None:
    cids = {new_cid() for _ in range(100)}
    assert len(cids) == 100
    assert all(len(bytes.fromhex(cid)) == 16 for cid in cids)


@given(st.text(min_size=1), st.integers(0, 1000))
def test_derived_cids_depend_on_message_service_and_ordinal_alone(message_id: str, ordinal: int) -> None:
    def derive(service: str, message: Message, number: int) -> str:
        return derived_cid(seed_of(message, service, message.correlation_id or ""), number)

    message = Message(b"body", message_id=message_id, correlation_id="c")
    cid = derive("s", message, ordinal)
    assert cid == derive("s", Message(b"other", message_id=message_id, correlation_id="d"), ordinal)
    assert len(bytes.fromhex(cid)) == 16
    assert cid not in {
        derive("t", message, ordinal),
        derive("s", message, ordinal + 1),
        derive("s", Message(message_id=message_id + "x"), ordinal),
    }


# Outcomes


@given(st.text(max_size=30_000), st.text(max_size=5_000))
def test_a_dead_letters_headers_stay_small(traceback: str, detail: str) -> None:
    problem = problems.problem("error", "E", detail, "service")
    dead = outcomes.dead_letter(Message(b"x"), "error", problem, traceback).message
    told = json.loads(dead.headers["dead-error"])
    assert len(json.dumps(told.get("traceback", ""))) <= outcomes.MAX_TRACEBACK
    assert len(dead.headers["dead-error"]) < 32 * 1024
    assert traceback[-50:] in told.get("traceback", traceback)


def test_what_rabbitmq_would_act_on_again_is_set_aside_in_a_dead_letter() -> None:
    headers = {"CC": ["elsewhere"], "mine": 1, "x-delivery-count": 3}
    message = Message(b"x", headers=headers, expiration=500, user_id="erp", message_id="m")
    target, dead, _ = outcomes.dead_letter(message, "error", problems.problem("error", "E", "d", "s"))
    assert target == "dead-letters"
    assert dead.headers["dead-original"] == {"CC": ["elsewhere"], "expiration": "500", "user_id": "erp"}
    assert (dead.expiration, dead.user_id, dead.message_id, dead.headers["mine"]) == (None, None, "m", 1)
    assert not {"CC", "x-delivery-count"} & set(dead.headers)
    assert message.headers == headers  # the original is left alone


def test_a_reply_is_never_replied_to() -> None:
    reply = Message(b"x", reply_to="callbacks", headers={"status": "ok"}, correlation_id="c")
    assert outcomes.reply(reply, "s", b"", None) is None
    assert outcomes.failure(reply, "error", problems.problem("error", "E", "d", "s")).reply is None


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_failure_body_becomes_a_problem(body: bytes) -> None:
    problem = problems.from_json(body, "service")
    assert isinstance(problem.detail, str)
    assert isinstance(problem.attempts, int)


def test_a_problem_survives_the_wire() -> None:
    problem = problems.problem(
        "invalid", "Invalid input", "no", "s", 3, errors=({"loc": ["a", 1], "msg": "m", "type": "t"},)
    )
    assert problems.from_json(problems.to_json(problem, traceback="…"), "") == problem
    assert problem.reason == "invalid"


def test_the_undertaker_names_the_reason() -> None:
    def buried(reason: str, **more: Any) -> dict[str, Any]:
        message = Message(
            headers={"x-death": [{"reason": reason, "queue": "orders", "count": 1}], **more}, correlation_id="c"
        )
        dead = deaths.bury(message).dead
        assert dead is not None
        return dead.message.headers

    assert buried("expired")["dead-reason"] == "expired"
    limit = buried("delivery_limit", **{"x-delivery-count": 21})
    assert (limit["dead-reason"], limit["dead-service"], limit["dead-attempts"]) == ("delivery-limit", "orders", 21)
    assert buried("maxlen")["dead-reason"] == "error"
    nonsense = deaths.bury(Message(headers={"x-death": "nonsense"})).dead
    assert nonsense is not None
    assert "does not say why" in nonsense.message.headers["dead-error"]


# Arithmetic


def test_backoff_doubles_to_its_maximum() -> None:
    pauses = backoff(1.0, 8.0)
    for most in (1, 2, 4, 8, 8, 8):
        assert most / 2 <= next(pauses) <= most


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first": -1}, {"maximum": -1}, {"factor": 0.5}, {"jitter": 2}])
def test_retry_refuses_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Retry(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("7432800001", Decimal(1)),
        ("74b2800001", Decimal(-1)),
        ("74320000ff", Decimal("25.5")),
        ("8431c0000000000001", Decimal(1)),
        ("943040000000000000000000000000007b", Decimal(123)),
        ("747c000000", Decimal("NaN")),
    ],
)
def test_decimals_of_amqp_1_0(encoded: str, value: Decimal) -> None:
    assert str(amqp_value.decode(bytes.fromhex("005377" + encoded))) == str(value)
