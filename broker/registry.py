"""Finding service classes, and all that is worked out about each of them once."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import PydanticUndefined

from broker import compat
from broker.errors import ServiceDefinitionError
from broker.modules import modules
from broker.naming import CALLBACK_CLASS_SUFFIX, callback_name, check_name, default_name
from broker.retry import Retry
from broker.service import Callback, Callbacks, Service

if TYPE_CHECKING:
    from broker.settings import Settings

DEFAULTS: Mapping[str, Any] = {
    "concurrency": 50,
    "timeout": None,
    "retry": Retry(),
    "outbox": False,
    "idempotent": False,
    "callback": None,
    "callback_from": None,
}


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """A service as the process hosts it. `takes` and `returns` are None where `handle` has no annotation."""

    name: str
    cls: type[Service]
    is_async: bool
    has_parameter: bool
    default: Any
    takes: TypeAdapter[Any] | None
    returns: TypeAdapter[Any] | None
    concurrency: int
    timeout: float | None
    retry: Retry | None
    outbox: bool
    idempotent: bool
    callbacks: tuple[str, ...]
    callback_from: tuple[str, ...] | None

    @property
    def input_type(self) -> str:
        """The annotation of `handle`'s parameter, for display; `-` without one."""
        return _shown(inspect.signature(self.cls.handle).parameters, has=self.has_parameter)  # type: ignore[attr-defined]

    @property
    def output_type(self) -> str:
        """The return annotation of `handle`, for display; `-` without one."""
        annotation = inspect.signature(self.cls.handle).return_annotation  # type: ignore[attr-defined]
        return "-" if annotation is inspect.Signature.empty else _annotation(annotation)

    @property
    def handles_errors(self) -> bool:
        return hasattr(self.cls, "handle_error")


def _shown(parameters: Mapping[str, inspect.Parameter], *, has: bool) -> str:
    return _annotation(list(parameters.values())[1].annotation) if has else "-"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


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

    def default_callbacks(self, definition: ServiceDefinition) -> tuple[str, ...]:
        """Who gets the reply when an invocation of `definition`'s names nobody; empty if nobody does."""
        if definition.callbacks:
            return definition.callbacks
        by_convention = callback_name(definition.name)
        return (by_convention,) if by_convention in self else ()


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
        f"{_where(cls)} has no `name` of its own and is not hosted by this process, so its name is not known here; "
        "give the class a `name`, or pass the name as a string"
    )


def load(settings: Settings, paths: Sequence[str] | None = None) -> Registry:
    """Import every module that `paths` (else the configuration) names and register the services in them.

    Raises:
        ConfigurationError: a folder or module does not exist.
        ServiceDefinitionError: a module raises on import, or a class cannot be a service.
    """
    compat.install()
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
        cls: _checked_name(cls, module_path, unique, own_queues)
        for cls, module_path in unique.items()
        if not _is_base(cls, bases)
    }
    definitions: dict[str, ServiceDefinition] = {}
    for cls, name in names.items():
        if other := definitions.get(name):
            raise ServiceDefinitionError(
                f"two services are named {name!r}: {_where(other.cls)} and {_where(cls)}; rename one"
            )
        definitions[name] = _define(cls, name, names, settings)
    return Registry(definitions, settings.callbacks.queue)


def _is_base(cls: type[Service], bases: set[type]) -> bool:
    if hasattr(cls, "handle"):
        return False
    if cls in bases or cls.__name__.startswith("_"):
        return True
    raise ServiceDefinitionError(
        f"{_where(cls)} has no `handle` method{_similar_method(cls)}; write one, or begin the class's name with '_' "
        "if it is only a base for others"
    )


def _similar_method(cls: type[Service]) -> str:
    own = [name for name, value in vars(cls).items() if callable(value)]
    near = difflib.get_close_matches("handle", own, n=1, cutoff=0.6)
    return f" (it has `{near[0]}`)" if near else ""


def _checked_name(
    cls: type[Service], module_path: str, siblings: Mapping[type[Service], str], own_queues: frozenset[str]
) -> str:
    try:
        return check_name(_name(cls, module_path, siblings), own_queues)
    except ServiceDefinitionError as error:
        raise ServiceDefinitionError(f"{_where(cls)}: {error}") from None


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


