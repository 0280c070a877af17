"""What every request passes first: who asks, how much is sent, how slowly, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

from plugin.sidecar.cohere import CohereError
from plugin.sidecar.protocol import DEADLINE_HEADER, ErrorResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from plugin.sidecar.admission import RefusedError
    from plugin.sidecar.metrics import Metrics
    from plugin.sidecar.settings import Settings

_log = logging.getLogger(__name__)

# Where the body is left unread: otherwise the server would go on reading, to throw it away.
CLOSE = {"Connection": "close"}

# For those who watch over the process, who have no key.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
SEARCH_PATHS = frozenset({"/rerank", "/v1/rerank", "/v2/rerank"})
_COUNTED = OPEN_PATHS | SEARCH_PATHS | {"/metrics", "/openapi.json"}

_DEADLINE = DEADLINE_HEADER.lower().encode()
_PRINTABLE = re.compile(rb"[\x20-\x7e]{1,512}")
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class Origin(NamedTuple):
    """By which names a request is known elsewhere; empty where it has none."""

    opaque_id: str = ""
    trace_id: str = ""

    def fields(self, **more: object) -> dict[str, object]:
        """The names that there are, and more, as a log line's extra fields."""
        return {**{name: value for name, value in self._asdict().items() if value}, **more}


class Gate:
    """Refuses what need not be understood, and passes names of searches through.

    Refused are callers without a key, searches while no models are ready, bodies that are too
    long or come too slowly, and searches for which there is no time, where their heads show it:
    under heavy load, most of them. `X-Opaque-Id`, `traceparent` and `tracestate` come back in the
    response's headers. A failure inside becomes a 500 that shows nothing of it.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        why_not_ready: Callable[[], str],
        leaving: Callable[[], bool],
        refuse_unread: Callable[[Origin, int, float | None], RefusedError | None],
        requests: set[asyncio.Task[Any]],
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._why_not_ready = why_not_ready
        self._leaving = leaving
        self._refuse_unread = refuse_unread
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = scope["titlecast.arrived"] = time.monotonic()
        path = scope["path"]
        headers = dict(scope["headers"])  # of a header given twice, the last
        origin, passed_on = _origin(headers)
        scope["titlecast.origin"] = origin
        length = scope["titlecast.length"] = _length(headers)
        status = 0
        counted = False
        task = asyncio.current_task()
        if task is not None:
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

        def count() -> None:
            nonlocal counted
            if not counted:
                counted = True
                label = path if path in _COUNTED else "other"
                self._metrics.count(label, status, time.monotonic() - arrived)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [*message.get("headers", []), *passed_on]
                if self._leaving() and not any(name == b"connection" for name, _ in own):
                    own.append((b"connection", b"close"))  # to be opened at another sidecar
                message = {**message, "headers": own}
            elif not message.get("more_body", False):
                count()  # before its last: whoever has the answer finds it in the numbers
            await send(message)

        try:
            refusal = self._refuse(path, headers, length)
            bounded = self._bounded(receive)
            if refusal is not None:
                # A connection closed on unread bytes is reset, and its caller may never see the
                # answer (RFC 9112, section 9.6): what is not much too long is taken in.
                if 0 < length <= 2 * self._settings.max_body_bytes:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(_take_in(receive), self._settings.read_seconds)
            elif scope["method"] != "POST" or path not in SEARCH_PATHS:
                if length or b"transfer-encoding" in headers:
                    # What nobody reads the server would take in without any bound.
                    refusal = await _read_out(path, bounded)
            elif length:
                deadline = _deadline(headers, arrived)
                error = self._refuse_unread(origin, length, deadline)
                if error is not None:  # its connection can be used again
                    refusal = await _read_out(path, bounded) or error_response(
                        path, 429, str(error), {"Retry-After": str(error.retry_after)}
                    )
            if refusal is not None:
                await refusal(scope, receive, answer)
            else:
                await self._app(scope, bounded, answer)
        except asyncio.CancelledError:
            if status:
                raise
            # The server's patience with what is under way has ended: better told than cut off.
            why = "this sidecar is stopping: ask another"
            await error_response(path, 503, why, {"Retry-After": "1"})(scope, receive, answer)
        except Exception as error:
            _log.exception("%s failed", path, extra=origin.fields())
            if status:
                raise  # too late for another answer: the server cuts the connection
            sentence = f"the reranking failed ({type(error).__name__}): see the sidecar's log"
            await error_response(path, 500, sentence)(scope, receive, answer)
        finally:
            count()

    def _refuse(self, path: str, headers: dict[bytes, bytes], length: int) -> Response | None:
        known = path in OPEN_PATHS or self._settings.keys.admit(headers.get(b"authorization", b""))
        if not known:
            return error_response(
                path,
                401,
                "the key is missing or wrong: send it as `Authorization: Bearer KEY`",
                {"WWW-Authenticate": "Bearer", **CLOSE},
            )
        if path in SEARCH_PATHS and (why := self._why_not_ready()):
            return error_response(path, 503, why, {"Retry-After": "1", **CLOSE})
        if length > self._settings.max_body_bytes:
            return error_response(path, 413, self._too_large(), CLOSE)
        return None

    def _bounded(self, receive: Receive) -> Receive:
        """Read no more than may be read, for no longer than that may take."""
        read = 0
        whole = False
        limit = time.monotonic() + self._settings.read_seconds

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:  # what is waited for now is the caller's going away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, limit - time.monotonic()))
            except asyncio.TimeoutError:
                raise HTTPException(
                    408,
                    f"the body did not come within {self._settings.read_seconds:g} s: send it "
                    "faster, or raise TITLECAST_READ_SECONDS",
                    CLOSE,
                ) from None
            if message["type"] == "http.disconnect":  # FastAPI would call it a bad body
                raise HTTPException(499, "the caller hung up before the end of its request")
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self._settings.max_body_bytes:
                raise HTTPException(413, self._too_large(), CLOSE)
            return message

        return bounded

    def _too_large(self) -> str:
        return (
            f"the request is longer than {self._settings.max_body_bytes} bytes: send fewer hits "
            "or shorter passages, or raise TITLECAST_MAX_BODY_BYTES"
        )


async def _read_out(path: str, receive: Receive) -> Response | None:
    """Take in a body that nobody reads; give the answer where it is too long or too slow."""
    try:
        await _take_in(receive)
    except HTTPException as error:
        return error_response(path, error.status_code, error.detail, dict(error.headers or {}))
    return None


async def _take_in(receive: Receive) -> None:
    """Read a body to its end, and keep nothing of it."""
    while (await receive()).get("more_body", False):
        pass


def _length(headers: dict[bytes, bytes]) -> int:
    """The body's length in bytes where it is announced, else 0."""
    length = headers.get(b"content-length", b"0")
    return int(length[:20]) if length.isdigit() else 0


