"""A small HTTP proxy before the engine, through which a test makes a request go wrong."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Dropped(Exception):  # noqa: N818
    """Raised by a rule: the connection is closed without an answer."""


class Proxy:
    """To be used in a `with` block; answers at `url`.

    `before(method, path)` is asked about each request: None lets it through, a status answers it
    so, and `Dropped` closes its connection. `after(method, path)` is called once the engine has
    answered, and may drop that answer.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target).netloc
        self.before: Callable[[str, str], int | None] = lambda method, path: None
        self.after: Callable[[str, str], None] = lambda method, path: None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    status, content = proxy._answer(self.command, self.path, body)
                except Dropped:
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    return
                with contextlib.suppress(OSError):  # who asked may be gone
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _pass  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        status = self.before(method, path)
        if status is not None:
            kind = "es_rejected_execution_exception" if status == 429 else "unavailable"
            return status, f'{{"error": {{"type": "{kind}"}}, "status": {status}}}'.encode()
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Dropped from error
        finally:
            connection.close()
        self.after(method, path)
        return response.status, content

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
