"""The sidecar's HTTP interface: limits, admission, deadlines; the reranking is the library's.

The event loop only reads and writes. Searches are computed by a few threads, whose queue is the
line that searches wait in; a search whose caller is gone leaves the line.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib.metadata
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from plugin.sidecar.protocol import (
    ErrorResponse,
    RerankRequest,
    RerankResponse,
    WireRankedHit,
    WireStage,
)
from reranker.records import Hit, RankedHit, RerankResult

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from plugin.sidecar.settings import Settings

_log = logging.getLogger(__name__)

# Where the body is left unread: otherwise the server would go on reading, to throw it away.
_CLOSE = {"Connection": "close"}

_WARM_UP = [
    Hit("1", "heapq.merge: Merge multiple sorted inputs", "Similar to sorted(chain(*inputs)).", 2),
    Hit("2", "bisect: Bisection algorithms", "Keeps a list in sorted order.", 1),
]


class Reranker(Protocol):
    """What answers searches: `reranker.Cascade`, or a stand-in of a test."""

    @property
    def name(self) -> str:
        """The name of the models."""

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
    ) -> RerankResult:
        """Order the hits; called from several threads at once."""


class Health(BaseModel):
    """The body of `GET /health`."""

    status: str
    model: str
    version: str


class FullError(Exception):
    """As many searches are computed and wait as may be."""


class LateError(Exception):
    """The time of a search passed while it stood in line."""


def build_app(cascade: Reranker, settings: Settings) -> FastAPI:
    """Make the application: `POST /rerank` and `GET /health`.

    It answers once its lifespan has begun, which runs one search to warm up.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        line = Line(cascade, settings.max_concurrent, settings.max_waiting)
        try:
            begun = time.monotonic()
            warm_up = RerankRequest(query="merge sorted lists", hits=[], passage_depth=2)
            await asyncio.wrap_future(line.join(warm_up, _WARM_UP, begun))
            _log.info("%s is warm after %.0f ms", cascade.name, _ms_since(begun))
            yield {"line": line}
        finally:
            line.close()

    app = FastAPI(
        title="Titlecast sidecar",
        version=version(),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        responses={"default": {"model": ErrorResponse, "description": "Not answered; says why."}},
    )
    app.add_middleware(_Gate, key=settings.key, max_body_bytes=settings.max_body_bytes)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_failure)

    @app.get("/health")
    async def health() -> Health:
        """Tell that searches are answered, and by which models."""
        return Health(status="ok", model=cascade.name, version=version())

    @app.post("/rerank", response_model=RerankResponse)
    async def rerank(search: RerankRequest, request: Request) -> Response:
        """Order the hits of one search by their titles, the best of them by their passages."""
        arrived: float = request.scope["titlecast.arrived"]
        _check(search, settings)
        opaque_id = request.headers.get("x-opaque-id", "")
        hits = [
            Hit(hit.id, hit.title, hit.passage, math.nan if hit.score is None else hit.score)
            for hit in search.hits
        ]
        line: Line = request.state.line
        try:
            turn = line.join(search, hits, arrived)
        except FullError as error:
            _log.warning("search %r refused: %s", opaque_id, error)
            raise HTTPException(429, str(error), {"Retry-After": "1"}) from error
        try:
            result = await _unless_gone(request, turn)
        except LateError as error:
            _log.warning("search %r dropped: %s", opaque_id, error)
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        if result is None:
            _log.info("search %r: the caller is gone", opaque_id)
            return Response(status_code=499)  # nobody reads it
        answer = _answer(result, _ms_since(arrived), cascade.name)
        _log.info(
            "search %r: %d hits in %.1f ms%s",
            opaque_id,
            len(hits),
            answer.milliseconds,
            "" if answer.complete else ", not complete",
        )
        return Response(answer.model_dump_json(), media_type="application/json")

    return app


def version() -> str:
    """Give the version of the installed package."""
    try:
        return importlib.metadata.version("titlecast")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


