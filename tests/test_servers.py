"""The tests' own server: what it leaves open fails whichever test runs when it is collected."""

from __future__ import annotations

import gc
import logging
import socket
import warnings
from typing import Any

import pytest

from tests import servers

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def flood(scope: Any, receive: Any, send: Any) -> None:
    """Send more than any buffer between two sockets holds, and wait until all of it is gone."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = {"type": "http.response.body", "body": b" " * 2**20, "more_body": True}
            await send(message)


@pytest.mark.parametrize("request_", [REQUEST, REQUEST[:9], b""], ids=["whole", "half", "none"])
def test_callers_who_neither_read_nor_hang_up_are_cut_off(
    request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")  # a trace in a log holds what was open
    with warnings.catch_warnings(record=True) as caught, socket.create_server(("", 0)) as listener:
        warnings.simplefilter("always")
        with socket.create_connection(listener.getsockname()) as caller:
            with servers.serving(flood, listener, timeout_graceful_shutdown=0):
                caller.sendall(request_)
                if request_ == REQUEST:
                    assert caller.recv(1)
            gc.collect()
    assert not [str(warning.message) for warning in caught]
