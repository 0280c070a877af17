"""Stand-in models, and servers and callers for the sidecar's tests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
from fastapi import FastAPI

from plugin.sidecar.protocol import ErrorResponse
from reranker import Hit, RankedHit, RerankResult, StageReport
from reranker.cascade import Cancelled
from tests import servers


@contextlib.contextmanager
def serving(app: FastAPI, **options: Any) -> Iterator[httpx.Client]:
    """A real server on a free port, with options of `uvicorn.Config`, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            servers.serving(app, listener, timeout_graceful_shutdown=5, **options),
            httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
        ):
            yield client


def search(**fields: Any) -> dict[str, Any]:
    return {"query": "merge lists", "hits": [{"id": "a", "title": "merge"}], **fields}


def sample(client: httpx.Client, name: str, headers: dict[str, str] | None = None) -> float:
    """The value of one line of the metrics, by its name and labels; 0 where it is not there."""
    response = client.get("/metrics", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    for line in response.text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


def sentence(response: httpx.Response) -> str:
    """The error of an answer, which is nothing but one sentence."""
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    text = ErrorResponse.model_validate_json(response.content).error
    assert text
    assert "\n" not in text
    return text


class Gated:
    """A reranker that says what it was asked, and holds every search back until it is let go."""

    name = "gated"

    def __init__(self) -> None:
        self.asked: list[tuple[str, float | None]] = []
        self.stopped: list[str] = []
        self.warm = False
        self.open = threading.Event()

    def cut(self, hits: Sequence[Hit], most_tokens: int) -> tuple[list[Hit], int]:
        return [hit._replace(passage=hit.passage[:most_tokens]) for hit in hits], 0

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        if not self.warm:
            self.warm = True
            return RerankResult([], [], complete=True)
        self.asked.append((query, deadline_ms))
        while not self.open.wait(0.01):
            if cancelled():
                self.stopped.append(query)
                raise Cancelled("the caller is gone")
        ranked = [
            RankedHit(hit.id, place, 1 + 1 / (place + 1), hit.score)
            for place, hit in enumerate(hits)
        ]
        return RerankResult(ranked, [StageReport("title", len(hits), 1.0)], complete=True)


@contextlib.contextmanager
def background(client: httpx.Client, *bodies: dict[str, Any]) -> Iterator[list[httpx.Response]]:
    """Searches on threads of their own; all have been answered once the block is left."""
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda b=body: answers.append(client.post("/rerank", json=b)))
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join()
