"""The sidecar's HTTP interface: limits, admission, deadlines; the reranking is the library's.

The event loop only reads and writes. Searches are computed by a few threads, whose turns the line
gives out; a search whose caller is gone leaves the line, or is computed no further.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException as StarletteHTTPException

from plugin.sidecar.admission import FullError, Line, RefusedError, Work, estimate
from plugin.sidecar.cohere import (
    CohereError,
    CohereRequest,
    CohereResponse,
    CohereV1Request,
    to_response,
    to_search,
)
from plugin.sidecar.gate import Gate, Origin, error_response
from plugin.sidecar.metrics import CONTENT_TYPE, Metrics
from plugin.sidecar.models import Loaded, Models, Reranker
from plugin.sidecar.protocol import (
    DEADLINE_HEADER,
    ErrorResponse,
    QuickReader,
    RerankRequest,
    RerankResponse,
)
from plugin.sidecar.settings import Settings
from reranker.lru import CacheUse
from reranker.records import Hit, RerankResult
from reranker.stages import EmptyQueryError

__all__ = ["Reranker", "Sidecar", "build_app"]

_log = logging.getLogger(__name__)

_LAST_SECONDS = 1.0  # for answers to requests that were under way to the last
_LENGTHS = 64  # searches from which the work of those that are not read is judged
_LOG_SECONDS = 10.0  # between two lines about refusals: under load there are hundreds a second

_EMPTY_QUERY = "query is empty: send the words that the user searched for"
_SENTENCES = {
    400: "The body could not be read.",
    401: "The key is missing or wrong.",
    408: "The body came too slowly.",
    413: "The request is too large.",
    422: "A field is missing or cannot be used.",
    429: "The line is full; `Retry-After` says when it will not be.",
    499: "The caller hung up; nobody reads this.",
    500: "The reranking failed; the sidecar's log says why.",
    503: "Not ready, or the search's time passed in line; `Retry-After` says when to ask again.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}

# Read by the gate, and here for the OpenAPI document only. Whatever is in them refuses no search.
_HEADERS = {
    DEADLINE_HEADER: "The milliseconds that the caller has for the search, so that it can be "
    "refused unread where there is no time for it; what is no number is passed over.",
    "X-Opaque-Id": "The search's name in the log; comes back in the answer.",
    "traceparent": "W3C trace context; comes back in the answer.",
    "tracestate": "The same.",
}
_PARAMETERS = [
    {"name": name, "in": "header", "description": words, "schema": {"type": "string"}}
    for name, words in _HEADERS.items()
]
_KEY = Depends(HTTPBearer(auto_error=False, description="Where the sidecar has keys: one of them."))
_OR_NONE: dict[str, Any] = {"security": [{}]}  # beside the key


class Health(BaseModel):
    """The body of `GET /readyz` and `GET /health`."""

    status: str
    model: str
    version: str


class Alive(BaseModel):
    """The body of `GET /livez`."""

    status: str


class Done(NamedTuple):
    """A search that was computed."""

    result: RerankResult
    model: str  # the name of the models
    cut: int  # hits shortened to as many tokens as the caller allows


class Sidecar:
    """What the application holds between its first search and its last: `app.state.sidecar`."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self.metrics = Metrics()
        self.line = Line(settings.max_concurrent, settings.max_waiting, settings.max_waiting_tokens)
        self.requests: set[asyncio.Task[Any]] = set()  # under way
        self.failure: Exception | None = None  # why the first models could not be loaded
        self._cache_seen: dict[str, CacheUse] = {}
        self._density: deque[float] = deque(maxlen=_LENGTHS)  # tokens of work per byte of body
        self._refused = 0  # since the last line about it
        self._refusal_logged = -math.inf
        self._pool: ThreadPoolExecutor | None = None
        self._leaving = False
        self._closing = False
        self._reloading = asyncio.Lock()  # each takes memory for a second set of models

    def leave(self) -> None:
        """Say to those who balance load that this sidecar is going; searches are still answered."""
        self._leaving = True
        self.metrics.ready.set(0)

    def close(self) -> None:
        """Refuse searches that come now; those that are inside are still answered."""
        self.leave()
        self._closing = True

    @property
    def leaving(self) -> bool:
        """Whether it is going."""
        return self._leaving

    def why_not_ready(self) -> str:
        """Why it answers no searches; empty where it does."""
        if self._closing:
            return "this sidecar is stopping: ask another"
        if self.models.current is None or self._pool is None:
            return "the models are being loaded: ask again in a moment"
        return ""

    async def reload(self) -> bool:
        """Exchange the models for what their folder holds now; False where those before stay."""
        async with self._reloading:
            try:
                await self._load()
            except Exception as error:
                _log.exception("the models before stay: loading failed (%s)", error)
                self.metrics.reloads.labels("failed").inc()
                return False
            self.metrics.reloads.labels("done").inc()
            return True

    async def begin(self) -> None:
        """Load and warm the first models, and open the threads."""
        self._pool = ThreadPoolExecutor(self.settings.max_concurrent, "rerank")
        async with self._reloading:  # what is asked for meanwhile is newer, and comes after
            await self._load()
        if not self._leaving:
            self.metrics.ready.set(1)

    async def end(self) -> None:
        """End the threads; a search that is being computed is waited for, and told of it."""
        self.metrics.ready.set(0)
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)
        if self.requests:
            await asyncio.wait(self.requests, timeout=_LAST_SECONDS)

    async def _load(self) -> None:
        before = self.models.current
        loaded = await self.models.reload()
        self._cache_seen.clear()  # theirs count from nothing
        if before is not None and before.hash != loaded.hash:
            self._describe(before, 0)
        self._describe(loaded, 1)

    def _count_caches(self) -> None:
        loaded = self.models.current
        if loaded is None:
            return
        for stage, use in loaded.caches().items():
            seen = self._cache_seen.get(stage, CacheUse(0, 0, 0, 0))
            self.metrics.cache_hits.labels(stage).inc(use.hits - seen.hits)
            self.metrics.cache_misses.labels(stage).inc(use.misses - seen.misses)
            self._cache_seen[stage] = use

    def _describe(self, loaded: Loaded, value: int) -> None:
        self.metrics.model.labels(loaded.reranker.name, loaded.hash, version()).set(value)

    async def search(
        self,
        request: Request,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int,
        deadline_ms: float | None = None,
        most_tokens: int | None = None,
        early_stop: bool = True,
    ) -> Done | None:
        """Compute one search in its turn; None where the caller is gone.

        Of each hit no more than `most_tokens` tokens are read. Raises `HTTPException` for what is
        refused.
        """
        origin: Origin = request.scope["titlecast.origin"]
        arrived: float = request.scope["titlecast.arrived"]
        length: int = request.scope["titlecast.length"]
        most = self._check(query, hits, passage_depth, most_tokens)
        work = self.line.expect(most)
        if length:
            self._density.append(work.tokens / length)
        deadline = None if deadline_ms is None else arrived + deadline_ms / 1000
        try:
            self.line.check(work, deadline)  # before anything is set up for it
            done = await _unless_gone(
                request,
                lambda: self._compute(
                    query, hits, passage_depth, most_tokens, early_stop, work, arrived, deadline
                ),
            )
        except RefusedError as error:
            status = 429 if isinstance(error, FullError) else 503
            self._log_refusal(error, origin, status)
            raise HTTPException(
                status, str(error), {"Retry-After": str(error.retry_after)}
            ) from error
        except EmptyQueryError as error:  # of characters that only the tokenizer knows to be none
            raise HTTPException(422, _EMPTY_QUERY) from error
        if done is None:
            _log.info("search %r: the caller is gone", origin.opaque_id, extra=origin.fields())
            return None
        result = done.result
        if result.complete and most.passages:
            read = sum(stage.tokens for stage in result.stages if stage.name == "passage")
            self.line.observe_passages(most.passages, read)
        self.metrics.count_search(result.stages, result.complete)
        self.metrics.truncated.labels("request").inc(done.cut)
        self.metrics.truncated.labels("query").inc(result.query_cut)
        self._count_caches()
        milliseconds = _ms_since(arrived)
        _log.info(
            "search %r: %d hits in %.1f ms%s",
            origin.opaque_id,
            len(hits),
            milliseconds,
            "" if result.complete else ", not complete",
            extra=origin.fields(
                hits=len(hits), milliseconds=round(milliseconds, 1), complete=result.complete
            ),
        )
        return done

    async def check_count(self, request: Request) -> None:
        """Raise the 422 of a search with too many hits, before any of them is looked at."""
        try:
            body = await request.json()  # which FastAPI has parsed, and the request keeps
        except (ValueError, RecursionError):  # no JSON by its Content-Type: refused as such
            return
        if not isinstance(body, dict):
            return
        most = self.settings.max_hits
        for name, remedy in (
            ("hits", "lower the pipeline's window"),
            ("documents", "send fewer at a time"),
        ):
            if isinstance(entries := body.get(name), list) and len(entries) > most:
                raise HTTPException(
                    422,
                    f"{name} has {len(entries)} entries, more than {most}: {remedy}, or raise "
                    "TITLECAST_MAX_HITS",
                )

    def refuse_unread(
        self, origin: Origin, length: int, deadline: float | None
    ) -> FullError | None:
        """Tell whether a search is one too many, by the length of its body alone.

        `deadline` is a moment of `time.monotonic`. Its work is taken to be the least that a body
        of that length has meant of late; who may have a place all the same is read.
        """
        try:
            self.line.check(Work(0, int(length * min(self._density, default=0.0))), deadline)
        except FullError as error:
            self.metrics.unread.inc()
            self._log_refusal(error, origin, 429)
            return error
        return None

    def _log_refusal(self, error: RefusedError, origin: Origin, status: int) -> None:
        self._refused += 1
        now = time.monotonic()
        if now < self._refusal_logged + _LOG_SECONDS:
            return
        _log.warning(
            "%d searches refused since the last such line, the last of them %r: %s",
            self._refused,
            origin.opaque_id,
            error,
            extra=origin.fields(status=status, refused=self._refused),
        )
        self._refused = 0
        self._refusal_logged = now

    def count_line(self) -> None:
        """Bring the numbers of the line up to date."""
        self.metrics.waiting.set(self.line.waiting)
        self.metrics.waiting_tokens.set(self.line.waiting_tokens)
        self.metrics.computed.set(self.line.computed)

    async def _compute(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int,
        most_tokens: int | None,
        early_stop: bool,
        work: Work,
        arrived: float,
        deadline: float | None,
    ) -> Done:
        gone = threading.Event()
        try:
            async with self.line.turn(work, deadline):
                self.count_line()
                self.metrics.waited_seconds.observe(time.monotonic() - arrived)
                loaded, pool = self.models.current, self._pool
                if loaded is None or pool is None:
                    raise HTTPException(503, self.why_not_ready(), {"Retry-After": "1"})
                begun = time.monotonic()

                def rerank() -> Done:
                    kept, cut = hits, 0
                    if most_tokens is not None:
                        kept, cut = loaded.reranker.cut(hits, most_tokens)
                    left = None if deadline is None else (deadline - time.monotonic()) * 1000
                    result = loaded.reranker.rerank(
                        query, kept, passage_depth, left, gone.is_set, early_stop
                    )
                    return Done(result, loaded.reranker.name, cut)

                turn = asyncio.get_running_loop().run_in_executor(pool, rerank)
                # Whoever is cancelled does not wait for what became of it: `Cancelled`, say.
                turn.add_done_callback(lambda done: done.cancelled() or done.exception())
                try:
                    done = await asyncio.shield(turn)
                except asyncio.CancelledError:
                    gone.set()  # the models stop at the next chunk; until then the turn is taken
                    await asyncio.wait([turn])
                    raise
                self.line.observe(
                    sum(stage.tokens for stage in done.result.stages), time.monotonic() - begun
                )
                return done
        finally:
            self.count_line()

    def _check(
        self, query: str, hits: Sequence[Hit], passage_depth: int, most_tokens: int | None
    ) -> Work:
        """Estimate a search's work; raise the 422 or 413 of one that cannot be answered."""
        settings = self.settings
        if not query.strip():
            raise HTTPException(422, _EMPTY_QUERY)
        _limit("query", len(query), settings.max_query_characters, "QUERY_CHARACTERS", "shorten it")
        title, passage = settings.max_title_characters, settings.max_passage_characters
        for place, hit in enumerate(hits):
            if len(hit.title) <= title and len(hit.passage) <= passage:
                continue  # nearly always: no sentence is put together for it
            _limit(
                f"the title of hit {place}",
                len(hit.title),
                title,
                "TITLE_CHARACTERS",
                "send a title",
            )
            _limit(
                f"the passage of hit {place}",
                len(hit.passage),
                passage,
                "PASSAGE_CHARACTERS",
                "send a shorter one",
            )
        work = estimate(query, hits, passage_depth, most_tokens)
        if work.tokens > settings.max_request_tokens:
            raise HTTPException(
                413,
                f"the search is about {work.tokens} tokens of work, more than "
                f"{settings.max_request_tokens}: lower window or passage_depth, or raise "
                "TITLECAST_MAX_REQUEST_TOKENS",
            )
        return work


