"""`ackback run`: a daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.console import Config, Debug

if TYPE_CHECKING:
    from broker.process.supervisor import Supervisor
    from broker.settings import Settings


def run(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Folders, files or dotted modules with services.", show_default=False),
    ] = None,
    config: Config = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, metavar="N", help="Processes; by default as configured (1).")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when a service's file changes (for development).")
    ] = False,
    debug: Debug = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    suspects: Annotated[bool, typer.Option("--suspects", hidden=True)] = False,
) -> None:
    """Run a daemon that hosts services."""
    from broker import log
    from broker.settings import Settings

    settings = Settings.load(config)
    if workers is not None:
        settings = settings.with_changes("worker", processes=workers)
    log.setup(settings.log, debug=debug)
    child = worker or suspects
    supervised = not child and (reload or settings.worker.processes > 1)
    supervisor = _supervisor(settings, paths or [], config, reload=reload, debug=debug) if supervised else None
    from broker.process.metrics_server import served
    from broker.settings import MetricsSection

    # Before the services are imported, which may have metrics of their own: those are served, too.
    section = MetricsSection() if child else settings.metrics
    with served(section, supervisor.workers if supervisor else lambda: [os.getpid()]):
        code = supervisor.run() if supervisor else _serve(settings, paths or [], config, worker, suspects, debug=debug)
    sys.exit(code)


def _serve(
    settings: Settings, paths: list[str], config: Path | None, worker: bool, suspects: bool, *, debug: bool
) -> int:
    from broker.hosting import registry
    from broker.log import logger
    from broker.process.suspects import Suspects
    from broker.process.worker import serve
    from broker.transport.factory import is_embedded

    services = registry.load(settings, paths or None)
    for name in settings.service:
        if name not in services and name not in settings.silent and not suspects:
            near = services.nearest(name)
            hint = f"; did you mean {near!r}?" if near else ""
            logger.warning('[service."%s"] configures a service that is not hosted here%s', name, hint)
    in_own_process = None
    if not suspects and not is_embedded(settings.urls):
        arguments = _arguments("--suspects", paths, config, debug=debug)
        in_own_process = Suspects(arguments, (*settings.urls, settings.callbacks.queue))
    return serve(settings, services, in_own_process, suspects_only=suspects, parent_pipe=worker)


def _arguments(role: str, paths: list[str], config: Path | None, *, debug: bool) -> list[str]:
    """The command line of a child process."""
    arguments = ["run", role, "--workers", "1", *(["--debug"] if debug else [])]
    if config is not None:
        arguments += ["--config", str(config)]
    return [*arguments, "--", *paths]


def _supervisor(settings: Settings, paths: list[str], config: Path | None, *, reload: bool, debug: bool) -> Supervisor:
    from broker.process.supervisor import Supervisor, watcher

    changed = None
    if reload:
        folders = (
            [Path(path) for path in paths] if paths else [settings.folder / path for path in settings.services.paths]
        )
        watched = [folder for folder in folders if folder.exists()] + ([settings.file] if settings.file else [])
        changed = watcher(watched or [Path.cwd()])
    arguments = _arguments("--worker", paths, config, debug=debug)
    return Supervisor(arguments, settings.worker.processes, settings.worker.grace, changed)
