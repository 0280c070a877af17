"""Tables: several runs over the same queries, measured and compared with the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reranker.evaluation.collections import Collection
from reranker.evaluation.measures import (
    bootstrap_interval,
    measure_rankings,
    randomisation_test,
)
from reranker.evaluation.runs import HitReranker, Run, by_cascade, rerank


@dataclass(frozen=True)
class Estimate:
    """A mean over the judged queries with its 95 % bootstrap interval.

    `p` is that of the paired randomisation test against the report's first row, None there.
    """

    mean: float
    low: float
    high: float
    p: float | None = None


@dataclass(frozen=True)
class Row:
    """One run's line in a report."""

    name: str
    estimates: Mapping[str, Estimate]  # by measure
    ranked: int  # judged queries for which the run has at least one hit
    milliseconds: float | None = None  # mean time of one query in this step alone


@dataclass(frozen=True)
class DepthPoint:
    """Quality and time of the cascade at one passage depth."""

    depth: int
    estimates: Mapping[str, Estimate]
    milliseconds: float


@dataclass(frozen=True)
class Comparison:
    """One of our rows as two models rank the same candidates of the same queries."""

    name: str  # the row's
    before: Mapping[str, float]  # the other model's mean, by measure
    after: Mapping[str, float]  # the measured model's
    # After less before, query by query: the mean, its interval and the paired test's p.
    difference: Mapping[str, Estimate]
    milliseconds: tuple[float | None, float | None]  # before and after


@dataclass(frozen=True)
class Report:
    """What was measured, on what, with which models."""

    collection: str
    documents: int
    queries: int  # read
    left_out: int  # judged, but trained on or of another split
    judged: int  # of these with a relevant document, and so measured
    candidates: int
    first_stage: str
    rows: Sequence[Row]
    models: Mapping[str, str] = field(default_factory=dict)
    depths: Sequence[DepthPoint] = ()
    comparisons: Sequence[Comparison] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain objects for `json.dump`."""
        return asdict(self)


def measure_runs(
    collection: Collection,
    runs: Mapping[str, tuple[Run, float | None]],
    measures: Sequence[str],
    seed: int = 0,
) -> list[Row]:
    """Measure runs (name -> run and its mean milliseconds) over the judged queries.

    A judged query that a run does not rank scores 0 in it. Every row but the first is
    compared with the first.

    Raises ValueError when no query is judged.
    """
    queries = [query.id for query in collection.judged]
    if not queries:
        raise ValueError(f"{collection.name} judges none of its queries; give other judgements.")
    rows: list[Row] = []
    reference: dict[str, NDArray[np.float64]] | None = None
    for name, (run, milliseconds) in runs.items():
        values = _values(collection, run, measures, queries)
        ranked = sum(bool(run.get(query)) for query in queries)
        rows.append(Row(name, _estimates(values, reference, seed), ranked, milliseconds))
        reference = reference or values
    return rows


def compare_runs(
    collection: Collection,
    before: Mapping[str, tuple[Run, float | None]],
    after: Mapping[str, tuple[Run, float | None]],
    measures: Sequence[str],
    seed: int = 0,
) -> list[Comparison]:
    """Compare two models' runs query by query over the judged ones, where both have the name."""
    queries = [query.id for query in collection.judged]
    found = []
    for name in (name for name in after if name in before):
        (old, slow), (new, fast) = before[name], after[name]
        olds, news = (_values(collection, run, measures, queries) for run in (old, new))
        difference = {}
        for measure in measures:
            paired = news[measure] - olds[measure]
            low, high = bootstrap_interval(paired, seed=seed)
            p = randomisation_test(news[measure], olds[measure], seed=seed)
            difference[measure] = Estimate(float(paired.mean()), low, high, p)
        was, now = ({m: float(values[m].mean()) for m in measures} for values in (olds, news))
        found.append(Comparison(name, was, now, difference, (slow, fast)))
    return found


def sweep_depths(
    cascade: HitReranker,
    run: Run,
    collection: Collection,
    depths: Sequence[int],
    measures: Sequence[str],
    seed: int = 0,
) -> list[DepthPoint]:
    """Measure the cascade over a run's candidates at several passage depths."""
    queries = collection.judged
    points = []
    for depth in depths:
        reranking = rerank(run, queries, collection.corpus, by_cascade(cascade, depth))
        values = _values(collection, reranking.run, measures, [query.id for query in queries])
        points.append(
            DepthPoint(depth, _estimates(values, None, seed), reranking.mean_milliseconds)
        )
    return points


def _values(
    collection: Collection, run: Run, measures: Sequence[str], queries: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    rankings = {query: [key for key, _ in ranking] for query, ranking in run.items()}
    return measure_rankings(rankings, collection.qrels, collection.gold_sets, measures, queries)


def _estimates(
    values: Mapping[str, NDArray[np.float64]],
    reference: Mapping[str, NDArray[np.float64]] | None,
    seed: int,
) -> dict[str, Estimate]:
    estimates = {}
    for measure, per_query in values.items():
        low, high = bootstrap_interval(per_query, seed=seed)
        p = None
        if reference is not None:
            p = randomisation_test(per_query, reference[measure], seed=seed)
        estimates[measure] = Estimate(float(per_query.mean()), low, high, p)
    return estimates