def build_app(models: Reranker | Models, settings: Settings, load_first: bool = False) -> FastAPI:
    """Make the application.

    With a reranker its lifespan begins with one search to warm up, after which it is ready. With
    `Models`, which are yet to be loaded, it begins at once, or with `load_first` when they are
    ready; where they cannot be loaded, `app.state.sidecar.failure` says why.
    """
    given = models if isinstance(models, Models) else None
    if given is None:
        ready = Loaded(models)  # type: ignore[arg-type]
        given = Models(lambda: ready)
    sidecar = Sidecar(given, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.ensure_future(sidecar.begin())
        try:
            if isinstance(models, Models):
                loading.add_done_callback(lambda done: _note_failure(sidecar, done))
            if load_first or not isinstance(models, Models):
                await loading
            yield
        finally:
            loading.cancel()
            await asyncio.wait([loading])
            await sidecar.end()

    app = FastAPI(
        title="Titlecast sidecar",
        version=version(),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        responses=_documented(401, 500),
    )
    app.state.sidecar = sidecar
    app.add_middleware(
        Gate,
        settings=settings,
        metrics=sidecar.metrics,
        why_not_ready=sidecar.why_not_ready,
        leaving=lambda: sidecar.leaving,
        refuse_unread=sidecar.refuse_unread,
        requests=sidecar.requests,
    )
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    _add_watch(app, sidecar)
    _add_searches(app, sidecar)
    return app


def _add_watch(app: FastAPI, sidecar: Sidecar) -> None:
    @app.get("/livez")
    async def livez() -> Alive:
        """Tell that the process answers at all; if it does not, restart it."""
        return Alive(status="ok")

    @app.get("/readyz", response_model=Health, responses=_documented(503))
    @app.get("/health", response_model=Health, responses=_documented(503))
    async def readyz() -> Response:
        """Tell that searches are answered, and by which models; if not, send them elsewhere."""
        why = sidecar.why_not_ready() or ("this sidecar is stopping" if sidecar.leaving else "")
        loaded = sidecar.models.current
        if why or loaded is None:
            return error_response("", 503, why, {"Retry-After": "1"})
        health = Health(status="ok", model=loaded.reranker.name, version=version())
        return _json(health)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
        dependencies=[_KEY],
        openapi_extra=_OR_NONE,
    )
    async def metrics() -> Response:
        """Give the numbers, in Prometheus' text format."""
        sidecar.count_line()
        return Response(sidecar.metrics.write(), headers={"Content-Type": CONTENT_TYPE})


