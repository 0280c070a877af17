"""uvicorn, with limits on the time that connections may take, and an end that loses no search."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from plugin.sidecar.app import Sidecar
from plugin.sidecar.protocol import ErrorResponse
from plugin.sidecar.settings import Settings, check_tls

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A server of the sidecar's application.

    The first SIGTERM makes it unready and ends it after `drain_seconds`, in which searches are
    answered still; what is under way then is finished. SIGINT, or a second SIGTERM, ends it
    without that delay. SIGHUP loads models and TLS certificates anew. Without `signals` it heeds
    none of them.

    `leave`, `end` and `reload` only note what they are called for, and the loop acts on it at its
    next tick: a signal may have interrupted whoever holds the lock of a number or of the log, and
    may come before there is a loop. Other threads may call them for the same reason.
    """

    def __init__(self, app: FastAPI, settings: Settings, signals: bool = True) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=limited_protocol(settings),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,  # the searches are logged by the application, with their ids
                server_header=False,
                proxy_headers=False,
                # Longer than callers keep a connection: they close it, and never meet a closed one.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=settings.grace_seconds,
                **settings.ssl_options(),
            )
        )
        self.sidecar: Sidecar = app.state.sidecar
        self._settings = settings
        self._signals = signals
        self._to_leave = self._to_reload = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def leave(self) -> None:
        """End after `drain_seconds`, in which searches are answered still."""
        if self._settings.drain_seconds:
            self._to_leave = True
        else:
            self.end()

    def end(self) -> None:
        """End as soon as what is under way is finished."""
        self.should_exit = True

    def reload(self) -> None:
        """Load models and certificates anew, beside the searches."""
        self._to_reload = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to signals, from before the first models are loaded."""
        if not self._signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        with super().capture_signals():
            if hasattr(signal, "SIGHUP"):
                signal.signal(signal.SIGHUP, lambda *_: self.reload())
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer; who was told to leave before that need not begin."""
        if self.config.is_ssl:
            # uvicorn does not hand it on, and asyncio would wait for a minute.
            loop, seconds = asyncio.get_running_loop(), self._settings.read_seconds
            create = functools.partial(loop.create_server, ssl_handshake_timeout=seconds)
            loop.create_server = create  # type: ignore[method-assign]
        await super().startup(sockets)
        self.should_exit |= self._to_leave

    async def on_tick(self, counter: int) -> bool:
        """Do what was asked since the last; end where the first models could not be loaded."""
        if self._to_reload:
            self._to_reload = False
            self._reload()
        if self._to_leave and not self.sidecar.leaving:
            self._drain()
        return await super().on_tick(counter) or self.sidecar.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what comes now, finish what is under way."""
        self.sidecar.close()
        await super().shutdown(sockets)
        for task in self._tasks:
            task.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Act on SIGTERM and SIGINT; unlike uvicorn's own, the process then ends with status 0."""
        if sig == signal.SIGTERM and not self._to_leave:
            self.leave()
            return
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.end()

    def _reload(self) -> None:
        _log.info("reloading")
        self._reload_certificate()
        self._tasks.add(task := asyncio.ensure_future(self.sidecar.reload()))
        task.add_done_callback(self._tasks.discard)

    def _reload_certificate(self) -> None:
        config, settings = self.config, self._settings
        if config.ssl is None or settings.tls_cert is None or settings.tls_key is None:
            return
        try:
            # Tried aside first, so that a bad one cannot leave the certificate without its key.
            check_tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
            config.ssl.load_cert_chain(settings.tls_cert, settings.tls_key)
            if settings.tls_client_ca is not None:
                # In addition to those before: a context forgets no authority.
                config.ssl.load_verify_locations(settings.tls_client_ca)
        except (OSError, ValueError) as error:
            _log.error("the certificate before stays: %s", error)
        else:
            _log.info("the certificate was read anew")

    def _drain(self) -> None:
        self.sidecar.leave()
        seconds = self._settings.drain_seconds
        _log.info("stopping in %g s: no longer ready, searches are answered still", seconds)
        asyncio.get_running_loop().call_later(seconds, setattr, self, "should_exit", True)


def limited_protocol(settings: Settings) -> type[H11Protocol]:
    """Make uvicorn's HTTP/1.1, for callers that may be slow without end.

    A request's head must come within `read_seconds`, from the connection on or from its first
    byte on a connection that is used again; what is sent must be taken up within `write_seconds`.
    The body's time is the application's matter.
    """

    class Limited(H11Protocol):
        def __init__(self, config: uvicorn.Config, *args: Any, **more: Any) -> None:
            config.h11_max_incomplete_event_size = settings.max_header_bytes
            super().__init__(config, *args, **more)
            self.conn = _AtOnce(h11.SERVER, settings.max_header_bytes)
            self._head: asyncio.TimerHandle | None = None
            self._stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head = _stopped(self._head)
            self._stalled = _stopped(self._stalled)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stalled is None:
                self._stalled = self.loop.call_later(settings.write_seconds, self._abort)

        def resume_writing(self) -> None:
            self._stalled = _stopped(self._stalled)
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():
                self._abort()  # the answer itself was not taken up
            else:
                super().timeout_keep_alive_handler()

        def send_400_response(self, msg: str) -> None:
            """Say in JSON what uvicorn says in plain text."""
            body = ErrorResponse(error=f"{msg} Send HTTP/1.1 with a shorter head.")
            head = h11.Response(
                status_code=400,
                headers=[(b"content-type", b"application/json"), (b"connection", b"close")],
            )
            data = h11.Data(data=body.model_dump_json().encode())
            events = (head, data, h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            self.transport.close()

        def _await_head(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._head = _stopped(self._head)
            elif self._head is None:
                self._head = self.loop.call_later(settings.read_seconds, self._abort)

        def _abort(self) -> None:
            self.transport.abort()

    return Limited


class _AtOnce(h11.Connection):
    """Holds an answer's head back until there is something of its body.

    Two writes are two packets, and wake whoever waits for them twice.
    """

    _held = b""

    def send(self, event: h11.Event) -> Any:
        data: bytes | None = super().send(event)
        if isinstance(event, h11.Response):
            self._held = data or b""
            return b""
        if data is None:  # the connection is over
            return None
        held, self._held = self._held, b""
        return held + data


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
