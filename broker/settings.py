"""`config.toml` and the `ACKBACK_…` environment variables, read, checked and explained."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError

from broker.errors import ConfigurationError, ServiceDefinitionError
from broker.protocol.names import check_name
from broker.protocol.schedules import Missed
from broker.retry import Retry
from broker.schedule import parse

CONFIG_FILE = "config.toml"
ENV_PREFIX = "ACKBACK_"
DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"
STORE_FILE = "ackback.db"
FORMER = {"idempotency.store": "store.url", "idempotency.keep": "store.keep"}
"""Keys of earlier versions, and what takes their place."""
SCHEMES = ("amqp", "amqps", "memory")


def masked(url: str) -> str:
    """The URL as it may be shown: without its password and without its query, which can hold keys."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "(a URL that cannot be read)"
    netloc = parts.netloc.replace(f":{password}@", ":***@") if password is not None else parts.netloc
    return parts._replace(netloc=netloc, query="", fragment="").geturl()


def _checked_url(url: SecretStr) -> SecretStr:
    value = url.get_secret_value()
    shown = masked(value)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(
            "it is not a URL: host or port cannot be read; expected amqp://user:password@host:5672/vhost"
        ) from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{shown!r} has the scheme {parts.scheme!r}; use amqp:// or, for TLS, amqps:// (or memory://)")
    if parts.scheme != "memory" and not parts.hostname:
        raise ValueError(f"{shown!r} names no host; expected amqp://user:password@host:5672/vhost")
    if port == 0:
        raise ValueError(f"{shown!r} names port 0")
    return url


def _as_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [value]


Url = Annotated[SecretStr, AfterValidator(_checked_url)]


class Section(BaseModel):
    """A table of the configuration: no key but those listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BrokerSection(Section):
    url: Annotated[list[Url], NoDecode, BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default_factory=lambda: [SecretStr(DEFAULT_URL)]
    )
    transport: Literal["auto", "aio-pika", "lane"] = "auto"


class ServicesSection(Section):
    paths: Annotated[list[str], NoDecode, BeforeValidator(_as_list)] = ["services"]


class CallbacksSection(Section):
    queue: str = "callbacks"


class WorkerSection(Section):
    processes: PositiveInt = 1
    grace: Annotated[float, Field(ge=0)] = 30.0
    max_body: PositiveInt = 16_777_216


class LogSection(Section):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class RetrySection(Section):
    """The numbers of a `Retry` as a TOML table. Those left out are the class's, or else the defaults'."""

    attempts: int = 5
    first: float = 3.0
    factor: float = 3.0
    maximum: float = 300.0
    jitter: float = 0.1

    def model_post_init(self, context: Any) -> None:
        self.over(None)

    def over(self, policy: Retry | None) -> Retry:
        """The policy with what is given here in its numbers' places."""
        return replace(policy or Retry(), **{key: getattr(self, key) for key in self.model_fields_set})


def _one_attempt_if_false(retry: Any) -> Any:
    return {"attempts": 1} if retry is False else retry


def _checked_schedule(schedule: str | Literal[False]) -> str | Literal[False]:
    if schedule:
        parse(schedule)
    return schedule


class ServiceOptions(Section):
    """The attributes of a service that the configuration may set. Zero as a timeout means none, `retry = false` one attempt, and
    `schedule = false` no schedule."""

    concurrency: PositiveInt | None = None
    timeout: Annotated[float, Field(ge=0)] | None = None
    retry: Annotated[RetrySection | None, BeforeValidator(_one_attempt_if_false)] = None
    outbox: bool | None = None
    idempotent: bool | None = None
    durable: bool | None = None
    callback: str | list[str] | None = None
    callback_from: list[str] | None = None
    schedule: Annotated[str | Literal[False] | None, AfterValidator(_checked_schedule)] = None
    payload: Any = None
    missed: Missed | None = None
    echo: bool | None = None
    """Whether it echoes the headers of a request on its reply: not, if it is a server that knows nothing of ackback."""

    def over(self, lower: Mapping[str, Any]) -> dict[str, Any]:
        """`lower`, with what is set here in its place, as the values that a class would have."""
        options = {**lower, **{key: getattr(self, key) for key in self.model_fields_set}}
        if self.retry is not None:
            options["retry"] = self.retry.over(lower["retry"])
        if options.get("timeout") == 0:
            options["timeout"] = None
        return options


class StoreSection(Section):
    """Where durable services have their journals, and idempotent ones their outcomes; each is kept for `keep` seconds after its end."""

    url: SecretStr | None = None
    keep: Annotated[float, Field(gt=0)] = 86_400.0


class EventsSection(Section):
    """The flight recorder's stream. `max_age` is in seconds."""

    enabled: bool = True
    max_age: Annotated[float, Field(ge=1)] = 7 * 86_400.0
    max_bytes: PositiveInt = 2_000_000_000
    segment_bytes: PositiveInt = 50_000_000


class MetricsSection(Section):
    """Where `/metrics`, `/healthz` and `/readyz` are served; nowhere without a port."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] | None = None


class WebSection(Section):
    """The page of `ackback web`. Without a password it is served to this machine alone."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8023
    password: Annotated[SecretStr | None, Field(min_length=1)] = None


