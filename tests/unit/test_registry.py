"""Finding services, naming them, and what an author is told when a class cannot be one."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from broker import ConfigurationError, ServiceDefinitionError
from broker.hosting import registry
from broker.hosting.registry import Registry
from broker.settings import Settings
from tests.support import unique


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write files into a services folder of a name of its own and load it."""
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    folder = tmp_path / unique("folder").replace(".", "_")

    def loader(files: dict[str, str] | str, **sections: object) -> Registry:
        for name, text in (files if isinstance(files, dict) else {"module.py": files}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("from broker import *\n" + textwrap.dedent(text))
        return registry.load(Settings.model_validate(sections), [str(folder)])

    yield loader
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def refused(load, text: str) -> str:
    with pytest.raises(ServiceDefinitionError) as caught:
        load(text)
    return str(caught.value)


def names(found: Registry) -> list[str]:
    return sorted(one.name for one in found)


def test_default_names_come_from_the_path(load) -> None:
    found = load(
        {
            "my_api.py": "class MyService(Service):\n  def handle(self): pass",
            "billing/tax_rates.py": "class VATLookup(Service):\n  def handle(self): pass",
            "billing/__init__.py": "class Root(Service):\n  def handle(self): pass",
            "plain/deep/er.py": "class X(Service):\n  async def handle(self): pass",
            "__init__.py": "class Top(Service):\n  def handle(self): pass",
        }
    )
    assert names(found) == [
        "billing.root",
        "billing.tax-rates.vat-lookup",
        "my-api.my-service",
        "plain.deep.er.x",
        "top",
    ]


def test_the_callback_convention_in_both_forms(load) -> None:
    found = load(
        """
        class A(Service):
            def handle(self): pass
        class AAsyncCallback(Service):
            def handle(self): pass
        class B(Service):
            name = 'explicit.b'
            def handle(self): pass
        class BAsyncCallback(Service):
            def handle(self): pass
        class C(Service):
            name = 'c'
            def handle(self): pass
        class Other(Service):
            name = 'c-async-callback'
            def handle(self): pass
        class LonelyAsyncCallback(Service):
            def handle(self): pass
        """
    )
    chosen = {one.name: found.default_callbacks(one) for one in found}
    assert chosen == {
        "module.a": ("module.a-async-callback",),
        "module.a-async-callback": (),
        "explicit.b": ("explicit.b-async-callback",),
        "explicit.b-async-callback": (),
        "c": ("c-async-callback",),
        "c-async-callback": (),
        "module.lonely-async-callback": (),
    }


def test_options_come_from_defaults_class_and_configuration_in_that_order(load) -> None:
    found = load(
        """
        class A(Service):
            concurrency = 5
            retry = None
            callback = 'x'
            def handle(self): pass
        """,
        defaults={"concurrency": 9, "timeout": 3},
        service={"module.a": {"timeout": 4}},
    )
    (definition,) = found
    assert (definition.concurrency, definition.timeout, definition.retry, definition.callbacks) == (5, 4, None, ("x",))


def test_bases_and_imported_classes_are_not_services(load) -> None:
    found = load(
        {
            "base.py": "class Base(Service):\n  name = 'base'\n  def helper(self): pass\nclass _Hidden(Service): pass",
            "real.py": "from .base import Base\nclass Real(Base):\n  def handle(self): pass",
        }
    )
    assert names(found) == ["real.real"]


def test_two_folders_of_one_name_do_not_mix(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    stem = unique("same").replace(".", "_")
    for number in ("one", "two"):
        folder = tmp_path / number / stem
        folder.mkdir(parents=True)
        (folder / "m.py").write_text(
            f"from broker import Service\nclass S(Service):\n  name = {number!r}\n  def handle(self): pass"
        )
    found = registry.load(Settings(), [f"one/{stem}", f"two/{stem}"])
    assert names(found) == ["one", "two"]


def test_a_file_and_a_dotted_module(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    stem = unique("pkg").replace(".", "_")
    (tmp_path / stem / "sub").mkdir(parents=True)
    for name in ("__init__.py", "sub/__init__.py"):
        (tmp_path / stem / name).write_text("")
    (tmp_path / stem / "sub" / "mod.py").write_text(
        "from broker import Service\nclass S(Service):\n  def handle(self): pass"
    )
    assert names(registry.load(Settings(), [f"{stem}.sub"])) == ["mod.s"]
    assert names(registry.load(Settings(), [f"{stem}.sub.mod"])) == ["mod.s"]
    assert names(registry.load(Settings(), [f"{stem}/sub/mod.py"])) == ["mod.s"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class A(Service):\n  def handle(self, order): pass", ["A (", "module.py:2)", "parameter `order` of `handle` has no annotation"]),
        ("class A(Service):\n  def handle(self, a: int, b: int): pass", ["not 2 (a: int, b: int)", "put them in a model"]),
        ("class A(Service):\n  def handle(self, *args: int): pass", ["plain parameter"]),
        ("class A(Service):\n  def handle(self, a: 'Missing'): pass", ["cannot be resolved", "Missing"]),
        ("class T: pass\nclass A(Service):\n  def handle(self, a: T): pass", ["pydantic cannot handle"]),
        ("class A(Service):\n  def handel(self): pass", ["has no `handle` method (it has `handel`)"]),
        ("class A(Service):\n  handle = 5", ["`handle` must be a method"]),
        ("class A(Service):\n  async def handle(self): yield 1", ["must not be a generator"]),
        ("class A(Service):\n  def handle(self): pass\n  def handle_error(self): pass", ["`handle_error` must be a method"]),
        ("class A(Service):\n  name = 'no spaces'\n  def handle(self): pass", ["A (", "' ' is not allowed"]),
        ("class A(Service):\n  name = 'amq.a'\n  def handle(self): pass", ["belong to RabbitMQ"]),
        ("class A(Service):\n  name = 'callbacks'\n  def handle(self): pass", ["one of ackback's own queues"]),
        ("class A(Service):\n  name = 5\n  def handle(self): pass", ["a name is a string, not int"]),
        ("class Ä(Service):\n  def handle(self): pass", ["'ä' is not allowed"]),
        ("class A(Service):\n  concurrency = 0\n  def handle(self): pass", ["A (", "concurrency", "greater than 0"]),
        ("class A(Service):\n  retry = 5\n  def handle(self): pass", ["`retry` must be a Retry or None"]),
        ("class A(Service):\n  callback = 'no spaces'\n  def handle(self): pass", ["callback: 'no spaces' cannot be a service's name"]),
        (
            "class A(Service):\n  name = 'same'\n  def handle(self): pass\nclass B(Service):\n  name = 'same'\n  def handle(self): pass",
            ["two services are named 'same': A (", "and B (", "rename one"],
        ),
        ("import nothing_of_that_name", ["cannot be imported: ModuleNotFoundError", "module.py:2"]),
        ("x = 1 / 0", ["cannot be imported: ZeroDivisionError: division by zero", "module.py:2"]),
        ("def broken(:", ["cannot be imported: SyntaxError", "module.py:2"]),
        ("import sys; sys.exit('no')", ["cannot be imported: SystemExit: no", "module.py:2"]),
    ],
)  # fmt: skip
def test_what_cannot_be_a_service_is_named_with_its_place(load, text: str, words: list[str]) -> None:
    told = refused(load, text)
    for word in words:
        assert word in told


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="neither a services folder '.*nowhere' nor a module 'nowhere'"):
        registry.load(Settings(), ["nowhere"])
    with pytest.raises(ConfigurationError, match="there is no services folder '.*no/where'"):
        registry.load(Settings(), ["no/where"])


def test_zatos_import_path_gives_our_service(load) -> None:
    found = load("from zato.server.service import Service\nclass A(Service):\n  def handle(self): pass")
    assert names(found) == ["module.a"]
