"""`ackback asyncapi`: valid by AsyncAPI's own parser, for this repository's services and for annotations of every kind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import npm_install

Ackback = Callable[..., subprocess.CompletedProcess[str]]
CHECK = """
const { Parser } = require('@asyncapi/parser');
const chunks = [];
process.stdin.on('data', (chunk) => chunks.push(chunk)).on('end', async () => {
  const { document, diagnostics } = await new Parser().parse(Buffer.concat(chunks).toString());
  const errors = diagnostics.filter((one) => one.severity === 0).map((one) => [one.path.join('/'), one.message]);
  const operations = document ? document.operations().all() : [];
  console.log(JSON.stringify({ errors, operations: operations.map((one) => [
    one.id(), one.channels().all()[0].address(), one.reply().channel().messages().all().length ]) }));
});
"""
EVERY_KIND = '''
    from __future__ import annotations
    import enum
    from collections.abc import Callable, Sequence
    from dataclasses import dataclass
    from datetime import date, datetime, timedelta
    from decimal import Decimal
    from typing import Annotated, Any, Literal
    from uuid import UUID
    from typing_extensions import TypedDict
    from pydantic import BaseModel, Field, AnyUrl
    from broker import Service, Reply
    class Colour(enum.Enum):
        RED="red"; BLUE="blue"
    @dataclass
    class Point:
        x: float
        y: float = 0
    class Pet(TypedDict, total=False):
        name: str
    class Cat(BaseModel):
        kind: Literal["cat"]
    class Dog(BaseModel):
        kind: Literal["dog"]; friend: Dog | None = None
    class Everything(BaseModel):
        a: int; b: float; c: Decimal; d: datetime; e: date; f: timedelta; g: UUID; h: bytes; i: Colour; j: tuple[int, str]; k: Point; l: Pet
        m: Annotated[Cat | Dog, Field(discriminator="kind")]; n: Any = None; o: dict[str, list[int]] = {}; p: set[int] = set(); q: AnyUrl | None = None
        r: Annotated[str, Field(pattern=r"^\\d+$", min_length=1, description="d")] = "1"
    class A(Service):
        """Takes everything.

        And more."""
        name = "every:thing/1"
        def handle(self, x: Everything) -> Everything: ...
    class B(Service):
        name = "every-thing-1"
        def handle(self, x: list[Point]) -> str: ...
    class C(Service):
        name = "callable"
        def handle(self, x: Any) -> Reply: ...
    class D(Service):
        name = "none"
        def handle(self): ...
    class E(Service):
        name = "bytes"
        def handle(self, x: bytes) -> None: ...
    class F(Service):
        name = "recursive"
        def handle(self, x: Dog | int | None) -> Sequence[Dog]: ...
'''


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    folder = npm_install(tmp_path_factory.mktemp("parser"), "@asyncapi/parser", "^3")
    (folder / "check.js").write_text(CHECK)

    def checked(document: str) -> dict[str, Any]:
        done = subprocess.run(
            ["node", "check.js"], cwd=folder, input=document, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return checked


def test_the_repositorys_services(
    project: Callable[..., Path], ackback: Ackback, check: Callable[[str], dict[str, Any]]
) -> None:
    project()
    printed = ackback("asyncapi", "--title", "The shop", "--api-version", "2.1")
    told = check(printed.stdout)
    assert told["errors"] == []
    assert ["orders.price", "orders.price", 2] in told["operations"]
    document = json.loads(printed.stdout)
    assert (document["info"]["title"], document["info"]["version"]) == ("The shop", "2.1")
    messages = document["components"]["messages"]
    assert messages["orders.price.request"]["payload"] == {"$ref": "#/components/schemas/Order"}
    assert messages["orders.price.reply"]["payload"] == {"$ref": "#/components/schemas/Quote-Output"}
    assert "guest" not in printed.stdout
    queue = document["channels"]["orders.price"]["bindings"]["amqp"]["queue"]
    assert (queue["name"], queue["durable"]) == ("orders.price", True)


def test_annotations_of_every_kind(
    project: Callable[..., Path], ackback: Ackback, check: Callable[[str], dict[str, Any]]
) -> None:
    project({"every.py": EVERY_KIND})
    printed = ackback("asyncapi")
    told = check(printed.stdout)
    assert told["errors"] == []
    assert sorted(told["operations"]) == [
        ["bytes", "bytes", 2],
        ["callable", "callable", 2],
        ["every-thing-1", "every-thing-1", 2],
        ["every-thing-1-2", "every:thing/1", 2],
        ["none", "none", 2],
        ["recursive", "recursive", 2],
    ]
    document = json.loads(printed.stdout)
    operation = document["operations"]["every-thing-1-2"]
    assert (operation["summary"], operation["description"]) == ("Takes everything.", "And more.")
    messages, schemas = document["components"]["messages"], document["components"]["schemas"]
    assert messages["bytes.request"]["payload"]["type"] == "string"
    assert "its own" in messages["callable.reply"]["payload"]["description"]
    assert "takes the body as it comes" in messages["none.request"]["payload"]["description"]
    properties = schemas["Everything-Input"]["properties"]
    assert properties["r"] == {
        "default": "1",
        "description": "d",
        "minLength": 1,
        "pattern": r"^\d+$",
        "title": "R",
        "type": "string",
    }
    assert properties["m"] == {
        "oneOf": [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog-Input"}],
        "title": "M",
    }
