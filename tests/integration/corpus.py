"""A small index whose every document is found by one query, and what searches of it must give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from opensearchpy import OpenSearch

from indexing.mapping import index_body
from plugin.pipelines import DEFAULT_SETTING
from reranker import Cascade, Hit

INDEX = "test-search"
PIPELINE = "test-search"
QUERY = "merging sorted lists"
WINDOW = 20
DEPTH = 5
_SUBJECTS = (
    *("heaps", "merging", "sorting", "bisection", "queues", "stacks"),
    *("sets", "trees", "graphs", "strings", "numbers", "dates"),
)
_TITLES = ("Introduction to {}", "{} in practice", "The history of {}")

# The engine likes those best that repeat "lists" most, which says little about them: models that
# are any good rank otherwise.
DOCUMENTS: dict[str, dict[str, Any]] = {
    str(n): {
        "title": _TITLES[n % 3].format(_SUBJECTS[n // 3]),
        "passage": f"All about {_SUBJECTS[n // 3]}." + " lists" * (n % 7 + 1) + " filler" * n,
        "group": f"group {n % 4}",
        "rank": n,
        "about": {"colour": "blue", "size": n, "title": "of no concern"},
        "parts": [{"text": f"part {n}"}, {"text": f"another part of {n}"}],
    }
    for n in range(36)
}

_BODY = index_body()
_BODY["mappings"]["properties"] |= {
    "group": {"type": "keyword"},
    "rank": {"type": "integer"},
    "about": {"properties": {"colour": {"type": "keyword"}, "size": {"type": "integer"}}},
    "parts": {"type": "nested", "properties": {"text": {"type": "text"}}},
}


def matching(query: str = QUERY) -> dict[str, Any]:
    """The query that an application would send."""
    return {"multi_match": {"query": query, "fields": ["title^2", "passage"]}}


def pipeline(timeout: str = "60s", on_failure: str = "engine_order", **more: Any) -> dict[str, Any]:
    """A pipeline that widens to the window and reranks it."""
    return {
        "request_processors": [{"title_rerank_candidates": {"window": WINDOW}}],
        "response_processors": [
            {
                "title_rerank": {
                    "passage_depth": DEPTH,
                    "timeout": timeout,
                    "on_failure": on_failure,
                    **more,
                }
            }
        ],
    }


def make_index(
    client: OpenSearch,
    name: str = INDEX,
    documents: dict[str, dict[str, Any]] = DOCUMENTS,
    *,
    default: str | None = PIPELINE,
    shards: int = 1,
    mappings: dict[str, Any] | None = None,
) -> None:
    """Create an index that holds the documents, with a default pipeline."""
    body = copy.deepcopy(_BODY)
    body["settings"] |= {"index.number_of_shards": shards}
    if default:
        body["settings"] |= {DEFAULT_SETTING: default}
    if mappings:
        body["mappings"] = mappings
    client.indices.create(index=name, body=body)
    lines: list[Any] = []
    for key, document in documents.items():
        lines += [{"index": {"_id": key}}, document]
    done = client.bulk(index=name, body=lines, refresh=True)
    assert not done["errors"], done


def body_of(**parts: Any) -> dict[str, Any]:
    """The body of a search; `from_` stands for `from`."""
    return {"query": matching(), **{name.removesuffix("_"): v for name, v in parts.items()}}


def unpiped(client: OpenSearch, index: str = INDEX, **body: Any) -> dict[str, Any]:
    """What the engine answers without any pipeline."""
    found: dict[str, Any] = client.search(
        index=index, body=body_of(**body), search_pipeline="_none"
    )
    return found


def hits_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = response["hits"]["hits"]
    return found


def ids(response: dict[str, Any]) -> list[str]:
    return [hit["_id"] for hit in hits_of(response)]


def scores(response: dict[str, Any]) -> list[float]:
    return [hit["_score"] for hit in hits_of(response)]


def report(response: dict[str, Any]) -> dict[str, Any]:
    """What the response says of its reranking."""
    found: dict[str, Any] = response["ext"]["title_rerank"]
    return found


def around(response: dict[str, Any]) -> dict[str, Any]:
    """All that reranking has to leave as it is, but the hits."""
    hits = {name: value for name, value in response["hits"].items() if name == "total"}
    kept = {k: v for k, v in response.items() if k not in ("took", "ext", "hits", "profile")}
    return {**kept, "hits": hits}


def in_order_of(
    cascade: Cascade,
    window: list[dict[str, Any]],
    documents: dict[str, dict[str, Any]] = DOCUMENTS,
    query: str = QUERY,
) -> list[dict[str, Any]]:
    """The window's hits in the order and with the scores that the models give them in process."""
    texts = [(documents[hit["_id"]]["title"], documents[hit["_id"]]["passage"]) for hit in window]
    hits = [Hit(hit["_id"], *text, hit["_score"]) for hit, text in zip(window, texts, strict=True)]
    # With a deadline, though one of no effect, as in the sidecar: passages go in the same batches.
    ranked = cascade.rerank(query, hits, DEPTH, deadline_ms=60_000)
    return [
        {**window[hit.index], "_score": pytest.approx(hit.score, rel=1e-4)} for hit in ranked.hits
    ]
