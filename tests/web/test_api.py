"""The page for programs: JSON as it is described, and figures for Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker import Client
from tests.integration.conftest import Process, node_modules, npm_install, wait_until
from tests.integration.test_metrics import prometheus_is_there
from tests.web.conftest import Site

__all__ = ["node_modules", "prometheus_is_there"]
PARSER = """
const parser = require("@apidevtools/swagger-parser");
parser.validate(JSON.parse(require("fs").readFileSync(0))).then(() => console.log("valid"), (error) => console.log(error.message));
"""


BESIDE = """
from broker import Service, every

class Delivery(Service):
    name = "shop.delivery"
    durable = True

    async def handle(self, item: str) -> str:
        return await self.wait_for("delivered")

class Report(Service):
    name = "shop.report"
    schedule = every(days=1)

    async def handle(self) -> None:
        pass
"""


@pytest.fixture
def site(shop: Path, web: Callable[..., Site], start: Callable[..., Process], rabbitmq_url: str) -> Site:
    """The page of a shop in which one order went well and one did not."""
    (shop / "services" / "beside.py").write_text(BESIDE)
    found = web()
    start("run").wait_for("what is scheduled is fired here")
    with Client(rabbitmq_url) as client:
        client.invoke_async("shop.delivery", "tea", cid="order-1")
        client.invoke_many("shop.order", [{"item": "tea"}, {"item": "boat"}])
    wait_until(lambda: found.json("/api/failures")["count"] == 1)
    wait_until(lambda: len([one for one in found.json("/api/services") if one["rate"]]) == 4)
    wait_until(lambda: found.json("/api/services/shop.price")["about"])
    return found


def test_its_description_is_valid(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    modules = npm_install(tmp_path_factory.mktemp("node"), "@apidevtools/swagger-parser", "^12 || ^13")
    text = json.dumps(site.json("/api/openapi.json"))
    done = subprocess.run(["node", "-e", PARSER], cwd=modules, input=text, capture_output=True, text=True, timeout=60)
    assert done.stdout == "valid\n", done.stdout + done.stderr


def test_it_answers_as_it_is_described(site: Site) -> None:
    document = site.json("/api/openapi.json")
    (group,) = site.json("/api/failures")["groups"]
    (dead,) = site.json(f"/api/failures/groups/{group['key']}")["dead_letters"]
    site.post(f"/failures/{dead['key']}/replay", site.token("/failures"))
    wait_until(lambda: site.json("/api/failures")["count"] == 1)
    (dead,) = site.json(f"/api/failures/groups/{group['key']}")["dead_letters"]
    wait_until(lambda: site.json("/api/concerns"))  # there were none while the dead letter was under way
    values = {"name": "shop.price", "kind": group["key"], "key": dead["key"], "cid": dead["cid"]}
    for path, operations in document["paths"].items():
        of = values | {"cid": "order-1"} if path.startswith("/api/runs") else values
        answer = site.json(re.sub(r"\{(\w+)\}", lambda match, of=of: of[match[1]], path))  # type: ignore[misc]
        schema = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer, path
        assert_is_as_described(answer, schema, document, path)
    assert site.ask("POST", "/api/services", {})[0] == 405


def assert_is_as_described(value: Any, schema: dict[str, Any], document: dict[str, Any], where: str) -> None:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, types[one]) for one in wanted), (where, value)
    if isinstance(value, list):
        for one in value:
            assert_is_as_described(one, schema["items"], document, f"{where}[]")
    for name, of_property in schema.get("properties", {}).items():
        assert_is_as_described(value[name], of_property, document, f"{where}.{name}")


@pytest.mark.usefixtures("prometheus_is_there")
def test_figures_of_the_whole_cluster(site: Site) -> None:
    text = site.ask("GET", "/metrics")[2]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert 'ackback_cluster_handling_seconds{percentile="95",service="shop.price"}' in text
    for line in (
        'ackback_cluster_ready_messages{queue="shop.price"} 0.0',
        'ackback_cluster_hosting_daemons{service="shop.price"} 1.0',
        'ackback_cluster_daemons{state="lives"} 1.0',
        'ackback_cluster_daemons{state="silent"} 0.0',
        "ackback_cluster_dead_letters 1.0",
        'ackback_cluster_concerns{grade="odd"} 1.0',
        "ackback_cluster_record_read 1.0",
    ):
        wait_until(lambda line=line: line in site.ask("GET", "/metrics")[2])
