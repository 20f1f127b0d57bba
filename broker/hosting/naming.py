"""The names of service classes: given, made from module and class, or looked up."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from broker.errors import ServiceDefinitionError
from broker.protocol.names import CALLBACK_CLASS_SUFFIX, callback_name, check_name, default_name
from broker.service import Callback, Service

# The same few names are invoked again and again.
_check_name = lru_cache(maxsize=4096)(check_name)


def name_of(service: Callback, names: Mapping[type[Service], str], own_queues: frozenset[str] = frozenset()) -> str:
    """See `Registry.name_of`; `names` are those of the classes that are hosted."""
    if isinstance(service, str):
        return _check_name(service, own_queues)
    cls = service if isinstance(service, type) else type(service)
    if not issubclass(cls, Service):
        raise ServiceDefinitionError(
            f"a service is given by its name, its class or an instance, not by a {cls.__name__}"
        )
    if cls in names:
        return names[cls]
    if explicit := cls.__dict__.get("name"):
        return check_name(explicit, own_queues)
    raise ServiceDefinitionError(
        f"{where(cls)} has no `name` of its own and is not hosted by this process, so its name is not known here; "
        "give the class a `name`, or pass the name as a string"
    )


def checked_name(
    cls: type[Service], module_path: str, siblings: Mapping[type[Service], str], own_queues: frozenset[str]
) -> str:
    try:
        return check_name(_name(cls, module_path, siblings), own_queues)
    except ServiceDefinitionError as error:
        raise ServiceDefinitionError(f"{where(cls)}: {error}") from None


def _name(cls: type[Service], module_path: str, siblings: Mapping[type[Service], str]) -> Any:
    # A subclass does not inherit a name: two services would have the same.
    if "name" in cls.__dict__:
        return cls.__dict__["name"]
    stem = cls.__name__.removesuffix(CALLBACK_CLASS_SUFFIX)
    if stem and stem != cls.__name__:
        for sibling, path in siblings.items():
            if sibling.__name__ == stem and sibling.__module__ == cls.__module__:
                source = _name(sibling, path, siblings)
                return callback_name(source) if isinstance(source, str) else source
    return default_name(module_path, cls.__name__)


def where(cls: type) -> str:
    """A class, and where it is written, for a message to a person."""
    try:
        return f"{cls.__qualname__} ({inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]})"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"
