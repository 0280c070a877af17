"""Sidecars for tests: the real service over stand-in models, and servers that misbehave.

All of them are real servers at the address that the engine calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

from plugin.sidecar.app import Reranker
from reranker import Hit, RerankResult
from reranker.records import RankedHit, StageReport
from tests import servers

# A busy machine may take its time: what is about time limits sets them in its pipelines.
PATIENT = {
    "title_rerank.sidecar.timeout": "60s",
    "title_rerank.sidecar.connect_timeout": "10s",
    # Most tests have a sidecar fail again and again; what is about breakers sets this.
    "title_rerank.sidecar.breaker.failures": "1000000",
}

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class SidecarPort:
    """The address that the engine calls as its sidecar. Nothing answers until a test serves there.

    While nothing does, the port is held by a socket that is bound but does not listen: a
    connection is refused, and no other process is given the port. A server that sets
    SO_REUSEADDR, as uvicorn, asyncio and http.server do, can listen there all the same.
    """

    def __init__(self, port: int = 0) -> None:
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", port))
        self.host = "127.0.0.1"  # what a server is to bind
        self.port: int = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._held.close()

    @contextlib.contextmanager
    def serving(self, app: Callable[..., Any], **options: Any) -> Iterator[None]:
        """Serve an ASGI application (the sidecar's, or a fake one) at the address."""
        with servers.serving(app, host=self.host, port=self.port, **options):
            yield


class Asked(NamedTuple):
    """One search as it reached the models."""

    query: str
    hits: list[Hit]
    passage_depth: int
    deadline_ms: float | None


class Recorder:
    """Models that note what they are asked."""

    def __init__(self, models: Reranker) -> None:
        self._models = models
        self.name = models.name
        self.asked: list[Asked] = []

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        self.asked.append(Asked(query, list(hits), passage_depth, deadline_ms))
        return self._models.rerank(query, hits, passage_depth, deadline_ms, cancelled, early_stop)


class Backwards:
    """Models that turn the engine's order around; `skipped` says why they left passages unread."""

    name = "backwards"

    def __init__(self, skipped: str = "") -> None:
        self._skipped = skipped

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        count = len(hits)
        return RerankResult(
            [
                RankedHit(hits[i].id, i, 1 + (i + 1) / (count + 1), hits[i].score, float(i))
                for i in reversed(range(count))
            ],
            [
                StageReport("title", count, 1.5),
                StageReport("passage", 0, 0.5, skipped=self._skipped),
            ],
            complete=not self._skipped,
        )


def saying(status: int, body: bytes = b"", **headers: str) -> App:
    """A server that gives everybody the same answer."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": given})
            await send({"type": "http.response.body", "body": body})

    return app


def changing(change: Callable[[dict[str, Any]], Any]) -> App:
    """A sidecar whose right answer, the engine's order, is changed before it is sent.

    The change gives what JSON can say, or the very bytes.
    """

    async def app(scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        hits = json.loads(body)["hits"]
        answer = {
            "hits": [
                {"index": i, "id": hit["id"], "score": 2 - (i + 1) / (len(hits) + 1)}
                for i, hit in enumerate(hits)
            ],
            "stages": [{"name": "title", "scored": len(hits), "milliseconds": 1.0}],
            "complete": True,
            "milliseconds": 1.0,
            "model": "changing",
        }
        changed = change(answer)
        given = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        await saying(200, given, content_type="application/json")(scope, receive, send)

    return app


def endless(first: bytes | None, then: bytes = b"", pause: float = 0.05) -> App:
    """A server that is not done before its caller hangs up, however long that takes.

    It sends nothing where `first` is None, else that, and then `then` again and again.
    """

    async def app(scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        gone = asyncio.ensure_future(_hung_up(receive))
        if first is not None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": first, "more_body": True})
        while not gone.done():
            await asyncio.wait([gone], timeout=pause)
            if then:
                await send({"type": "http.response.body", "body": then, "more_body": True})

    return app


async def _hung_up(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Gate:
    """A server that holds all who come until it is opened, and counts those who hang up."""

    def __init__(self) -> None:
        self.held = 0
        self.gone = 0
        self.open = threading.Event()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.held += 1
        gone = asyncio.ensure_future(_hung_up(receive))
        while not self.open.is_set() and not gone.done():
            await asyncio.wait([gone], timeout=0.02)
        self.gone += gone.done()
        gone.cancel()
        await saying(503, b'{"error": "the gate was opened"}')(scope, receive, send)


@contextlib.contextmanager
def blurting(host: str, port: int, data: bytes, *, reset: bool = False) -> Iterator[None]:
    """Serve bytes that need not be HTTP: they are sent after a request, then it hangs up.

    Or it resets the connection, as a machine does that has just restarted.
    """

    class Handler(socketserver.StreamRequestHandler):
        timeout = 60  # a caller who says nothing holds up the server's end

        def handle(self) -> None:
            length = 0
            while (line := self.rfile.readline()).strip():
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            self.rfile.read(length)  # a socket closed over unread bytes resets the connection
            self.wfile.write(data)
            if reset:
                now = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                self.connection.close()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    with Server((host, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
