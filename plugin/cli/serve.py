"""`titlecast serve`: the sidecar that search pipelines call."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from plugin.cli.options import CommandError
from plugin.sidecar.app import build_app
from plugin.sidecar.logs import AsideHandler, write_logs
from plugin.sidecar.models import Models, folder_models
from plugin.sidecar.server import Server
from plugin.sidecar.settings import Settings, load_settings
from plugin.sidecar.workers import END, LEAVE, RELOAD, Workers, follow_stdin, worker_command

_LAST_SECONDS = 5.0  # for workers to end in, once their searches are answered


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    host: Annotated[
        str | None, typer.Option(help="The address to listen at. (default: 127.0.0.1)")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: any free one. (default: 8900)")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A model folder. (default: the shipped models)")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one search. (default: every core)")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the port. (default: 1)")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A file of settings, lines like TITLECAST_PORT=8900.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check settings and models, and say what is so.")
    ] = False,
    until_eof: Annotated[
        bool,
        typer.Option("--until-eof", hidden=True, help="End when standard input does."),
    ] = False,
    inherit: Annotated[
        int | None,
        typer.Option("--inherit", hidden=True, help="Be a worker at this listening socket."),
    ] = None,
    load_first: Annotated[
        bool,
        typer.Option("--load-first", hidden=True, help="Answer nothing before it is ready."),
    ] = False,
) -> None:
    """Serve POST /rerank, /v1/rerank and /v2/rerank until it is told to stop.

    Every setting that is not given is read from its environment variable, TITLECAST_PORT say, and
    then from the file. Those without an option are listed in docs/operations.md. SIGTERM ends it
    when all searches are answered, SIGHUP loads the models anew. With --check it exits with
    status 0 where it would serve, else 2.
    """
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "model": model,
        "threads": threads,
        "workers": workers,
    }
    try:
        settings = load_settings(config, **given)
        if check:
            _check(settings)
            return
    except (ValueError, OSError) as error:
        if not check:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    handler = write_logs(settings.log_format)
    try:
        if inherit is not None:
            with socket.socket(fileno=inherit) as listener:
                _serve_as_worker(settings, listener, handler, load_first)
            return
        # The address before the models: whether it can be had shows in an instant.
        with listening_socket(settings.host, settings.port) as listener:
            if settings.workers == 1:
                server = Server(build_app(_models(settings), settings), settings)
                if until_eof:
                    follow_stdin(server.end)
                _run(server, listener, handler)
                return
            options = [f"--{name}={value}" for name, value in given.items() if value is not None]
            options += [] if config is None else [f"--config={config}"]
            status = _serve_workers(settings, listener, until_eof, options)
    finally:
        handler.close()
    raise typer.Exit(status)


def _models(settings: Settings) -> Models:
    return folder_models(
        settings.model, settings.threads, settings.cache_mb, settings.passage_cache_mb
    )


def _run(server: Server, listener: socket.socket, handler: AsideHandler) -> None:
    sidecar = server.sidecar
    handler.lost = sidecar.metrics.lost_log_lines.inc
    with contextlib.suppress(SystemExit):  # uvicorn's, where the application did not begin
        server.run([listener])
    if sidecar.failure is not None:
        raise CommandError(f"the models cannot be loaded: {sidecar.failure}") from sidecar.failure
    if not server.started:
        raise CommandError("the sidecar could not be started: its log above says why")


def _serve_as_worker(
    settings: Settings, listener: socket.socket, handler: AsideHandler, load_first: bool
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # SIGHUP is ignored since the start
        signal.signal(number, signal.SIG_IGN)
    app = build_app(_models(settings), settings, load_first)
    server = Server(app, settings, signals=False)
    follow_stdin(server.end, {RELOAD: server.reload, LEAVE: server.leave, END: server.end})
    _run(server, listener, handler)


def _serve_workers(
    settings: Settings, listener: socket.socket, until_eof: bool, options: list[str]
) -> int:
    if sys.platform == "win32":
        raise CommandError("several workers cannot share a port on Windows: use --workers 1")
    workers = Workers(worker_command(options), listener, settings.workers)
    if until_eof:
        follow_stdin(workers.stop)
    return workers.run(settings.drain_seconds + settings.grace_seconds + _LAST_SECONDS)


def _check(settings: Settings) -> None:
    """Say what would be served; raises ValueError where nothing would."""
    names = settings.model_dump(mode="json", exclude={"api_key"})
    for name, value in names.items():
        typer.echo(f"TITLECAST_{name.upper()}={'' if value is None else value}")
    models = _models(settings)
    begun = time.monotonic()
    try:
        loaded = asyncio.run(models.reload())
    except Exception as error:
        raise ValueError(f"the models cannot be loaded: {error}") from error
    scheme = "https" if settings.tls_cert else "http"
    certificates = ", callers show a certificate" if settings.tls_client_ca else ""
    typer.echo(f"models: {loaded.reranker.name}, hash {loaded.hash}")
    typer.echo(f"loaded and warm in {time.monotonic() - begun:.1f} s")
    typer.echo(f"keys: {len(settings.keys) or 'none, everybody may ask'}")
    typer.echo(
        f"would serve {scheme}://{settings.host}:{settings.port} with {settings.workers} "
        f"process(es){certificates}"
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind an address, so that nobody else can, without answering there yet.

    Raises `CommandError` where it cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name may have addresses of both kinds, as localhost does, and callers may try the first
        # alone: Java's, and so the plugin's, is the one of IPv4.
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CommandError(
            f"{host!r} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all of them"
        ) from error
    try:
        if sys.platform != "win32":  # there it would share the port with whoever has it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"port {port} is taken: stop what listens there, or choose another with --port"
            ) from error
        raise CommandError(
            f"{host}, port {port}, cannot be listened at ({error.strerror}): choose another with "
            "--host and --port"
        ) from error
    return listener
