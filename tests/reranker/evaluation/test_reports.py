from __future__ import annotations

import json

import pytest

from reranker.evaluation.collections import Collection, Query
from reranker.evaluation.reports import Report, compare_runs, measure_runs, sweep_depths
from reranker.evaluation.runs import Run
from reranker.records import Hit, RankedHit, RerankResult

pytest.importorskip("ir_measures", reason="ir-measures is in the train extra")

MEASURES = ["nDCG@10", "R@1", "KILT-Rprec"]
GOOD: Run = {"q1": [("d1", 2.0), ("d2", 1.0)], "q2": [("d4", 1.0)], "q4": [("d3", 1.0)]}
BAD: Run = {"q1": [("d3", 2.0), ("d1", 1.0)], "q2": [], "unjudged": [("d1", 1.0)]}


class Backwards:
    """A cascade that turns the first `passage_depth` hits around."""

    def rerank(self, query: str, hits: list[Hit], passage_depth: int = 20) -> RerankResult:
        order = hits[:passage_depth][::-1] + hits[passage_depth:]
        ranked = [
            RankedHit(hit.id, hits.index(hit), 2 - place / 100, hit.score)
            for place, hit in enumerate(order)
        ]
        return RerankResult(ranked, [], complete=True)


def test_rows_count_judged_queries_and_compare_with_the_first(collection: Collection) -> None:
    first, second = measure_runs(collection, {"bad": (BAD, 1.5), "good": (GOOD, None)}, MEASURES)
    assert (first.name, first.ranked, first.milliseconds) == ("bad", 1, 1.5)
    assert (second.name, second.ranked, second.milliseconds) == ("good", 3, None)
    # Of q1's two relevant passages one is among the first two; q2 and q4 are not ranked.
    assert first.estimates["KILT-Rprec"].mean == pytest.approx(1 / 6)
    assert first.estimates["KILT-Rprec"].p is None
    assert second.estimates["nDCG@10"].mean == pytest.approx(1.0)
    assert second.estimates["R@1"].mean == pytest.approx(2.5 / 3)
    # Three queries, all better: 2 of the 8 sign assignments are as extreme.
    assert second.estimates["nDCG@10"].p == pytest.approx(2 / 8, abs=0.02)
    for row in (first, second):
        for estimate in row.estimates.values():
            assert estimate.low <= estimate.mean <= estimate.high


def test_a_collection_without_judgements_is_an_error() -> None:
    collection = Collection.from_qrels("bare", [Query("q", "text")], [], [])
    with pytest.raises(ValueError, match="bare judges none"):
        measure_runs(collection, {"x": ({}, None)}, MEASURES)


def test_two_models_are_compared_query_by_query(collection: Collection) -> None:
    measures = ["nDCG@10", "RR@10"]
    (one,) = compare_runs(collection, {"title": (BAD, 2.0)}, {"title": (GOOD, 1.0)}, measures)
    assert (one.name, one.milliseconds) == ("title", (2.0, 1.0))
    # q1's first relevant passage moves from rank 2 to 1; q2 and q4 had none.
    assert one.before["RR@10"] == pytest.approx(0.5 / 3)
    assert one.after["RR@10"] == pytest.approx(1.0)
    change = one.difference["RR@10"]
    assert change.mean == pytest.approx(2.5 / 3)
    assert 0.5 <= change.low <= change.mean <= change.high <= 1.0
    assert change.p == pytest.approx(2 / 8, abs=0.02)
    (same,) = compare_runs(collection, {"x": (GOOD, None)}, {"x": (GOOD, None)}, measures)
    assert same.before == same.after
    assert same.difference["nDCG@10"] == (same.difference["RR@10"])
    assert (same.difference["RR@10"].mean, same.difference["RR@10"].p) == (0.0, 1.0)


def test_sweep_measures_each_depth(collection: Collection) -> None:
    shallow, deep = sweep_depths(Backwards(), BAD, collection, [0, 2], ["RR@10"])
    assert (shallow.depth, deep.depth) == (0, 2)
    assert shallow.estimates["RR@10"].mean == pytest.approx(0.5 / 3)
    assert deep.estimates["RR@10"].mean == pytest.approx(1 / 3)
    assert shallow.milliseconds >= 0


def test_a_report_is_json(collection: Collection) -> None:
    rows = measure_runs(collection, {"good": (GOOD, None)}, MEASURES)
    points = sweep_depths(Backwards(), GOOD, collection, [1], MEASURES)
    report = Report("tiny", 5, 4, 0, 3, 100, "BM25", rows, {"reranker": "shipped"}, points)
    read = json.loads(json.dumps(report.to_json()))
    assert read["judged"] == 3
    assert read["rows"][0]["estimates"]["nDCG@10"]["mean"] == pytest.approx(1.0)
    assert read["depths"][0]["depth"] == 1
