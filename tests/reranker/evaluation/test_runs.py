from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import Collection, Document, GoldQuery, Query
from reranker.evaluation.measures import r_precision, recall_at
from reranker.evaluation.runs import (
    Ranking,
    Run,
    by_cascade,
    by_passage,
    by_title,
    cut,
    first_stage,
    fuse,
    highest,
    oracle,
    rank,
    rerank,
)
from reranker.records import Hit, RankedHit, RerankResult, StageReport

finite = st.floats(-1e6, 1e6)
rankings = st.dictionaries(st.sampled_from("abcdefgh"), finite, max_size=8).map(
    lambda hits: rank(hits.items())
)


class Overlap:
    """A title and passage scorer: the share of the query's words that a text has."""

    def score(
        self, query: str, titles: list[str], passages: list[str] | None = None
    ) -> NDArray[np.float32]:
        words = set(query.lower().split())
        texts = zip(titles, passages or [""] * len(titles), strict=True)
        shares = [len(words & set(f"{t} {p}".lower().split())) / len(words) for t, p in texts]
        return np.array(shares, dtype=np.float32)


class OverlapCascade:
    """A cascade made of two `Overlap`s: titles order all hits, passages the first ones anew."""

    def rerank(self, query: str, hits: list[Hit], passage_depth: int = 20) -> RerankResult:
        scores = Overlap().score(query, [hit.title for hit in hits])
        order = sorted(range(len(hits)), key=lambda i: -scores[i])
        head = order[:passage_depth]
        texts = [hits[i].title for i in head], [hits[i].passage for i in head]
        passages = dict(zip(head, Overlap().score(query, *texts).tolist(), strict=True))
        head.sort(key=lambda i: -passages[i])
        order = head + order[passage_depth:]
        ranked = [
            RankedHit(hits[i].id, i, (2 if i in passages else 1) - place / 1000, hits[i].score)
            for place, i in enumerate(order)
        ]
        return RerankResult(ranked, [StageReport("title", len(hits), 0.1)], complete=True)


def ids(ranking: Ranking) -> list[str]:
    return [document for document, _ in ranking]


def hits(collection: Collection) -> list[Hit]:
    return [Hit(d.id, d.title, d.text, 1.0) for d in collection.corpus.values()]


def test_rank_is_stable_and_puts_nan_last() -> None:
    assert ids(rank([("a", 1), ("n", math.nan), ("b", 2), ("c", 1)])) == ["b", "a", "c", "n"]
    assert ids(rank([("n", math.nan), ("a", -math.inf)])) == ["a", "n"]


def test_first_stage_ranks_every_query(collection: Collection) -> None:
    searched = first_stage(BM25.over(collection.corpus), collection.queries, k=2)
    assert ids(searched.run["q2"]) == ["d4", "d5"]
    assert searched.run["q4"] == []
    assert searched.milliseconds.keys() == searched.run.keys()
    assert searched.mean_milliseconds > 0


def test_cut_keeps_the_queries_that_were_ranked() -> None:
    run: Run = {"q1": [("a", 2.0), ("b", 1.0)], "q9": [("a", 1.0)]}
    assert cut(run, [Query("q1", ""), Query("q2", "")], 1) == {"q1": [("a", 2.0)]}


def test_rerank_hands_over_hits_in_order(collection: Collection) -> None:
    seen: list[tuple[str, list[Hit]]] = []
    done: list[int] = []

    def reverse(query: str, hits: list[Hit]) -> Ranking:
        seen.append((query, hits))
        return [(hit.id, float(place)) for place, hit in enumerate(hits)]

    run: Run = {"q1": [("d3", 7.0), ("gone", 6.0), ("d1", 5.0)], "q2": [], "other": [("d1", 1.0)]}
    reranking = rerank(run, collection.queries, collection.corpus, reverse, lambda: done.append(1))
    text = "Scott Derrickson is an American film director."
    assert [query for query, _ in seen] == ["american filmmaker Ed Wood"]  # nothing for no hits
    assert seen[0][1][:2] == [Hit("d3", "Scott Derrickson", text, 7.0), Hit("gone", "", "", 6.0)]
    assert reranking.run == {"q1": [("d1", 2.0), ("gone", 1.0), ("d3", 0.0)], "q2": []}
    assert len(done) == 2


@pytest.mark.parametrize("answer", [[], [("d1", 1.0), ("d1", 0.0)], [("d1", 1.0), ("x", 0.0)]])
def test_rerank_refuses_lost_or_invented_hits(collection: Collection, answer: Ranking) -> None:
    run: Run = {"q1": [("d1", 2.0), ("d2", 1.0)]}
    with pytest.raises(ValueError, match="must score each once"):
        rerank(run, collection.queries, collection.corpus, lambda query, hits: answer)


def test_by_title_and_by_passage(collection: Collection) -> None:
    by_titles = by_title(Overlap())("ed wood plan", hits(collection))
    assert ids(rank(by_titles)) == ["d1", "d2", "d3", "d4", "d5"]
    by_passages = by_passage(Overlap())("ed wood plan", hits(collection))
    assert ids(rank(by_passages))[:2] == ["d2", "d1"]


