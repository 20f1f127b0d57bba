"""Zato's import path: `from zato.server.service import Service` gives ours, unless Zato itself is installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from broker.service import Service


def install() -> None:
    """Make `zato.server.service` importable. Does nothing where Zato, or an earlier call, provides it."""
    if "zato" in sys.modules or importlib.util.find_spec("zato") is not None:
        return
    service = ModuleType("zato.server.service", "ackback's Service under Zato's import path.")
    service.Service = Service  # type: ignore[attr-defined]
    server = _package("zato.server", service=service)
    sys.modules["zato"] = _package("zato", server=server)
    sys.modules["zato.server"] = server
    sys.modules["zato.server.service"] = service


def _package(name: str, **members: ModuleType) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = []
    vars(package).update(members)
    return package
