import dataclasses
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from opensearchpy import Connection, OpenSearch
from rich.console import Console

from plugin.cli.search import Comparison, Found, Stage, compare, render, search_body
from plugin.pipelines import Pipeline, pipeline_body

EXT = {
    "applied": True,
    "stages": [
        {"name": "title", "scored": 4, "milliseconds": 3.5, "truncated": 1, "skipped": ""},
        {"name": "passage", "scored": 2, "milliseconds": 9.0, "truncated": 0, "skipped": "late"},
    ],
    "complete": False,
    "model": "mini",
    "took_ms": 14,
}
COMPARISON = Comparison(
    index="docs",
    query="the [b]query[/b]",
    size=3,
    before=tuple(Found(key, f"title {key}", 9.0) for key in "abcde"),
    after=(Found("c", "title [c]", 2.5), Found("b", "", 1.5), Found("x", "title x", None)),
    applied=True,
    reason="",
    complete=True,
    stages=(Stage("title", 5, 3.25, 0, ""),),
    model="mini",
    took_before=4,
    took_after=21,
    rerank_ms=16.0,
)


class FakeSearch(Connection):
    """Answers plain and reranked searches from memory, and keeps what was asked.

    `defaults` are the default pipelines of the indices, all of them Titlecast's with a window of 4.
    """

    def __init__(
        self, ext: Any, asked: list[Any], defaults: Mapping[str, str], **options: Any
    ) -> None:
        super().__init__(**options)
        self.ext = ext
        self.asked = asked
        self.defaults = defaults

    def perform_request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        params: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        timeout: float | None = None,
        ignore: Any = (),
        headers: Any = None,
    ) -> tuple[int, dict[str, str], str]:
        if method == "GET":
            return 200, {"content-type": "application/json"}, json.dumps(self._told(url))
        pipeline = (params or {}).get("search_pipeline")
        asked = json.loads(body or b"{}")
        self.asked.append((url, pipeline, asked))
        if "nothing" in url:
            self._raise_error(404, '{"error": "no such index"}')
        order = "abcd" if pipeline == b"_none" or pipeline == "_none" else "dcba"
        hits = [
            {"_id": key, "_score": 1.0, "_source": {"meta": {"headline": f"title {key}"}}}
            for key in order[: asked["size"]]
        ]
        answer: dict[str, Any] = {"took": 7, "hits": {"hits": hits}}
        if order == "dcba" and self.ext is not None:
            answer["ext"] = {"title_rerank": self.ext}
        return 200, {"content-type": "application/json"}, json.dumps(answer)

    def _told(self, url: str) -> dict[str, Any]:
        if url.endswith("_settings"):
            return {
                index: {"settings": {"index.search.default_pipeline": name}}
                for index, name in self.defaults.items()
            }
        assert url == "/_search/pipeline"
        return {name: pipeline_body(Pipeline(window=4)) for name in self.defaults.values()}


def make(ext: Any, **defaults: str) -> tuple[OpenSearch, list[Any]]:
    asked: list[Any] = []
    client = OpenSearch(
        hosts=[{}],
        connection_class=FakeSearch,
        ext=ext,
        asked=asked,
        defaults=defaults or {"docs": "_none"},
    )
    return client, asked


def shown(comparison: Comparison) -> list[str]:
    out = io.StringIO()
    Console(width=120, file=out).print(render(comparison))
    return out.getvalue().splitlines()


