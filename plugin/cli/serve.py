"""`titlecast serve`: the sidecar that search pipelines call."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from plugin.cli.options import CommandError
from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from reranker import Cascade

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 10  # for the searches that are under way when it ends


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
        int | None, typer.Option(min=1, help="Threads of one model run. (default: every core)")
    ] = None,
    until_eof: Annotated[
        bool,
        typer.Option("--until-eof", hidden=True, help="End when standard input does."),
    ] = False,
) -> None:
    """Serve POST /rerank until it is interrupted.

    Options not given are read from the environment: TITLECAST_HOST, TITLECAST_PORT,
    TITLECAST_MODEL, TITLECAST_THREADS, and those without an option: TITLECAST_API_KEY or
    TITLECAST_API_KEY_FILE, TITLECAST_MAX_HITS and the other limits.
    """
    settings = load_settings(host=host, port=port, model=model, threads=threads)
    for name in ("plugin.sidecar", "plugin.cli.serve", "uvicorn"):
        logger = logging.getLogger(name)
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)
    # The address before the models: whether it can be had shows in an instant.
    with listening_socket(settings.host, settings.port) as listener:
        cascade = Cascade.load(settings.model, settings.threads)
        config = uvicorn.Config(
            build_app(cascade, settings),
            log_config=None,
            access_log=False,  # the searches are logged by the application, with their ids
            ws="none",
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        server = uvicorn.Server(config)
        if until_eof:
            threading.Thread(target=_stop_at_eof, args=[server], daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):  # that is how it is meant to end
            server.run([listener])
    if not server.started:
        raise CommandError("the sidecar could not be started: its log above says why")


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind an address, so that nobody else can, without answering there yet.

    Raises `CommandError` where it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
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


def _stop_at_eof(server: uvicorn.Server) -> None:
    while os.read(0, 4096):  # not by sys.stdin, whose lock would be held when all ends
        pass
    server.should_exit = True