class Line:
    """The line in front of the models: so many searches are computed, so many wait.

    Used on the event loop; `close` ends it.
    """

    def __init__(self, cascade: Reranker, concurrent: int, waiting: int) -> None:
        self._cascade = cascade
        self._concurrent = concurrent
        self._most = concurrent + waiting
        self._lock = threading.Lock()
        self._inside = 0  # computed or waiting
        self._pool = ThreadPoolExecutor(concurrent, thread_name_prefix="rerank")

    def join(
        self, search: RerankRequest, hits: Sequence[Hit], arrived: float
    ) -> Future[RerankResult]:
        """Stand in line; `cancel` of what is given back leaves it, unless its turn has come.

        Raises `FullError` where the line is full; the future raises `LateError` where the
        search's time passed in it.
        """
        with self._lock:
            if self._inside >= self._most:
                raise FullError(
                    f"{self._inside} searches are under way or waiting: add sidecars, ask again "
                    "later, or raise TITLECAST_MAX_WAITING"
                )
            self._inside += 1
            waits = self._inside > self._concurrent
        turn = self._pool.submit(self._compute, search, hits, arrived, waits)
        turn.add_done_callback(self._leave)
        return turn

    def close(self) -> None:
        """End the threads; a search that is being computed is waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _leave(self, _: Future[RerankResult]) -> None:
        with self._lock:
            self._inside -= 1

    def _compute(
        self, search: RerankRequest, hits: Sequence[Hit], arrived: float, waited: bool
    ) -> RerankResult:
        left = None
        if search.deadline_ms is not None:
            left = search.deadline_ms - _ms_since(arrived)
            # Whoever asked is gone: to compute it now would make the next in line late as well.
            # Without a line the titles are worth the try, however short the time.
            if waited and left <= 0:
                raise LateError(
                    f"the search's {search.deadline_ms:g} ms passed while it stood in line: "
                    "add sidecars, or give searches more time"
                )
        return self._cascade.rerank(search.query, hits, search.passage_depth, left)


class _Gate:
    """Refuses what must not be read at all: callers without the key, bodies that are too long."""

    def __init__(self, app: ASGIApp, key: str, max_body_bytes: int) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode() if key else b""
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["titlecast.arrived"] = time.monotonic()
        headers = dict(scope["headers"])  # of a header given twice, the last
        # Health stays open: those who watch over the process have no key.
        if self._expected and scope["path"] != "/health":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refusal = _error(
                    401,
                    "the key is missing or wrong: send it as `Authorization: Bearer KEY`",
                    {"WWW-Authenticate": "Bearer", **_CLOSE},
                )
                await refusal(scope, receive, send)
                return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._max_body_bytes:
            await _error(413, self._too_large(), _CLOSE)(scope, receive, send)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise HTTPException(413, self._too_large(), _CLOSE)
            return message

        await self._app(scope, bounded, send)

    def _too_large(self) -> str:
        return (
            f"the request is longer than {self._max_body_bytes} bytes: send fewer hits or shorter "
            "passages, or raise TITLECAST_MAX_BODY_BYTES"
        )


def _check(search: RerankRequest, settings: Settings) -> None:
    """Raise the 422 of a search that is well-formed and cannot be answered all the same."""
    if not search.query.strip():
        raise HTTPException(422, "query is empty: send the words that the user searched for")
    if len(search.query) > settings.max_query_characters:
        raise HTTPException(
            422,
            f"query has {len(search.query)} characters, more than {settings.max_query_characters}:"
            " shorten it, or raise TITLECAST_MAX_QUERY_CHARACTERS",
        )
    if len(search.hits) > settings.max_hits:
        raise HTTPException(
            422,
            f"hits has {len(search.hits)} entries, more than {settings.max_hits}: lower the "
            "pipeline's window, or raise TITLECAST_MAX_HITS",
        )


async def _unless_gone(request: Request, turn: Future[RerankResult]) -> RerankResult | None:
    """Wait for the result; None where the caller hung up first, which also leaves the line."""
    done = asyncio.wrap_future(turn)
    gone = asyncio.ensure_future(_hang_up(request))
    first: list[asyncio.Future[Any]] = [done, gone]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        done.cancel()  # and `turn` with it
        return None
    finally:
        gone.cancel()
        done.cancel()  # where this very task was cancelled; of no effect on one that is done


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(result: RerankResult, milliseconds: float, model: str) -> RerankResponse:
    return RerankResponse(
        hits=[_wire_hit(hit) for hit in result.hits],
        stages=[WireStage(**stage._asdict()) for stage in result.stages],
        complete=result.complete,
        milliseconds=milliseconds,
        model=model,
    )


def _wire_hit(hit: RankedHit) -> WireRankedHit:
    return WireRankedHit(
        index=hit.index,
        id=hit.id,
        score=hit.score,
        # The only one that may rightly be no number, which JSON cannot write.
        first_stage_score=hit.first_stage_score if math.isfinite(hit.first_stage_score) else None,
        title_score=hit.title_score,
        passage_score=hit.passage_score,
    )


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    body = ErrorResponse(error=sentence).model_dump_json()
    return Response(body, status, headers, media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - registered for it
    sentence = error.detail
    if error.status_code in (404, 405):
        sentence = (
            f"there is no {request.method} {request.url.path} here: use POST /rerank or GET /health"
        )
    elif error.status_code == 400:  # FastAPI's own, for a body that no parser could take
        sentence = "the body could not be read: send one JSON object in UTF-8"
    return _error(error.status_code, sentence, dict(error.headers or {}))


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _error(
            400, f"the body is no JSON ({first['ctx']['error']}): send one JSON object in UTF-8"
        )
    field = _path(first["loc"][1:])  # less the opening "body"
    if not field:
        return _error(
            422, "the body is no JSON object: send one, with `Content-Type: application/json`"
        )
    message = first["msg"][:1].lower() + first["msg"][1:]
    remedy = ": send null where there is none" if first["type"] == "finite_number" else ""
    return _error(422, f"{field} cannot be used, {message}{remedy}")


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


async def _on_failure(_: Request, error: Exception) -> Response:
    return _error(500, f"the reranking failed ({type(error).__name__}): see the sidecar's log")


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000