class Settings(BaseSettings):
    """The whole configuration. Get it from `load`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    broker: BrokerSection = BrokerSection()
    services: ServicesSection = ServicesSection()
    callbacks: CallbacksSection = CallbacksSection()
    worker: WorkerSection = WorkerSection()
    log: LogSection = LogSection()
    store: StoreSection = StoreSection()
    events: EventsSection = EventsSection()
    metrics: MetricsSection = MetricsSection()
    web: WebSection = WebSection()
    defaults: ServiceOptions = ServiceOptions()
    service: dict[str, ServiceOptions] = {}

    _file: Path | None = PrivateAttr(default=None)

    @field_validator("defaults")
    @classmethod
    def _some_are_said_of_one(cls, defaults: ServiceOptions) -> ServiceOptions:
        for key in ("echo", "schedule", "payload"):
            if key in defaults.model_fields_set:
                raise ValueError(f'{key} is said of one service: [service."NAME"] {key} = …')
        return defaults

    @property
    def file(self) -> Path | None:
        """The file that was read, if any. Service folders are relative to it."""
        return self._file

    @property
    def urls(self) -> list[str]:
        return [url.get_secret_value() for url in self.broker.url]

    @property
    def store_url(self) -> str:
        """Where the store is: as configured, else in a file beside the configuration, or in memory where the broker is."""
        if self.store.url is not None:
            return self.store.url.get_secret_value()
        return "memory" if self.urls[0].startswith("memory:") else f"sqlite://{self.folder / STORE_FILE}"

    @property
    def silent(self) -> frozenset[str]:
        """The services that are said to echo nothing."""
        return frozenset(name for name, options in self.service.items() if options.echo is False)

    @property
    def folder(self) -> Path:
        return self._file.parent if self._file else Path.cwd()

    def with_changes(self, section: str, **values: Any) -> Settings:
        """A copy with some of a section's keys replaced and checked, as the command line does.

        Raises:
            ConfigurationError: a value is not valid.
        """
        current = getattr(self, section)
        try:
            changed = type(current).model_validate({**dict(current), **values})
        except ValidationError as error:
            raise ConfigurationError(_explained(error, "the command line", section)) from None
        return self.model_copy(update={section: changed})

    @classmethod
    def load(cls, config: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the file (given, else `config.toml` in the working directory, if it is there) and the environment.

        Raises:
            ConfigurationError: the file is missing or malformed, a key is unknown, or a value is not valid.
        """
        path = _config_path(config)
        source = str(path) if path else "the environment"
        _check_environment(environ)

        class FromFile(cls):  # type: ignore[valid-type,misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                file = [TomlConfigSettingsSource(settings_cls, path)] if path else []
                return (init_settings, env_settings, *file)

        try:
            settings: Self = FromFile()
        except ValidationError as error:
            raise ConfigurationError(_explained(error, source)) from None
        except SettingsError as error:
            raise ConfigurationError(f"the environment: {error}") from None
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:  # tomllib.TOMLDecodeError among them
            raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
        if len(settings.broker.url) > 1 and any(url.startswith("memory:") for url in settings.urls):
            raise ConfigurationError(f"{source}: broker.url: memory:// stands alone, not in a list with others")
        try:
            check_name(settings.callbacks.queue)
        except ServiceDefinitionError as error:
            raise ConfigurationError(f"{source}: callbacks.queue: {error}") from None
        settings._file = path
        return settings


def _config_path(config: str | Path | None) -> Path | None:
    if config is None:
        default = Path(CONFIG_FILE).absolute()
        return default if default.exists() else None
    path = Path(config).absolute()
    if not path.exists():
        raise ConfigurationError(f"there is no configuration file {config}")
    if path.is_dir():
        raise ConfigurationError(f"{config} is a folder; give the file in it, such as {Path(config) / CONFIG_FILE}")
    return path


def _explained(error: ValidationError, source: str, section: str | None = None) -> str:
    lines = []
    for one in error.errors(include_input=False, include_url=False):
        loc = [section, *one["loc"]] if section else list(one["loc"])
        path = _dotted(loc)
        variable = ENV_PREFIX + "__".join(part.upper() for part in loc if isinstance(part, str))
        place = f"the environment variable {variable}" if variable in os.environ and not section else source
        if loc == ["idempotency"]:
            lines += [f"{place}: {former} is {now} now: say it in [store]" for former, now in FORMER.items()]
        elif one["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key {path}{_nearest(loc)}")
        else:
            lines.append(f"{place}: {path}: {one['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _dotted(loc: list[Any]) -> str:
    parts = [part for part in loc if isinstance(part, str)]
    return ".".join(f'"{part}"' if "." in part else part for part in parts)


def _nearest(loc: list[Any]) -> str:
    """The known key that the last one of `loc` was probably meant to be, as a hint."""
    model: Any = Settings
    for part in loc[:-1]:
        model = _member(model, part)
    known = list(getattr(model, "model_fields", ()))
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {_dotted([*loc[:-1], near[0]])}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _member(model: Any, part: Any) -> Any:
    if model is Settings and part == "service":
        return dict
    if model is dict:
        return ServiceOptions
    field = getattr(model, "model_fields", {}).get(part)
    if field is None:
        return None
    return RetrySection if part == "retry" else field.annotation


def _known_variables() -> Iterator[str]:
    for section, field in Settings.model_fields.items():
        prefix = ENV_PREFIX + section.upper()
        yield prefix
        for key in getattr(field.annotation, "model_fields", ()):
            yield f"{prefix}__{key.upper()}"


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", "__")


def _check_environment(environ: Mapping[str, str]) -> None:
    # pydantic-settings passes over variables that it does not know: a mistyped one would do nothing, silently.
    known = set(_known_variables())
    open_ended = (f"{ENV_PREFIX}SERVICE__", f"{ENV_PREFIX}DEFAULTS__RETRY__")
    for name in environ:
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper in known or upper.startswith(open_ended):
            continue
        if instead := next((now for former, now in FORMER.items() if upper == _variable(former)), None):
            raise ConfigurationError(f"the environment: {name} is {_variable(instead)} now")
        near = difflib.get_close_matches(upper, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigurationError(f"the environment: unknown variable {name}{hint}")
