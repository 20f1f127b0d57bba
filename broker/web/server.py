"""Serves the page until it is told to stop."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from broker.errors import ConfigurationError
from broker.log import logger
from broker.recording.index import Index, NotWritableError
from broker.settings import Settings
from broker.transport.factory import is_embedded
from broker.web.app import application
from broker.web.site import Site

BACKLOG = 2048
GRACE = 3
"""Seconds for requests that run when it is told to stop; live pages never end by themselves."""
GC_THRESHOLD = 50_000
"""Objects after which Python looks for circles: events by the ten thousand have none."""


def serve(settings: Settings, index: Path | None, *, read_only: bool) -> None:
    """Until SIGINT or SIGTERM.

    Args:
        index: the file to keep the index in; None: a temporary one.

    Raises:
        ConfigurationError: it may not be served there, or cannot be.
    """
    section = settings.web
    password = section.password.get_secret_value() if section.password else None
    if is_embedded(settings.urls):
        raise ConfigurationError(
            "a broker in memory has its record within its own process alone: there is no page for it"
        )
    if password is None and not is_loopback(section.host):
        raise ConfigurationError(
            f"[web] host is {section.host}, which others can reach: set [web] password (ACKBACK_WEB__PASSWORD), or leave it at 127.0.0.1"
        )
    listening = _listening(section.host, section.port)
    with listening, _index(index) as opened:
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        # aio-pika tries to close a connection that was refused when it is collected, which may be in any thread.
        warnings.filterwarnings("ignore", "coroutine 'Connection.close' was never awaited", RuntimeWarning)
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        _allow_many_files()
        app = application(Site(settings, opened, read_only=read_only), password)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            lifespan="on",
            timeout_graceful_shutdown=GRACE,
        )
        host = f"[{section.host}]" if ":" in section.host else section.host
        logger.info("the page is at http://%s:%d/", host, listening.getsockname()[1])
        for number in (signal.SIGINT, signal.SIGTERM):  # which it raises once more when it has ended
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run([listening])


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may lead anywhere


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigurationError(
            f"[web] port: {host}:{port} cannot be listened on: {reason}; --port names another"
        ) from None
    listening.setblocking(False)
    return listening


@contextmanager
def _index(path: Path | None) -> Iterator[Index]:
    if path is not None:
        try:
            opened = Index(path)
        except NotWritableError as error:
            logger.warning("%s: a temporary index is used instead", error)
        else:
            yield opened
            return
    with tempfile.TemporaryDirectory(prefix="ackback-web-") as folder:
        yield Index(Path(folder) / "index.db")


def _allow_many_files() -> None:
    """A thousand readers are as many open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
