"""Measures and statistics: ids in, numbers out. No file, no model, no collection.

KILT's page-level measures are written out here, and so are nDCG and recall, which the demo
prints where only the serving install is there; reciprocal rank, average precision and all
others come from ir-measures (https://ir-measur.es).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

GoldSets = Sequence[Collection[str]]

_KILT = re.compile(r"KILT-(?:(Rprec)|R@([1-9]\d*))")
_PLAIN = re.compile(r"(nDCG|R)@([1-9]\d*)")


def r_precision(ranking: Sequence[str], gold_sets: GoldSets) -> float:
    """KILT's page-level R-precision of one query's ranking of page ids.

    For each gold set of R pages: the share of it among the first R distinct pages of the
    ranking; the best gold set counts (KILT, arXiv 2009.02252, section 4; `Rprec` of its
    `eval_retrieval`). An empty gold set scores 0.
    """
    pages = _distinct(ranking)
    return max(
        (
            len(set(gold).intersection(pages[: len(set(gold))])) / len(set(gold))
            for gold in gold_sets
            if gold
        ),
        default=0.0,
    )


def recall_at(ranking: Sequence[str], gold_sets: GoldSets, k: int) -> float:
    """KILT's recall@k of one query: the share of distinct gold sets found *completely*.

    The first k is counted in points, not pages: the pages of one gold set form a single point
    that stands where the last of them was found, every other page is a point of its own, and
    pages that come twice count once. A page of several gold sets moves the point of each.
    (`recall@k` of KILT's `eval_retrieval`.) An empty gold set is never found, yet counts
    among the sets.

    Raises ValueError if k is below 1.
    """
    if k < 1:
        raise ValueError(f"recall@k needs a k of at least 1, not {k}.")
    missing = [set(gold) for gold in dict.fromkeys(frozenset(gold) for gold in gold_sets)]
    if not missing:
        return 0.0
    points: list[int] = []  # the gold set's number where one of its pages stood last, else -1
    for page in _distinct(ranking):
        touched = [number for number, pages in enumerate(missing) if page in pages]
        for number in touched:
            missing[number].remove(page)
            if number in points:
                points.remove(number)
            points.append(number)
        if not touched:
            points.append(-1)
    complete = {number for number, pages in enumerate(missing) if not pages}
    return len(complete.intersection(points[:k])) / len(missing)


def ndcg_at(ranking: Sequence[str], relevance: Mapping[str, int], k: int) -> float:
    """nDCG@k of one query's ranking: gains are the relevances, the discount is log2(rank + 1).

    As trec_eval's `ndcg_cut` (Jarvelin and Kekalainen 2002); relevances below 0 gain nothing, a
    query without any relevant document scores 0. An id that comes twice counts once.
    """
    gains = [max(0, relevance.get(key, 0)) for key in _distinct(ranking)[:k]]
    ideal = sorted((max(0, value) for value in relevance.values()), reverse=True)[:k]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def recall_of(ranking: Sequence[str], relevance: Mapping[str, int], k: int) -> float:
    """Recall@k of one query: the share of its relevant documents among the first k distinct ids.

    A query without any relevant document scores 0.
    """
    relevant = {key for key, value in relevance.items() if value > 0}
    found = relevant.intersection(_distinct(ranking)[:k])
    return len(found) / len(relevant) if relevant else 0.0


def measure_rankings(
    rankings: Mapping[str, Sequence[str]],
    qrels: Mapping[str, Mapping[str, int]],
    gold_sets: Mapping[str, GoldSets],
    measures: Sequence[str],
    queries: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Measure rankings (query id -> document ids, best first), query by query.

    `measures` are ir-measures' names (`nDCG@10`, `RR@10`, `AP`, `R@100`) and `KILT-Rprec`,
    `KILT-R@5`. `queries` says which queries are measured and in which order; one that has no
    ranking scores 0. Gives one (queries,) array per measure.

    Order alone counts: ir-measures gets ranks, so equal scores do not change what is measured.

    Raises ValueError for a measure that does not exist or cannot be calculated, ImportError for
    one that needs ir-measures where it is not installed.
    """
    values: dict[str, NDArray[np.float64]] = {}
    for name in measures:
        if plain := _PLAIN.fullmatch(name):
            measure = ndcg_at if plain[1] == "nDCG" else recall_of
            depth = int(plain[2])
            values[name] = np.array(
                [
                    measure(rankings.get(query, ()), qrels.get(query, {}), depth)
                    for query in queries
                ],
                dtype=np.float64,
            )
        if not (kilt := _KILT.fullmatch(name)):
            continue
        per_query = []
        for query in queries:
            ranking, sets = rankings.get(query, ()), gold_sets.get(query, ())
            if kilt[1]:
                per_query.append(r_precision(ranking, sets))
            else:
                per_query.append(recall_at(ranking, sets, int(kilt[2])))
        values[name] = np.array(per_query, dtype=np.float64)
    others = [name for name in measures if name not in values]
    if others:
        values |= _ir_measures(rankings, qrels, others, queries)
    return {name: values[name] for name in measures}


class Interval(NamedTuple):
    """A confidence interval's two ends."""

    low: float
    high: float


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean of per-query values, shape (queries,).

    Queries are drawn with replacement (Efron and Tibshirani 1993, chapter 13). The same seed
    gives the same interval.

    Raises ValueError when there are no values.
    """
    if not len(values):
        raise ValueError("An interval needs the values of at least one query.")
    random = np.random.default_rng(seed)
    share = np.full(len(values), 1 / len(values))
    # How often each query is drawn, 100 resamples at a time: (100, queries).
    means = np.concatenate(
        [
            random.multinomial(len(values), share, size=min(100, resamples - start)) @ values
            for start in range(0, resamples, 100)
        ]
    ) / len(values)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def randomisation_test(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    permutations: int = 5000,
    seed: int = 0,
) -> float:
    """Two-sided paired randomisation test of two systems' values on the same queries.

    Each query's difference changes its sign at random; the p-value is the share of such
    assignments whose mean difference is at least as large as the observed one (Smucker, Allan
    and Carterette 2007), the observed one counted in, so it is never 0. The seed fixes it.

    Raises ValueError when the two arrays differ in length.
    """
    if len(first) != len(second):
        raise ValueError(
            f"A paired test needs the same queries on both sides, not {len(first)} and "
            f"{len(second)}; measure both systems on the same queries."
        )
    differences = first - second
    differences = differences[differences != 0]  # a zero stays zero whatever its sign
    observed = abs(differences.sum())
    random = np.random.default_rng(seed)
    extreme = 1
    for start in range(0, permutations, 100):
        size = (min(100, permutations - start), len(differences))
        signs = random.integers(0, 2, size=size, dtype=np.int8) * 2.0 - 1.0
        # Sums of the same numbers in another order differ in their last bits.
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed - 1e-9))
    return extreme / (permutations + 1)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _ir_measures(
    rankings: Mapping[str, Sequence[str]],
    qrels: Mapping[str, Mapping[str, int]],
    names: Sequence[str],
    queries: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    try:
        import ir_measures
    except ImportError:
        raise ImportError(
            "Measuring needs ir-measures; `pip install 'titlecast[train]'`."
        ) from None
    parsed = {name: _parse(name) for name in names}  # several names may be of one measure
    position = {query: number for number, query in enumerate(queries)}
    run = {
        query: {key: float(-rank) for rank, key in enumerate(_distinct(rankings.get(query, ())))}
        for query in queries
    }
    judged = {query: dict(qrels[query]) for query in queries if qrels.get(query)}
    values = {measure: np.zeros(len(queries)) for measure in parsed.values()}
    try:
        metrics = list(ir_measures.iter_calc(list(values), judged, run)) if judged else []
    except Exception as error:  # of whatever package or program calculates it
        # ir-measures' own errors say which package is missing.
        reason = f": {' '.join(str(error).split())}" if isinstance(error, ValueError) else ""
        raise ValueError(
            f"{', '.join(names)} cannot be calculated here{reason}; choose other measures."
        ) from error
    for metric in metrics:
        values[metric.measure][position[metric.query_id]] = metric.value
    return {name: values[measure] for name, measure in parsed.items()}


def _parse(name: str) -> Any:
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
        measure.validate_params()
        # A cutoff of 0 ends the whole process in trec_eval.
        if measure.params.get("cutoff", 1) < 1:
            raise ValueError
        return measure
    except (NameError, ValueError, SyntaxError, AssertionError):
        raise ValueError(
            f"There is no measure {name!r}; use names like nDCG@10, RR@10, AP, R@100, "
            "KILT-Rprec or KILT-R@5."
        ) from None


def _distinct(ids: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(ids))
