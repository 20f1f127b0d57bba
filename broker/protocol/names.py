"""Service names, and the convention that finds a callback."""

from __future__ import annotations

import re

from broker.errors import ServiceDefinitionError

CALLBACK_SUFFIX = "-async-callback"
CALLBACK_CLASS_SUFFIX = "AsyncCallback"
DEAD_LETTERS = "dead-letters"
RESERVED_PREFIX = "ackback."
SCHEDULES = RESERVED_PREFIX + "schedules"
MAX_NAME_BYTES = 200
MAX_QUEUE_BYTES = 255

_FORBIDDEN = re.compile(r"[^A-Za-z0-9._:/-]")
_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def kebab_case(class_name: str) -> str:
    """`MyService` → `my-service`, `VATLookup` → `vat-lookup`."""
    return _WORD_BOUNDARY.sub("-", class_name).replace("_", "-").lower()


def default_name(module_path: str, class_name: str) -> str:
    """The name of a class that gives none: `billing.tax_rates`, `VATLookup` → `billing.tax-rates.vat-lookup`.

    `module_path` is relative to the services folder; empty for the folder's own `__init__.py`.
    """
    name = kebab_case(class_name)
    return f"{module_path.replace('_', '-')}.{name}" if module_path else name


def callback_name(source: str) -> str:
    """The callback service that the convention names for `source`."""
    return source + CALLBACK_SUFFIX


def name_problem(name: object, own_queues: frozenset[str] = frozenset()) -> str | None:
    """Say why `name` cannot be a service's name, or None if it can."""
    if not isinstance(name, str):
        return f"a name is a string, not {type(name).__name__}"
    if not name:
        return "it is empty"
    if bad := _FORBIDDEN.search(name):
        return f"{bad[0]!r} is not allowed; use letters, digits and . _ : / -"
    if len(name) > MAX_NAME_BYTES:
        return f"it has {len(name)} bytes; {MAX_NAME_BYTES} are allowed"
    if name.startswith("amq."):
        return "names that begin with 'amq.' belong to RabbitMQ"
    if name.startswith(RESERVED_PREFIX) or name == DEAD_LETTERS or name in own_queues:
        return "that name is taken by one of ackback's own queues"
    return None


def queue_problem(name: str) -> str | None:
    """Say why nobody's queue can have this name, or None if one can."""
    size = len(name.encode("utf-8", "surrogateescape"))
    return None if 0 < size <= MAX_QUEUE_BYTES else f"it has {size} bytes; 1 to {MAX_QUEUE_BYTES} are allowed"


def check_name(name: object, own_queues: frozenset[str] = frozenset()) -> str:
    """Return `name` if it can be a service's name.

    Raises:
        ServiceDefinitionError: it cannot; the message says why.
    """
    if problem := name_problem(name, own_queues):
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:80] + "…"
        raise ServiceDefinitionError(f"{shown} cannot be a service's name: {problem}")
    assert isinstance(name, str)
    return name