def _define(cls: type[Service], name: str, names: Mapping[type[Service], str], settings: Settings) -> ServiceDefinition:
    handle = cls.handle  # type: ignore[attr-defined]
    parameter, hints = _signature(cls, handle)
    has_parameter = parameter is not None
    default = parameter.default if parameter and parameter.default is not parameter.empty else PydanticUndefined
    options = _options(cls, name, settings)
    if handle_error := getattr(cls, "handle_error", None):
        _check_handle_error(cls, handle_error)
    own_queues = frozenset({settings.callbacks.queue})
    return ServiceDefinition(
        name=name,
        cls=cls,
        is_async=inspect.iscoroutinefunction(handle),
        has_parameter=has_parameter,
        default=default,
        takes=_adapter(cls, hints[parameter.name]) if parameter else None,
        returns=_response_adapter(cls, hints.get("return")),
        concurrency=options["concurrency"],
        timeout=options["timeout"],
        retry=options["retry"],
        outbox=options["outbox"],
        idempotent=options["idempotent"],
        callback_from=None if options["callback_from"] is None else tuple(options["callback_from"]),
        callbacks=tuple(_callback_names(options["callback"], names, own_queues, cls)),
    )


def _signature(cls: type[Service], handle: Any) -> tuple[inspect.Parameter | None, dict[str, Any]]:
    if inspect.isasyncgenfunction(handle) or inspect.isgeneratorfunction(handle):
        raise ServiceDefinitionError(f"{_where(cls)}: `handle` must not be a generator; return the whole response")
    if not inspect.isfunction(handle) or isinstance(inspect.getattr_static(cls, "handle"), (staticmethod, classmethod)):
        raise ServiceDefinitionError(
            f"{_where(cls)}: `handle` must be a method: def handle(self) or async def handle(self)"
        )
    parameters = list(inspect.signature(handle).parameters.values())[1:]
    if len(parameters) > 1:
        listed = ", ".join(str(one) for one in parameters)
        raise ServiceDefinitionError(
            f"{_where(cls)}: `handle` takes the message's body as its one parameter besides self, not {len(parameters)} "
            f"({listed}); put them in a model"
        )
    if not parameters:
        return None, _hints(cls, handle)
    parameter = parameters[0]
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ServiceDefinitionError(
            f"{_where(cls)}: `handle` takes the body as a plain parameter, not as {str(parameter)!r}"
        )
    hints = _hints(cls, handle)
    if parameter.name not in hints:
        raise ServiceDefinitionError(
            f"{_where(cls)}: parameter `{parameter.name}` of `handle` has no annotation; annotate it with the type to validate "
            "the body against (Any for no validation), or take no parameter and use self.request.payload"
        )
    return parameter, hints


def _hints(cls: type[Service], handle: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(handle, include_extras=True)
    except Exception as error:
        raise ServiceDefinitionError(
            f"{_where(cls)}: the annotations of `handle` cannot be resolved: {error}"
        ) from None


def _check_handle_error(cls: type[Service], handle_error: Any) -> None:
    if not inspect.isfunction(handle_error) or len(inspect.signature(handle_error).parameters) != 2:
        raise ServiceDefinitionError(
            f"{_where(cls)}: `handle_error` must be a method with one parameter: def handle_error(self, error)"
        )


def _adapter(cls: type[Service], annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        raise ServiceDefinitionError(f"{_where(cls)}: pydantic cannot handle {annotation!r}: {error.message}") from None


def _response_adapter(cls: type[Service], annotation: Any) -> TypeAdapter[Any] | None:
    if annotation is None or annotation is type(None) or annotation is Any:
        return None
    try:
        return TypeAdapter(annotation)
    except PydanticUserError:
        # A return annotation that only documents (a Reply, say) asks nothing of pydantic.
        return None


def _options(cls: type[Service], name: str, settings: Settings) -> dict[str, Any]:
    from broker.settings import ServiceOptions  # slow to import, and no client needs it

    of_class = {key: getattr(cls, key) for key in DEFAULTS if hasattr(cls, key)}
    try:
        checked = ServiceOptions.model_validate(
            {k: v for k, v in of_class.items() if k not in ("retry", "callback") and v is not None}
        )
    except ValueError as error:
        raise ServiceDefinitionError(f"{_where(cls)}: {error}") from None
    if not isinstance(of_class.get("retry"), (Retry, type(None))):
        raise ServiceDefinitionError(f"{_where(cls)}: `retry` must be a Retry or None")
    options = {**settings.defaults.over(DEFAULTS), **of_class}
    for configured in (checked, settings.service.get(name)):
        options = configured.over(options) if configured else options
    return options


def _callback_names(
    callbacks: Callbacks | None, names: Mapping[type[Service], str], own_queues: frozenset[str], cls: type[Service]
) -> Iterator[str]:
    if callbacks is None:
        return
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        try:
            yield name_of(typing.cast(Callback, callback), names, own_queues)
        except ServiceDefinitionError as error:
            raise ServiceDefinitionError(f"{_where(cls)}: callback: {error}") from None


def _service_classes(module: ModuleType) -> Iterator[type[Service]]:
    for value in list(vars(module).values()):
        if isinstance(value, type) and issubclass(value, Service) and value.__module__ == module.__name__:
            yield value


def _where(cls: type) -> str:
    try:
        return f"{cls.__qualname__} ({inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]})"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"