@pytest.mark.parametrize("depth", range(7))
def test_by_passage_leaves_the_rest_below_in_their_order(
    collection: Collection, depth: int
) -> None:
    everything = hits(collection)
    ranked = ids(rank(by_passage(Overlap(), depth)("heap sorts sand", everything)))
    given_ = [hit.id for hit in everything]
    assert ranked[depth:] == given_[depth:]
    assert set(ranked[:depth]) == set(given_[:depth])


def test_by_cascade_takes_its_order(collection: Collection) -> None:
    query = "ed wood plan"
    ranking = by_cascade(OverlapCascade(), 2)(query, hits(collection))
    assert ids(ranking) == ids(rank(ranking)) == ["d2", "d1", "d3", "d4", "d5"]
    assert ids(by_cascade(OverlapCascade(), 0)(query, hits(collection)))[:2] == ["d1", "d2"]


def test_fusion_by_hand() -> None:
    first: Run = {"q": [("a", 30.0), ("b", 20.0), ("c", 10.0)]}
    second: Run = {"q": [("c", 0.9), ("b", 0.1)]}
    z = math.sqrt(1.5)  # 30, 20, 10 standardised: z, 0, -z; 0.9, 0.1: 1, -1; a lacks: -1
    assert fuse([first, second], [0.6, 0.4])["q"] == [
        ("a", pytest.approx(0.6 * z - 0.4)),
        ("c", pytest.approx(-0.6 * z + 0.4)),
        ("b", pytest.approx(-0.4)),
    ]


def test_fusion_of_equal_scores_single_hits_and_missing_queries() -> None:
    flat: Run = {"q": [("a", 0.1), ("b", 0.1), ("c", 0.1)], "one": [("a", 5.0)], "none": []}
    other: Run = {"q": [("c", 2.0), ("a", 1.0), ("b", 1.0)]}
    fused = fuse([flat, other], [0.9, 0.1])
    assert ids(fused["q"]) == ["c", "a", "b"]
    assert fused["one"] == [("a", 0.0)]
    assert fused["none"] == []


def test_fusion_needs_a_weight_per_run() -> None:
    with pytest.raises(ValueError, match="one for each run"):
        fuse([{}], [0.5, 0.5])


@given(rankings, rankings, st.floats(0.1, 10), st.floats(-100, 100))
def test_fusion_does_not_see_a_runs_scale(
    first: Ranking, second: Ranking, scale: float, shift: float
) -> None:
    scaled = [(key, score * scale + shift) for key, score in second]
    fused = dict(fuse([{"q": first}, {"q": second}], [0.5, 0.5])["q"])
    again = dict(fuse([{"q": first}, {"q": scaled}], [0.5, 0.5])["q"])
    assert fused.keys() == again.keys() == dict(first).keys() | dict(second).keys()
    spread = max((s for _, s in second), default=0) - min((s for _, s in second), default=0)
    if spread > 1:  # below, rounding decides
        assert all(fused[key] == pytest.approx(again[key], abs=1e-4) for key in fused)


@given(rankings)
def test_fusion_with_full_weight_keeps_a_runs_order(ranking: Ranking) -> None:
    reverse = {"q": [(key, -score) for key, score in reversed(ranking)]}
    assert ids(fuse([{"q": ranking}, reverse], [1.0, 0.0])["q"]) == ids(ranking)


@given(st.permutations("abcdef"), st.lists(st.frozensets(st.sampled_from("abcdefxy"), min_size=1)))
def test_the_oracle_is_a_ceiling(order: list[str], gold: list[frozenset[str]]) -> None:
    documents = [Document(key, key) for key in "abcdefxy"]
    collection = Collection.from_gold_sets(
        "x", [GoldQuery(Query("q", "?"), tuple(gold))], documents
    )
    run: Run = {"q": [(key, -float(place)) for place, key in enumerate(order)]}
    best = oracle(run, collection)["q"]
    assert sorted(ids(best)) == sorted(order)
    assert ids(rank(best)) == ids(best)
    assert r_precision(ids(best), gold) >= r_precision(order, gold)
    assert recall_at(ids(best), gold, 6 + 8) >= recall_at(order, gold, 6)


def test_the_oracle_ranks_by_relevance(collection: Collection) -> None:
    run: Run = {"q1": [("d3", 3.0), ("d2", 2.0), ("d1", 1.0)], "unjudged": [("d1", 1.0)]}
    assert ids(oracle(run, collection)["q1"]) == ["d1", "d2", "d3"]
    assert ids(oracle(run, collection)["unjudged"]) == ["d1"]


def test_the_oracle_leads_with_the_gold_set_it_can_complete() -> None:
    gold = (frozenset("bx"), frozenset("ac"), frozenset("d"))
    documents = [Document(key, key) for key in "abcdx"]
    collection = Collection.from_gold_sets("x", [GoldQuery(Query("q", "?"), gold)], documents)
    run: Run = {"q": [(key, 0.0) for key in "zbadc"]}
    assert ids(oracle(run, collection)["q"]) == ["d", "a", "c", "b", "z"]


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=30), st.integers(-1, 40))
def test_the_highest_are_the_head_of_a_stable_sort(scores: list[float], k: int) -> None:
    array = np.array(scores, dtype=np.float32)
    assert highest(array, k) == np.argsort(-array, kind="stable")[: max(k, 0)].tolist()
