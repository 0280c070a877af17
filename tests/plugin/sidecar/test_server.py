"""What the server hands to the system, and what signals do that come at a bad moment."""

from __future__ import annotations

import asyncio
import signal
import threading

import uvicorn
from uvicorn.server import ServerState

from plugin.sidecar.app import build_app
from plugin.sidecar.server import Server, limited_protocol
from plugin.sidecar.settings import Settings
from tests.plugin.sidecar.fakes import Gated


class Written(asyncio.Transport):
    """A connection that notes each write, as each is a call of the system."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if data:  # as asyncio's own: nothing is no write
            self.writes.append(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


async def app(scope, receive, send):
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
    )
    await send({"type": "http.response.body", "body": b"bo", "more_body": True})
    await send({"type": "http.response.body", "body": b"dy"})


def test_an_answers_head_goes_out_with_the_first_of_its_body_each_time():
    async def ask(times: int) -> list[bytes]:
        config = uvicorn.Config(app, lifespan="off", log_config=None, server_header=False)
        config.load()
        protocol = limited_protocol(Settings())(config, ServerState(), {})
        protocol.connection_made(transport := Written())
        for _ in range(times):  # on one connection
            protocol.data_received(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await asyncio.gather(*protocol.tasks)
        protocol.connection_lost(None)
        return transport.writes

    writes = asyncio.run(ask(2))
    assert len(writes) == 4
    for head, rest in (writes[:2], writes[2:]):
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\nbo")
        assert rest == b"dy"


def test_whoever_has_an_answer_finds_it_in_the_numbers():
    sidecar = build_app(Gated(), Settings())
    seen: list[str] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            seen.append(sidecar.state.sidecar.metrics.write().decode())

    scope = {"type": "http", "method": "GET", "path": "/livez", "raw_path": b"/livez"}
    scope |= {"headers": [], "query_string": b"", "http_version": "1.1", "scheme": "http"}
    for times in (1, 2):
        asyncio.run(sidecar(dict(scope), receive, send))
        counted = f'titlecast_requests_total{{outcome="answered",path="/livez"}} {times}.0'
        assert counted in seen[-1]


def test_what_is_under_way_at_the_end_has_the_time_of_the_settings():
    config = Server(build_app(Gated(), Settings()), Settings(grace_seconds=7)).config
    assert config.timeout_graceful_shutdown == 7
    assert config.timeout_keep_alive > 60  # longer than callers keep an idle connection


def test_a_signal_waits_for_no_lock_of_whom_it_interrupts():
    server = Server(build_app(Gated(), Settings()), Settings())
    ready = server.sidecar.metrics.ready
    ready.set(1)

    def interrupted() -> None:
        with ready._value._lock:  # which is held whenever the number is set or read
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                server.handle_exit(number, None)
            server.reload()

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_the_loop_does_what_a_signal_asks_for():
    server = Server(build_app(Gated(), Settings()), Settings(drain_seconds=600))
    server.sidecar.metrics.ready.set(1)

    async def signalled(number: signal.Signals) -> bool:
        server.handle_exit(number, None)
        return await server.on_tick(1)

    async def leave() -> None:
        assert not await signalled(signal.SIGTERM)
        assert server.sidecar.leaving
        assert server.sidecar.metrics.ready._value.get() == 0
        assert await signalled(signal.SIGTERM)
        assert await signalled(signal.SIGTERM)
        assert not server.force_exit  # what is under way is finished, however often it is told
        assert await signalled(signal.SIGINT)
        assert server.force_exit

    asyncio.run(leave())
