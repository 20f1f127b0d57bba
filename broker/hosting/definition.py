"""All that is worked out once about a service class."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import PydanticSerializationError, PydanticUndefined, to_jsonable_python

from broker.errors import InvalidInputError, ServiceDefinitionError
from broker.hosting.naming import name_of, where
from broker.protocol import bodies
from broker.protocol.message import Message
from broker.protocol.schedules import Plan
from broker.retry import Retry
from broker.schedule import Cron, Every, parse
from broker.service import Callback, Callbacks, Service

if TYPE_CHECKING:
    from broker.settings import Settings

DEFAULTS: Mapping[str, Any] = {
    "concurrency": 50,
    "timeout": None,
    "retry": Retry(),
    "outbox": False,
    "idempotent": False,
    "durable": False,
    "callback": None,
    "callback_from": None,
    "schedule": None,
    "payload": "",
    "missed": "once",
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
    durable: bool
    callbacks: tuple[str, ...]
    callback_from: tuple[str, ...] | None
    by_convention: bool
    """Whether the convention may find a callback: not if the class says `callback = None`."""
    plan: Plan | None
    """Its schedule, with what is sent to it."""

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


def define(cls: type[Service], name: str, names: Mapping[type[Service], str], settings: Settings) -> ServiceDefinition:
    handle = cls.handle  # type: ignore[attr-defined]
    parameter, hints = _signature(cls, handle)
    has_parameter = parameter is not None
    default = parameter.default if parameter and parameter.default is not parameter.empty else PydanticUndefined
    options = _options(cls, name, settings)
    if options["durable"]:
        _check_durable(cls, handle)
        options["timeout"] = None
    if handle_error := getattr(cls, "handle_error", None):
        _check_handle_error(cls, handle_error)
    own_queues = frozenset({settings.callbacks.queue})
    takes = _adapter(cls, hints[parameter.name]) if parameter else None
    return ServiceDefinition(
        name=name,
        cls=cls,
        is_async=inspect.iscoroutinefunction(handle),
        has_parameter=has_parameter,
        default=default,
        takes=takes,
        returns=_response_adapter(cls, hints.get("return")),
        concurrency=options["concurrency"],
        timeout=options["timeout"],
        retry=options["retry"],
        outbox=options["outbox"],
        idempotent=options["idempotent"] and not options["durable"],  # a run is one already
        durable=options["durable"],
        callback_from=None if options["callback_from"] is None else tuple(options["callback_from"]),
        callbacks=tuple(_callback_names(options["callback"], names, own_queues, cls)),
        by_convention=not _says_nobody(cls),
        plan=_plan(cls, options, takes, has_default=default is not PydanticUndefined),
    )


def _check_durable(cls: type[Service], handle: Any) -> None:
    if not inspect.iscoroutinefunction(handle):
        raise ServiceDefinitionError(
            f"{where(cls)}: `handle` of a durable service is an `async def`: what it awaits are its steps. Put what cannot be awaited "
            "into a function, and `await self.step(function)`"
        )
    if getattr(cls, "timeout", None) is not None:
        raise ServiceDefinitionError(
            f"{where(cls)}: a durable service has no `timeout`, as it may wait for weeks: "
            "use `async with asyncio.timeout(seconds)` in `handle`"
        )
    if getattr(cls, "outbox", False):
        raise ServiceDefinitionError(
            f"{where(cls)}: a durable service needs no `outbox`: what it invokes is journalled before it is sent"
        )


def _plan(
    cls: type[Service], options: Mapping[str, Any], takes: TypeAdapter[Any] | None, *, has_default: bool
) -> Plan | None:
    schedule = options["schedule"]
    if schedule is None or schedule is False:
        return None
    try:
        if isinstance(schedule, str):
            schedule = parse(schedule)
    except ValueError as error:
        raise ServiceDefinitionError(f"{where(cls)}: schedule: {error}") from None
    if not isinstance(schedule, (Every, Cron)):
        raise ServiceDefinitionError(
            f"{where(cls)}: `schedule` must be every(…), cron(…), or a string like 'every 5 minutes', not {schedule!r}"
        )
    try:
        payload = to_jsonable_python(options["payload"])
    except PydanticSerializationError as error:
        raise ServiceDefinitionError(f"{where(cls)}: `payload` cannot be sent as JSON: {error}") from None
    body, content_type = bodies.encode(payload)
    if takes is not None and (body or not has_default):
        try:
            bodies.validate(Message(body, content_type=content_type), takes)
        except InvalidInputError as error:
            raise ServiceDefinitionError(
                f"{where(cls)}: `handle` does not take what its schedule sends, payload = {payload!r}: {error}"
            ) from None
    return Plan(schedule=str(schedule), payload=payload, missed=options["missed"])


def _says_nobody(cls: type[Service]) -> bool:
    return hasattr(cls, "callback") and cls.callback is None


def _signature(cls: type[Service], handle: Any) -> tuple[inspect.Parameter | None, dict[str, Any]]:
    if inspect.isasyncgenfunction(handle) or inspect.isgeneratorfunction(handle):
        raise ServiceDefinitionError(f"{where(cls)}: `handle` must not be a generator; return the whole response")
    if not inspect.isfunction(handle) or isinstance(inspect.getattr_static(cls, "handle"), (staticmethod, classmethod)):
        raise ServiceDefinitionError(
            f"{where(cls)}: `handle` must be a method: def handle(self) or async def handle(self)"
        )
    parameters = list(inspect.signature(handle).parameters.values())[1:]
    if len(parameters) > 1:
        listed = ", ".join(str(one) for one in parameters)
        raise ServiceDefinitionError(
            f"{where(cls)}: `handle` takes the message's body as its one parameter besides self, not {len(parameters)} "
            f"({listed}); put them in a model"
        )
    if not parameters:
        return None, _hints(cls, handle)
    parameter = parameters[0]
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ServiceDefinitionError(
            f"{where(cls)}: `handle` takes the body as a plain parameter, not as {str(parameter)!r}"
        )
    hints = _hints(cls, handle)
    if parameter.name not in hints:
        raise ServiceDefinitionError(
            f"{where(cls)}: parameter `{parameter.name}` of `handle` has no annotation; annotate it with the type to validate "
            "the body against (Any for no validation), or take no parameter and use self.request.payload"
        )
    return parameter, hints


def _hints(cls: type[Service], handle: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(handle, include_extras=True)
    except Exception as error:
        raise ServiceDefinitionError(f"{where(cls)}: the annotations of `handle` cannot be resolved: {error}") from None


def _check_handle_error(cls: type[Service], handle_error: Any) -> None:
    if not inspect.isfunction(handle_error) or len(inspect.signature(handle_error).parameters) != 2:
        raise ServiceDefinitionError(
            f"{where(cls)}: `handle_error` must be a method with one parameter: def handle_error(self, error)"
        )


def _adapter(cls: type[Service], annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        raise ServiceDefinitionError(f"{where(cls)}: pydantic cannot handle {annotation!r}: {error.message}") from None


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
            {k: v for k, v in of_class.items() if k not in ("retry", "callback", "schedule") and v is not None}
        )
    except ValueError as error:
        raise ServiceDefinitionError(f"{where(cls)}: {error}") from None
    if not isinstance(of_class.get("retry"), (Retry, type(None))):
        raise ServiceDefinitionError(f"{where(cls)}: `retry` must be a Retry or None")
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
            raise ServiceDefinitionError(f"{where(cls)}: callback: {error}") from None
