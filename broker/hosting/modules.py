"""Importing the modules that services are in, from folders, files and dotted names."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from broker.errors import ConfigurationError, ServiceDefinitionError

_OURS = str(Path(__file__).parent.parent) + os.sep


def modules(path: str, base: Path) -> Iterator[tuple[ModuleType, str]]:
    """The modules that `path`, a folder, a file or a dotted name, leads to, each with the path that names begin with."""
    folder = (base / path).resolve()
    if folder.is_dir():
        package = _mount(folder)
        yield from _package(package, "")
    elif folder.is_file() and folder.suffix == ".py":
        package = _mount(folder.parent)
        yield _import(f"{package.__name__}.{folder.stem}", str(folder)), folder.stem
    elif all(part.isidentifier() for part in path.split(".")):
        module = _import_dotted(path, base)
        is_package = hasattr(module, "__path__")
        yield from _package(module, "") if is_package else [(module, path.rpartition(".")[2])]
    else:
        raise ConfigurationError(
            f"there is no services folder {str(folder)!r}; make it, or say where the services are: ackback run PATH"
        )


def _package(package: ModuleType, prefix: str) -> Iterator[tuple[ModuleType, str]]:
    yield package, prefix
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module_path = f"{prefix}.{info.name}" if prefix else info.name
        module = _import(f"{package.__name__}.{info.name}", f"{package.__path__[0]}/{info.name}")
        if info.ispkg:
            yield from _package(module, module_path)
        else:
            yield module, module_path
    yield from _plain_folders(package, prefix)


def _plain_folders(package: ModuleType, prefix: str) -> Iterator[tuple[ModuleType, str]]:
    # pkgutil does not see folders without an __init__.py, which are packages all the same.
    for location in package.__path__:
        for folder in sorted(Path(location).iterdir()):
            name = folder.name
            if (
                not folder.is_dir()
                or not name.isidentifier()
                or name.startswith("__")
                or (folder / "__init__.py").exists()
            ):
                continue
            if any(folder.rglob("*.py")):
                module = _import(f"{package.__name__}.{name}", str(folder))
                yield from _package(module, f"{prefix}.{name}" if prefix else name)


def _mount(folder: Path) -> ModuleType:
    """Make a folder importable under its own name, or a name like it where another module has that one already."""
    stem = folder.name if folder.name.isidentifier() else "services"
    for number in range(1, 1000):
        name = stem if number == 1 else f"{stem}_{number}"
        if (module := sys.modules.get(name)) is not None:
            if [str(folder)] == list(getattr(module, "__path__", ())):
                return module
            continue
        if number == 1 and not _is_free(name, folder):
            continue
        return _new_package(name, folder)
    raise ConfigurationError(f"{folder} cannot be imported: too many folders of that name")


def _is_free(name: str, folder: Path) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    return spec is None or str(folder) in list(spec.submodule_search_locations or ())


def _new_package(name: str, folder: Path) -> ModuleType:
    init = folder / "__init__.py"
    location = str(init) if init.exists() else None
    if location:
        spec = importlib.util.spec_from_file_location(name, location, submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
    else:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    module = importlib.util.module_from_spec(spec)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    if spec.loader is not None:
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            raise _import_failed(error, str(init)) from error
    return module


def _import(name: str, location: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _import_failed(error, location) from error


def _import_dotted(path: str, base: Path) -> ModuleType:
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    try:
        found = importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        found = False
    except Exception as error:
        raise _import_failed(error, path) from error
    if not found:
        raise ConfigurationError(
            f"there is neither a services folder {str(base / path)!r} nor a module {path!r}; make one, or say where the "
            "services are: ackback run PATH"
        )
    return _import(path, path)


def _import_failed(error: BaseException, location: str) -> ServiceDefinitionError:
    """Name the file and line that raised: the last frame that is neither the import system's nor ours."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "importlib" not in f.filename and not f.filename.startswith(_OURS)
        ]
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else location
    return ServiceDefinitionError(f"a services module cannot be imported: {type(error).__name__}: {error} ({place})")