def _add_searches(app: FastAPI, sidecar: Sidecar) -> None:
    refusals = (400, 408, 413, 422, 429, 499, 503)
    options: dict[str, Any] = {
        # The second reads the body before FastAPI does.
        "dependencies": [_KEY, Depends(sidecar.check_count)],
        "openapi_extra": {"parameters": _PARAMETERS, **_OR_NONE},
    }

    async def answer(search: RerankRequest, request: Request) -> Response:
        hits = [
            Hit(hit.id, hit.title, hit.passage, math.nan if hit.score is None else hit.score)
            for hit in search.hits
        ]
        done = await sidecar.search(
            request, search.query, hits, search.passage_depth, search.deadline_ms
        )
        if done is None:
            return Response(status_code=499)
        arrived: float = request.scope["titlecast.arrived"]
        return _json(_answer(done, _ms_since(arrived), search.brief))

    quick = QuickReader(sidecar.settings.max_hits)

    class Route(APIRoute):
        """Passes a search by FastAPI that needs none of its care."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            careful = super().get_route_handler()

            async def handle(request: Request) -> Response:
                if request.headers.get("content-type") == "application/json":
                    search = quick.read(await request.body())
                    if search is not None:
                        return await answer(search, request)
                return await careful(request)

            return handle

    router = APIRouter(route_class=Route)

    @router.post(
        "/rerank", response_model=RerankResponse, responses=_documented(*refusals), **options
    )
    async def rerank(search: RerankRequest, request: Request) -> Response:
        """Order the hits of one search by their titles, the best of them by their passages."""
        return await answer(search, request)

    app.include_router(router)

    async def cohere(
        search: CohereRequest, request: Request, version: Literal["1", "2"]
    ) -> Response:
        try:
            hits, passage_depth, early_stop, most_tokens = to_search(search)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        done = await sidecar.search(
            request,
            search.query,
            hits,
            passage_depth,
            most_tokens=most_tokens,
            early_stop=early_stop,
        )
        if done is None:
            return Response(status_code=499)
        return _json(to_response(search, done.result, done.cut, version), exclude_none=True)

    options |= {
        "response_model": CohereResponse,
        "responses": _documented(401, 500, *refusals, model=CohereError),
    }

    @app.post("/v1/rerank", **options)
    async def rerank_v1(search: CohereV1Request, request: Request) -> Response:
        """Order documents as version 1 of Cohere's API does."""
        return await cohere(search, request, "1")

    @app.post("/v2/rerank", **options)
    async def rerank_v2(search: CohereRequest, request: Request) -> Response:
        """Order documents as version 2 of Cohere's API does."""
        return await cohere(search, request, "2")


