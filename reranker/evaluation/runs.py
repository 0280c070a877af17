"""Runs: made by a first stage, reranked by anything, fused with each other.

A run maps a query's id to its ranking, (document id, score) with the best first. Whatever
reorders hits is a `Reranker`: title model, passage model, cascade, an off-the-shelf bi-encoder,
or a function written in a test, so all are evaluated by the same code on the same candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reranker.evaluation.collections import Collection, Document, Query
from reranker.fusion import standardise
from reranker.records import Hit, RerankResult

Ranking = list[tuple[str, float]]
Run = dict[str, Ranking]
Reranker = Callable[[str, list[Hit]], Ranking]  # query text, hits -> (id, score) in any order


class Searcher(Protocol):
    """A first stage."""

    def search(self, query: str, k: int = ...) -> Ranking:
        """Find the k best documents."""


class TitleScorer(Protocol):
    """The title stage, as `reranker.TitleReranker` is one."""

    def score(self, query: str, titles: list[str]) -> NDArray[np.float32]:
        """Score titles, (n,)."""


class PassageScorer(Protocol):
    """The passage stage, as `reranker.PassageReranker` is one."""

    def score(self, query: str, titles: list[str], passages: list[str]) -> NDArray[np.float32]:
        """Score titled passages, (n,)."""


class HitReranker(Protocol):
    """All stages together, as `reranker.Cascade` does them."""

    def rerank(self, query: str, hits: list[Hit], passage_depth: int = ...) -> RerankResult:
        """Rerank hits."""


@dataclass(frozen=True)
class Reranking:
    """A run and what it took: `milliseconds` per query of the reranker alone."""

    run: Run
    milliseconds: Mapping[str, float]

    @property
    def mean_milliseconds(self) -> float:
        """The mean time of one query; NaN where nothing was ranked."""
        return float(np.mean(list(self.milliseconds.values()))) if self.milliseconds else np.nan


def rank(scored: Iterable[tuple[str, float]]) -> Ranking:
    """Sort by falling score; equal scores keep their order, NaN comes last."""
    return sorted(scored, key=lambda hit: (np.isnan(hit[1]), -hit[1]))


def highest(scores: NDArray[np.float32], k: int) -> list[int]:
    """The places of the k highest of scores (n,), best first, equal ones in their order."""
    k = min(k, len(scores))
    if k <= 0:
        return []
    threshold = np.partition(scores, -k)[-k]
    near = np.flatnonzero(scores >= threshold)  # in order, ties with the k-th too
    best: list[int] = near[np.argsort(-scores[near], kind="stable")[:k]].tolist()
    return best


def first_stage(searcher: Searcher, queries: Iterable[Query], k: int = 100) -> Reranking:
    """Search every query; one that finds nothing gets an empty ranking."""
    run: Run = {}
    milliseconds = {}
    for query in queries:
        start = time.perf_counter()
        run[query.id] = searcher.search(query.text, k)
        milliseconds[query.id] = (time.perf_counter() - start) * 1e3
    return Reranking(run, milliseconds)


def cut(run: Run, queries: Iterable[Query], k: int) -> Run:
    """Keep the first k hits of each of these queries that the run ranked."""
    return {query.id: run[query.id][:k] for query in queries if query.id in run}


def rerank(
    run: Run,
    queries: Iterable[Query],
    corpus: Mapping[str, Document],
    reranker: Reranker,
    progress: Callable[[], None] = lambda: None,
) -> Reranking:
    """Rerank each ranking of a run, calling `progress` after each query.

    Documents that the corpus lacks are passed on without title and passage. The result is
    sorted by the reranker's scores, equal ones in the order the reranker gave.

    Raises ValueError when a reranker does not give back exactly the ids it got.
    """
    reranked: Run = {}
    milliseconds = {}
    for query in queries:
        if query.id not in run:
            continue
        hits = []
        for key, score in run[query.id]:
            document = corpus.get(key) or Document(key, "")
            hits.append(Hit(key, document.title, document.text, score))
        start = time.perf_counter()
        scored = reranker(query.text, hits) if hits else []
        milliseconds[query.id] = (time.perf_counter() - start) * 1e3
        if sorted(key for key, _ in scored) != sorted(hit.id for hit in hits):
            raise ValueError(
                f"The reranker changed the hits of query {query.id!r}; it must score each once."
            )
        reranked[query.id] = rank(scored)
        progress()
    return Reranking(reranked, milliseconds)


def by_title(scorer: TitleScorer) -> Reranker:
    """Rerank by the title stage's logits alone."""

    def reranker(query: str, hits: list[Hit]) -> Ranking:
        scores = scorer.score(query, [hit.title for hit in hits])
        return [(hit.id, float(score)) for hit, score in zip(hits, scores, strict=True)]

    return reranker


