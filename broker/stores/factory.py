"""Which store a configuration asks for."""

from __future__ import annotations

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