def version() -> str:
    """Give the version of the installed package."""
    try:
        return importlib.metadata.version("titlecast")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


def _documented(*statuses: int, model: type[BaseModel] = ErrorResponse) -> dict[int | str, Any]:
    return {
        status: {"description": _SENTENCES[status]}
        | ({"model": model} if status != 499 else {})
        | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
        for status in statuses
    }


def _note_failure(sidecar: Sidecar, done: asyncio.Future[None]) -> None:
    if not done.cancelled() and isinstance(error := done.exception(), Exception):
        sidecar.failure = error


def _limit(what: str, size: int, most: int, setting: str, remedy: str) -> None:
    if size > most:
        raise HTTPException(
            422,
            f"{what} has {size} characters, more than {most}: {remedy}, or raise "
            f"TITLECAST_MAX_{setting}",
        )


async def _unless_gone(
    request: Request, compute: Callable[[], Coroutine[Any, Any, Done]]
) -> Done | None:
    """Compute; None where the caller hung up first, which also stops it."""
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        # Whoever hung up before the search was read is seen in one look at what has arrived.
        if (await asyncio.wait([gone], timeout=0))[0]:
            return None
        computing = asyncio.ensure_future(compute())
        try:
            await asyncio.wait([computing, gone], return_when=asyncio.FIRST_COMPLETED)
            return computing.result() if computing.done() else None
        finally:
            if not computing.done():  # also where this very task was cancelled
                computing.cancel()
                await asyncio.wait([computing])
    finally:
        gone.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(done: Done, milliseconds: float, brief: bool = False) -> dict[str, Any]:
    """What a `RerankResponse` says, without making one: a model for each hit takes its time.

    Raises ValueError where a hit's score is no number.
    """
    result = done.result
    if not all(math.isfinite(hit.score) for hit in result.hits):
        raise ValueError("the models gave a score that is no number")
    hits = [
        {"index": hit.index, "score": hit.score}
        if brief
        else {
            "index": hit.index,
            "id": hit.id,
            "score": hit.score,
            "first_stage_score": hit.first_stage_score,
            "title_score": hit.title_score,
            "passage_score": hit.passage_score,
            "coverage": hit.coverage,
            "mention": hit.mention,
        }
        for hit in result.hits
    ]
    stages = [
        {
            "name": stage.name,
            "scored": stage.scored,
            "milliseconds": stage.milliseconds,
            "truncated": stage.truncated,
            "skipped": stage.skipped,
        }
        for stage in result.stages
    ]
    return {
        "hits": hits,
        "stages": stages,
        "complete": result.complete,
        "query_cut": result.query_cut,
        "milliseconds": milliseconds,
        "model": done.model,
    }


