"""Finding service classes, and those that this process hosts, by name."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from broker.errors import ServiceDefinitionError
from broker.hosting import zato
from broker.hosting.definition import ServiceDefinition, define
from broker.hosting.modules import modules
from broker.hosting.naming import checked_name, name_of, where
from broker.protocol.names import callback_name, name_problem
from broker.service import Callback, Service

if TYPE_CHECKING:
    from broker.settings import Settings


class Registry:
    """The services of this process, by name."""

    def __init__(self, definitions: Mapping[str, ServiceDefinition], callback_queue: str) -> None:
        self._definitions = dict(definitions)
        self._names = {definition.cls: name for name, definition in self._definitions.items()}
        self.own_queues = frozenset({callback_queue})

    def __iter__(self) -> Iterator[ServiceDefinition]:
        return iter(self._definitions.values())

    def __len__(self) -> int:
        return len(self._definitions)

    def __contains__(self, name: object) -> bool:
        return name in self._definitions

    def get(self, name: str) -> ServiceDefinition | None:
        return self._definitions.get(name)

    def nearest(self, name: str) -> str | None:
        """The hosted service whose name is most like `name`, for a hint."""
        near = difflib.get_close_matches(name, self._definitions, n=1, cutoff=0.6)
        return near[0] if near else None

    def name_of(self, service: Callback) -> str:
        """The name that a string, a class or an instance stands for.

        Raises:
            ServiceDefinitionError: it is none of these, or its name is not known or not possible.
        """
        return name_of(service, self._names, self.own_queues)

    def default_callbacks(self, definition: ServiceDefinition, elsewhere: Container[str] = ()) -> tuple[str, ...]:
        """Who gets the reply when an invocation of `definition`'s names nobody; empty if nobody does.

        `elsewhere` are callbacks by convention that other daemons host.
        """
        if definition.callbacks or not definition.by_convention:
            return definition.callbacks
        name = callback_name(definition.name)
        return (name,) if name in self or name in elsewhere else ()

    def convention_elsewhere(self, definition: ServiceDefinition) -> str | None:
        """The callback by convention that only another daemon can host; None if there is one here, or none is wanted."""
        name = callback_name(definition.name)
        is_open = definition.by_convention and not definition.callbacks and name not in self
        return name if is_open and name_problem(name) is None else None


def load(settings: Settings, paths: Sequence[str] | None = None) -> Registry:
    """Import every module that `paths` (else the configuration) names and register the services in them.

    Raises:
        ConfigurationError: a folder or module does not exist.
        ServiceDefinitionError: a module raises on import, or a class cannot be a service.
    """
    zato.install()
    found: list[tuple[str, type[Service]]] = []
    for path in paths if paths is not None else settings.services.paths:
        base = Path.cwd() if paths is not None else settings.folder
        for module, module_path in modules(path, base):
            found.extend((module_path, cls) for cls in _service_classes(module))
    return register(found, settings)


def register(classes: Iterable[tuple[str, type[Service]]], settings: Settings) -> Registry:
    """Name and define each class; the module path beside it is what a default name begins with.

    Raises:
        ServiceDefinitionError: two classes have one name, or a class cannot be a service.
    """
    unique = {cls: module_path for module_path, cls in classes}
    bases = {base for cls in unique for base in cls.__mro__[1:]}
    own_queues = frozenset({settings.callbacks.queue})
    names = {
        cls: checked_name(cls, module_path, unique, own_queues)
        for cls, module_path in unique.items()
        if not _is_base(cls, bases)
    }
    definitions: dict[str, ServiceDefinition] = {}
    for cls, name in names.items():
        if other := definitions.get(name):
            raise ServiceDefinitionError(
                f"two services are named {name!r}: {where(other.cls)} and {where(cls)}; rename one"
            )
        definitions[name] = define(cls, name, names, settings)
    return Registry(definitions, settings.callbacks.queue)


def _is_base(cls: type[Service], bases: set[type]) -> bool:
    if hasattr(cls, "handle"):
        return False
    if cls in bases or cls.__name__.startswith("_"):
        return True
    raise ServiceDefinitionError(
        f"{where(cls)} has no `handle` method{_similar_method(cls)}; write one, or begin the class's name with '_' "
        "if it is only a base for others"
    )


def _similar_method(cls: type[Service]) -> str:
    own = [name for name, value in vars(cls).items() if callable(value)]
    near = difflib.get_close_matches("handle", own, n=1, cutoff=0.6)
    return f" (it has `{near[0]}`)" if near else ""


def _service_classes(module: ModuleType) -> Iterator[type[Service]]:
    for value in list(vars(module).values()):
        if isinstance(value, type) and issubclass(value, Service) and value.__module__ == module.__name__:
            yield value