def row(comparison: Comparison, title: str) -> list[str]:
    (line,) = (line for line in shown(comparison) if title in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_it_searches_once_for_the_window_and_once_for_the_page() -> None:
    client, asked = make(EXT)
    fields = Pipeline("meta.headline", ("body", "more"), window=4)
    comparison = compare(client, "docs", "q", 2, fields)
    assert [pipeline for _, pipeline, _ in asked][1] is None
    assert [(url, body["size"]) for url, _, body in asked] == [
        ("/docs/_search", 4),
        ("/docs/_search", 2),
    ]
    assert asked[0][2]["query"] == asked[1][2]["query"] == search_body("q", fields)["query"]
    assert [hit.id for hit in comparison.before] == list("abcd")
    assert comparison.after == (Found("d", "title d", 1.0), Found("c", "title c", 1.0))
    assert (comparison.took_before, comparison.took_after, comparison.rerank_ms) == (7, 7, 14.0)


def test_it_reads_what_the_stages_tell() -> None:
    comparison = compare(make(EXT)[0], "docs", "q")
    assert comparison.applied
    assert not comparison.complete
    assert comparison.model == "mini"
    assert comparison.stages == (
        Stage("title", 4, 3.5, 1, ""),
        Stage("passage", 2, 9.0, 0, "late"),
    )


def test_it_reads_why_nothing_was_reranked() -> None:
    comparison = compare(make({"applied": False, "reason": "no query text"})[0], "docs", "q")
    assert not comparison.applied
    assert comparison.reason == "no query text"
    without = compare(make(None)[0], "docs", "q")
    assert not without.applied
    assert without.reason == "no pipeline of Titlecast's is the index's default"
    empty = compare(make(None)[0], "docs", "q", 0)
    assert not empty.applied
    assert empty.reason == "there is no hit to rerank"


@pytest.mark.parametrize(
    ("defaults", "reason"),
    [
        ({"docs": "ours"}, r"ours says nothing .*pipeline show --index docs"),
        ({"a": "ours", "b": "theirs"}, r"none of several default pipelines \(ours, theirs\)"),
    ],
)
def test_a_pipeline_that_leaves_a_search_alone_is_not_called_missing(
    defaults: dict[str, str], reason: str
) -> None:
    alone = compare(make(None, **defaults)[0], "docs", "q")
    assert not alone.applied
    assert re.search(reason, alone.reason)


def test_a_missing_index_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="no index nothing: make one"):
        compare(make(EXT)[0], "nothing", "q")


def test_the_search_reads_title_and_passages() -> None:
    body = search_body("q", Pipeline("t", ("p", "r")))
    assert body["query"]["multi_match"]["fields"] == ["t", "p", "r"]
    assert body["_source"] == ["t"]


def test_rows_tell_ranks_and_movement() -> None:
    assert row(COMPARISON, "title [c]") == ["3", "1", "▲ 2", "2.500", "title [c]"]
    assert row(COMPARISON, "(no title)") == ["2", "2", "=", "1.500", "(no title)"]
    # Not among the engine's best five, so it came from below them.
    assert row(COMPARISON, "title x") == [">5", "3", "▲", "", "title x"]
    # Was on the page of three, and is not any more.
    assert row(COMPARISON, "title a") == ["1", ">3", "▼", "", "title a"]


def test_what_was_never_on_the_page_is_not_shown() -> None:
    text = "\n".join(shown(COMPARISON))
    assert "title d" not in text
    assert "title e" not in text


def test_a_hit_that_sinks_on_the_page_points_down() -> None:
    sunk = dataclasses.replace(COMPARISON, after=(Found("b", "B", 2.0), Found("a", "A", 1.0)))
    assert row(sunk, " A ")[2] == "▼ 1"


def test_times_are_told() -> None:
    text = "\n".join(shown(COMPARISON))
    assert "the [b]query[/b]" in text
    assert "engine alone, 5 hits: 4 ms; with the pipeline: 21 ms, reranking 16 ms of it" in text
    assert "title: 5 hits in 3.2 ms" in text
    assert "not reranked" not in text


def test_what_went_wrong_is_told() -> None:
    stage = Stage("passage", 2, 9.0, 3, "out of [time]")
    partial = "\n".join(shown(dataclasses.replace(COMPARISON, complete=False, stages=(stage,))))
    assert "3 of them cut to the model's length, not all: out of [time]" in partial
    assert "reranked in part" in partial
    failed = dataclasses.replace(COMPARISON, applied=False, reason="no sidecar [x]", stages=())
    assert "not reranked: no sidecar [x]" in "\n".join(shown(failed))


def test_no_hits_are_told() -> None:
    assert "No hits." in shown(dataclasses.replace(COMPARISON, before=(), after=()))