def _json(body: BaseModel | dict[str, Any], exclude_none: bool = False) -> Response:
    # Of an engine that gave no score, it is NaN, which JSON cannot write.
    text = to_json(body, exclude_none=exclude_none, inf_nan_mode="null")
    return Response(text, media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - registered for it
    path = request.url.path
    sentence = error.detail
    if error.status_code in (404, 405):
        sentence = (
            f"there is no {request.method} {path} here: use POST /rerank, /v1/rerank, /v2/rerank "
            "or GET /livez, /readyz, /metrics, /openapi.json"
        )
    elif error.status_code == 400:  # FastAPI's own, for a body that no parser could take
        sentence = "the body could not be read: send one JSON object in UTF-8"
    return error_response(path, error.status_code, sentence, dict(error.headers or {}))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    path = request.url.path
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        why = f"the body is no JSON ({first['ctx']['error']}): send one JSON object in UTF-8"
        return error_response(path, 400, why)
    field = _path(first["loc"][1:])  # less the opening "body"
    if not field:
        return error_response(
            path, 422, "the body is no JSON object: send one, with `Content-Type: application/json`"
        )
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    remedy = ": send null where there is none" if first["type"] == "finite_number" else ""
    return error_response(path, 422, f"{field} cannot be used, {message}{remedy}")


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000
