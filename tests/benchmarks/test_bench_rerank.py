"""The benchmark itself, on small models: contenders answer, one that cannot run is named."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.bench_rerank import (
    ROWS,
    SEARCHERS,
    describe,
    find_queries,
    find_work,
    flops_per_token,
    measure,
    ratio,
    show_searches,
)
from tests.reranker.conftest import SMALL, random_encoder, write_model, write_models

TITLES = ["heap queue", "merge sorted lists", "read lines of files"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_the_arithmetic_of_a_token_is_that_of_all_layers_linear_maps(models):
    c = SMALL
    per_layer = 4 * c.hidden * c.hidden + 2 * c.hidden * c.intermediate
    assert flops_per_token(models / "title") == 2 * c.layers * per_layer
    write_model(models / "sinks", "title", random_encoder(replace(SMALL, sinks=True)))
    assert flops_per_token(models / "sinks") == 2 * c.layers * per_layer


def test_a_ratio_is_that_of_rounds_not_of_medians():
    # The machine is half as fast in the last rounds, and one row is no longer measured then.
    assert ratio([40.0, 40.0, 80.0], [10.0, 10.0, 20.0, 20.0, 20.0]) == 4.0


def test_contenders_take_turns_and_one_that_cannot_run_is_named(models, tmp_path):
    work = tmp_path / "work.json"
    texts = {"query": "merge lists", "ids": ["1", "2", "3"], "titles": TITLES}
    texts |= {"passages": ["a heap", "lists", "files"], "many": ["open a file"]}
    work.write_text(json.dumps(texts))
    told = io.StringIO()
    console = Console(file=told, width=120)
    describe(console, work, models, 1)
    # No model was made for etr-fp32.
    only = "^(etr|cascade-cached|etr-fp32|limit)$"
    measure(console, work, models, tmp_path, 1, 1, only, cpu=False)
    said = told.getvalue()
    assert "3 hits" in said
    for row in ROWS:
        if row.contender in ("etr", "cascade-cached"):
            assert row.label in said
    assert "GFLOP/s" in said
    assert "left out: etr-fp32: FileNotFoundError" in said


def test_several_searches_are_measured_by_the_cascade_and_by_all_passages(models, tmp_path):
    corpus = [{"_id": str(i), "title": title, "text": "a heap"} for i, title in enumerate(TITLES)]
    queries = [{"_id": "q1", "text": "heap"}, {"_id": "q2", "text": "heap lists"}]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t0\t1\nq2\t1\t1\n")
    found = find_work(tmp_path, searches=2)
    assert [search["query"] for search in found["searches"]] == ["heap", "heap lists"]
    for search in found["searches"]:
        assert sorted(search["ids"]) == ["0", "1", "2"]
        assert search["scores"] == sorted(search["scores"], reverse=True)
    work = tmp_path / "work.json"
    texts = {"titles": TITLES, "passages": ["a heap", "lists", "files"], "ids": ["1", "2", "3"]}
    texts |= {"many": []}
    work.write_text(json.dumps({**found, **texts}))
    console = Console(file=io.StringIO(), width=120)
    measure(console, work, models, tmp_path, 1, 1, "^(passage|cascade)$", cpu=True)
    said = console.file.getvalue()
    assert "over 2 searches" in said
    assert SEARCHERS["passage"] in said
    assert "3.0 of 20" in said
    assert "mean against mean" in said


def test_the_ratio_is_of_means_over_searches_and_of_each_ones_median():
    def runs(*values: float, read: int | None = None) -> list[dict[str, float]]:
        return [{"ms": ms} | ({} if read is None else {"read": read}) for ms in values]

    taken = {
        SEARCHERS["passage"]: [runs(600, 630, 9000), runs(1000, 1000, 1000)],
        SEARCHERS["cascade"]: [runs(50, 63, 1, read=4), runs(500, 500, 500, read=20)],
    }
    console = Console(file=io.StringIO(), width=120)
    show_searches(console, taken, "ms")
    said = console.file.getvalue()
    assert "815.0" in said
    assert "275.0" in said
    assert "12.0 of 20" in said
    assert "2.96 times as fast (wanted: 6); single searches 2.00 to 12.60" in said


def test_without_a_folder_the_searches_are_spread_over_those_of_the_documentation():
    (few, many) = (find_queries(None, count, None) for count in (4, 10_000))
    assert len(few) == len(set(few)) == 4
    assert len(many) == len(set(many)) > 40
    assert [many.index(query) for query in few] == [at * len(many) // 4 for at in range(4)]
