"""Callers who hang up: nothing is computed for them, from wherever their search was."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from reranker import Cascade, Hit, RerankResult
from tests.plugin.sidecar.fakes import background, sample, search, serving
from tests.waiting import wait_until

HITS = [{"id": str(n), "title": f"merge {n} lists", "passage": "sorted lists"} for n in range(300)]
DOCUMENTS = [{"title": hit["title"], "text": hit["passage"]} for hit in HITS]
BODIES = {
    "/rerank": {"query": "merge lists", "hits": HITS, "passage_depth": 12},
    "/v1/rerank": {"query": "merge lists", "documents": DOCUMENTS, "model": "cascade"},
    "/v2/rerank": {"query": "merge lists", "documents": DOCUMENTS, "model": "cascade"},
}
# What a search of those hits is made of: 256 titles at a time, then four passages.
STEPS = ["search", "query", "titles", "titles", "passages", "passages", "passages"]


class Stage:
    """A stage whose every step waits to be let."""

    def __init__(self, stage: Any, steps: Stepwise, query: str, texts: str) -> None:
        self._stage = stage
        self._steps = steps
        self._query = query
        self._texts = texts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def read(self, query: str) -> Any:
        if self._query:
            self._steps.begin(self._query)
        return self._stage.read(query)

    def score_read(self, *args: Any) -> Any:
        self._steps.begin(self._texts)
        return self._stage.score_read(*args)


class Stepwise:
    """The shipped models, that note every step of a search and wait there until they are let.

    What is searched by "warm up" passes.
    """

    def __init__(self, whole: Cascade) -> None:
        self.name = whole.name
        self.begun: list[str] = []
        self.gone: Callable[[], bool] | None = None  # whether the search's caller is, as told
        self._let = threading.Semaphore(0)
        self._open = threading.Event()
        self._whole = whole
        self._cascade = Cascade(
            Stage(whole.title, self, "query", "titles"),  # type: ignore[arg-type]
            Stage(whole.passage, self, "", "passages"),  # type: ignore[arg-type]
            whole.fusion,
        )
        self._warm = False

    def begin(self, step: str) -> None:
        self.begun.append(step)
        while not self._open.is_set() and not self._let.acquire(timeout=0.01):
            pass

    def go_to(self, step: int) -> None:
        """Let what comes before that step of the first search, and wait for it to be begun."""
        for _ in range(step):
            self._let.release()
        wait_until(lambda: len(self.begun) > step)

    def close(self) -> None:
        """Hold nothing back any more."""
        self._open.set()

    def cut(self, hits: Sequence[Hit], most_tokens: int) -> tuple[list[Hit], int]:
        return self._whole.cut(hits, most_tokens)

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        if not self._warm:
            self._warm = True
            return self._whole.rerank(query, hits, passage_depth)
        self.gone = cancelled
        self.begin("search")
        return self._cascade.rerank(query, hits, passage_depth, deadline_ms, cancelled)

    def told(self) -> bool:
        """Whether the search that was begun last was told that its caller is gone."""
        return self.gone is not None and self.gone()


@pytest.fixture(scope="module")
def whole() -> Cascade:
    return Cascade.load(threads=1)


@contextlib.contextmanager
def calling(client: httpx.Client, path: str = "/rerank") -> Any:
    """A caller that has sent its search, and hangs up at the block's end."""
    body = json.dumps(BODIES[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield raw


def gone(client: httpx.Client, path: str = "/rerank") -> float:
    return sample(client, f'titlecast_requests_total{{outcome="caller_gone",path="{path}"}}')


def test_a_search_whose_caller_waits_takes_every_step(whole: Cascade) -> None:
    steps = Stepwise(whole)
    steps.close()
    with serving(build_app(steps, load_settings())) as client:
        assert client.post("/rerank", json=BODIES["/rerank"]).json()["complete"] is True
        assert gone(client) == 0
    assert steps.begun == STEPS


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_search_goes_no_further_than_the_step_at_which_its_caller_hung_up(
    whole: Cascade, step: int
) -> None:
    steps = Stepwise(whole)
    app = build_app(steps, load_settings(max_concurrent=1))
    with serving(app) as client, contextlib.closing(steps):
        with calling(client):
            steps.go_to(step)
        wait_until(steps.told)
        steps.close()
        wait_until(lambda: sample(client, "titlecast_computed_requests") == 0)
        wait_until(lambda: gone(client) == 1)
        assert steps.begun == STEPS[: step + 1]


@pytest.mark.parametrize("path", BODIES)
def test_whichever_way_it_was_asked(whole: Cascade, path: str) -> None:
    steps = Stepwise(whole)
    with serving(build_app(steps, load_settings())) as client, contextlib.closing(steps):
        with calling(client, path):
            steps.go_to(2)
        wait_until(steps.told)
        steps.close()
        wait_until(lambda: gone(client, path) == 1)
        assert steps.begun == STEPS[:3]


def test_its_turn_is_taken_until_it_has_stopped(whole: Cascade) -> None:
    steps = Stepwise(whole)
    app = build_app(steps, load_settings(max_concurrent=1))
    with serving(app) as client, contextlib.closing(steps):
        with calling(client):
            steps.go_to(2)
        wait_until(steps.told)
        with background(client, BODIES["/rerank"]) as answers:
            wait_until(lambda: sample(client, "titlecast_waiting_requests") == 1)
            assert sample(client, "titlecast_computed_requests") == 1
            assert steps.begun == STEPS[:3]
            steps.close()
        assert [answer.status_code for answer in answers] == [200]
        assert steps.begun == STEPS[:3] + STEPS


def test_who_hangs_up_in_line_leaves_it_at_once(whole: Cascade) -> None:
    steps = Stepwise(whole)
    app = build_app(steps, load_settings(max_concurrent=1, max_waiting=1))
    with serving(app) as client, contextlib.closing(steps):
        with background(client, BODIES["/rerank"]) as first:
            steps.go_to(0)
            with calling(client):
                wait_until(lambda: sample(client, "titlecast_waiting_requests") == 1)
                assert sample(client, "titlecast_waiting_tokens") > 0
            # The first is computed still: nobody's turn has come meanwhile.
            wait_until(lambda: sample(client, "titlecast_waiting_requests") == 0)
            assert sample(client, "titlecast_waiting_tokens") == 0
            wait_until(lambda: gone(client) == 1)
            assert steps.begun == STEPS[:1]
            steps.close()
        assert first[0].json()["complete"] is True
        assert steps.begun == STEPS


def test_who_hung_up_before_the_search_was_read_costs_nothing(whole: Cascade) -> None:
    """As after SIGSTOP, or where the loop was busy: the search and its caller's end lie there."""
    steps = Stepwise(whole)
    steps.close()
    app = build_app(steps, load_settings())
    busy, go_on = threading.Event(), threading.Event()

    @app.get("/busy")
    async def be_busy() -> None:
        busy.set()
        go_on.wait(60)

    with serving(app) as client:
        asking = threading.Thread(target=client.get, args=["/busy"])
        asking.start()
        assert busy.wait(60)
        with calling(client):
            pass
        go_on.set()
        asking.join()
        wait_until(lambda: gone(client) == 1)
        assert steps.begun == []
        assert client.post("/rerank", json=search()).status_code == 200


def test_who_hangs_up_in_the_middle_of_its_search_costs_nothing(whole: Cascade) -> None:
    steps = Stepwise(whole)
    steps.close()
    with serving(build_app(steps, load_settings())) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
            head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            raw.sendall(head + b'Content-Length: 1000\r\n\r\n{"query":')
        wait_until(lambda: gone(client) == 1)
        assert steps.begun == []