def by_passage(scorer: PassageScorer, depth: int | None = None) -> Reranker:
    """Rerank the first `depth` hits (default: all) by the passage stage's logits alone.

    The others follow in the order they had; their scores say no more than that.
    """

    def reranker(query: str, hits: list[Hit]) -> Ranking:
        head, tail = hits[:depth], hits[len(hits[:depth]) :]
        if not head:
            return [(hit.id, -float(place)) for place, hit in enumerate(tail)]
        logits = scorer.score(query, [hit.title for hit in head], [hit.passage for hit in head])
        ranking = [(hit.id, float(logit)) for hit, logit in zip(head, logits, strict=True)]
        floor = min(score for _, score in ranking)
        below = ((hit.id, floor - place) for place, hit in enumerate(tail, start=1))
        return [*ranking, *below]

    return reranker


def by_cascade(cascade: HitReranker, passage_depth: int = 20) -> Reranker:
    """Rerank by the whole cascade; a depth of 0 is the fused title stage."""

    def reranker(query: str, hits: list[Hit]) -> Ranking:
        result = cascade.rerank(query, hits, passage_depth=passage_depth)
        return [(hit.id, hit.score) for hit in result.hits]

    return reranker


def fuse(runs: Sequence[Run], weights: Sequence[float]) -> Run:
    """Fuse runs: per query, standardise each run's scores and add them up by weight.

    Standardised: mean 0 and standard deviation 1 over the run's own ranking; all 0 where the
    scores are equal. A document that a run lacks gets the lowest standardised score that run
    gave. Queries are those of the first run.

    Raises ValueError unless there is one weight per run.
    """
    if len(runs) != len(weights) or not runs:
        raise ValueError(f"{len(runs)} runs for {len(weights)} weights; give one for each run.")
    fused: Run = {}
    for query_id in runs[0]:
        standard = [dict(_standardise(run.get(query_id, []))) for run in runs]
        lowest = [min(scores.values(), default=0.0) for scores in standard]
        ids = dict.fromkeys(key for scores in standard for key in scores)
        fused[query_id] = rank(
            (
                key,
                sum(
                    weight * scores.get(key, floor)
                    for weight, scores, floor in zip(weights, standard, lowest, strict=True)
                ),
            )
            for key in ids
        )
    return fused


def oracle(run: Run, collection: Collection) -> Run:
    """Rank a run's own candidates as well as they can be: the ceiling of any reranker.

    Relevant documents come first, by falling relevance; among gold sets, the one with the
    largest share of its pages among the candidates leads, the smaller one first.
    """
    best: Run = {}
    for query_id, ranking in run.items():
        found = {key for key, _ in ranking}
        qrels = collection.qrels.get(query_id, {})
        gold_sets = sorted(
            (set(gold) for gold in collection.gold_sets.get(query_id, ()) if gold),
            key=lambda gold: (-len(gold & found) / len(gold), len(gold)),
        )
        set_rank = {
            key: place for place, gold in reversed(list(enumerate(gold_sets))) for key in gold
        }
        order = sorted(
            (document for document, _ in ranking),
            key=lambda document: (
                -max(qrels.get(document, 0), 0),
                set_rank.get(document, len(gold_sets)),
            ),
        )
        best[query_id] = [(document, -float(place)) for place, document in enumerate(order)]
    return best


def _standardise(ranking: Ranking) -> Ranking:
    scores = standardise(np.array([score for _, score in ranking], dtype=np.float64))
    return [(key, score) for (key, _), score in zip(ranking, scores.tolist(), strict=True)]
