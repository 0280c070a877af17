"""A server for tests whose end leaves nothing open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """uvicorn's server, whose loop does not end before every connection is closed.

    uvicorn waits for open connections no longer than `timeout_graceful_shutdown`, and does not ask
    those to close that it accepts while it stops. Either stays open when its loop is gone, and
    Python warns of it whenever it happens to collect it: in some other test.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # What is left may be a caller that reads no more (Java's client leaves a socket that it has
        # closed half open for up to three seconds), a request that was cancelled just now, or a
        # connection between its accept and its first callback.
        while (connections := self.server_state.connections) or _others():
            for connection in connections:
                connection.transport.abort()
            await asyncio.sleep(0.01)


def _others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


@contextlib.contextmanager
def serving(
    app: Callable[..., Any], listener: socket.socket | None = None, **options: Any
) -> Iterator[uvicorn.Server]:
    """Serve an ASGI application, with options of `uvicorn.Config`; inside the block it answers."""
    settings = {"log_config": None, "ws": "none", "timeout_graceful_shutdown": 1, **options}
    server = Server(uvicorn.Config(app, **settings))
    sockets = None if listener is None else [listener]
    thread = threading.Thread(target=server.run, args=[sockets], name="server", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server could not be started")
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()