def _deadline(headers: dict[bytes, bytes], arrived: float) -> float | None:
    """The moment that the head names as the search's last; None where it names none."""
    try:
        milliseconds = float(headers.get(_DEADLINE, b""))
    except ValueError:
        return None
    return arrived + milliseconds / 1000 if math.isfinite(milliseconds) else None


def error_response(
    path: str, status: int, sentence: str, headers: dict[str, str] | None = None
) -> Response:
    """Make the answer that refuses, in the form that the callers of the path read."""
    kind = CohereError(message=sentence) if path[:4] in ("/v1/", "/v2/") else None
    body = (kind or ErrorResponse(error=sentence)).model_dump_json()
    return Response(body, status, headers, media_type="application/json")


def _origin(headers: dict[bytes, bytes]) -> tuple[Origin, list[tuple[bytes, bytes]]]:
    """The request's names, and the headers to give back; what is not well-formed is left out."""
    passed_on = []
    opaque_id = headers.get(b"x-opaque-id", b"")
    if _PRINTABLE.fullmatch(opaque_id):
        passed_on.append((b"x-opaque-id", opaque_id))
    else:
        opaque_id = b""
    trace_id = b""
    parent = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    if parent and parent[1].strip(b"0") and parent[2].strip(b"0"):
        trace_id = parent[1]
        passed_on.append((b"traceparent", parent[0]))
        if _PRINTABLE.fullmatch(state := headers.get(b"tracestate", b"")):
            passed_on.append((b"tracestate", state))
    return Origin(opaque_id.decode(), trace_id.decode()), passed_on
