"""Which store a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from broker.errors import ConfigurationError
from broker.stores.interface import Store


def open_store(url: str) -> Store:
    """The store that the configuration names: `memory`, `sqlite:///path/of/a.file`, `redis://…` or `postgresql://…`.

    Raises:
        ConfigurationError: there is no such kind, or what it needs is not installed.
    """
    if url == "memory":
        from broker.stores.memory import MemoryStore

        return MemoryStore()
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        from broker.stores.sqlite import SqliteStore

        return SqliteStore(url.removeprefix("sqlite://"))
    if scheme in ("redis", "rediss"):
        from broker.stores.redis import RedisStore

        return RedisStore(url)
    if scheme in ("postgresql", "postgres"):
        from broker.stores.postgresql import PostgresqlStore

        return PostgresqlStore(url)
    raise ConfigurationError(
        "store.url is memory, sqlite:///path/of/a.file, redis://host:6379/0 or postgresql://user@host/database"
    )


def open_existing(url: str) -> Store:
    """The store that daemons have made.

    Raises:
        ConfigurationError: there is none that this process could see.
    """
    if url == "memory":
        raise ConfigurationError("store.url is memory: what is there only its own process can see")
    path = Path(url.removeprefix("sqlite://"))
    if url.startswith("sqlite:") and not path.exists():
        raise ConfigurationError(f"there is no store {path} yet: no daemon with durable services has been here")
    return open_store(url)
