"""KILT's measures by worked examples, ir-measures' by hand, statistics by known cases."""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.evaluation.measures import (
    bootstrap_interval,
    measure_rankings,
    r_precision,
    randomisation_test,
    recall_at,
)

ir_measures = pytest.importorskip("ir_measures", reason="ir-measures is in the train extra")

PAGES = "ABCDEFGH"
rankings = st.lists(st.sampled_from(PAGES), max_size=12)
gold_sets = st.lists(st.frozensets(st.sampled_from(PAGES), min_size=1, max_size=3), max_size=4)


@pytest.mark.parametrize(
    ("ranking", "gold", "expected"),
    [
        ("AB", ["A"], 1.0),
        ("BA", ["A"], 0.0),  # R is 1: only the first page counts
        ("AXB", ["AB"], 0.5),  # R is 2
        ("AAB", ["AB"], 1.0),  # the second A is not a page of its own
        ("BXA", ["AC", "B"], 1.0),  # the best gold set counts: B
        ("AXB", ["ABC", "CD"], 2 / 3),
        ("A", ["ABCD"], 0.25),  # short ranking: the missing places are misses
        ("", ["A"], 0.0),
        ("A", [], 0.0),
        ("A", ["", "A"], 1.0),
        ("A", [""], 0.0),
    ],
)
def test_r_precision(ranking: str, gold: list[str], expected: float) -> None:
    assert r_precision(list(ranking), gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ranking", "gold", "k", "expected"),
    [
        ("A", ["A"], 1, 1.0),
        ("XA", ["A"], 1, 0.0),
        # The two pages of one set are one point, so both fit into k = 1 ...
        ("AB", ["AB"], 1, 1.0),
        # ... but it stands where the second one was found, after X.
        ("AXB", ["AB"], 1, 0.0),
        ("AXB", ["AB"], 2, 1.0),
        ("AX", ["AB"], 5, 0.0),  # half a set is nothing
        ("AXB", ["A", "B"], 2, 0.5),
        ("AXB", ["A", "B"], 3, 1.0),
        # A completes the first set and begins the second: two points.
        ("AB", ["A", "AB"], 1, 0.5),
        ("AB", ["A", "AB"], 2, 1.0),
        # After A the points are [set 0 done, set 1 begun]; X; C moves set 1 behind X.
        ("AXC", ["A", "AC"], 2, 0.5),
        ("AXC", ["A", "AC"], 3, 1.0),
        ("AB", ["AB", "BA"], 1, 1.0),  # the same set twice is one set
        ("XXA", ["A"], 2, 1.0),  # the second X is not a page of its own
        ("AAB", ["A", "B"], 2, 1.0),
        ("A", ["A", ""], 5, 0.5),  # an empty set counts, and is never found
        ("", ["A"], 5, 0.0),
        ("A", [], 5, 0.0),
    ],
)
def test_recall_at(ranking: str, gold: list[str], k: int, expected: float) -> None:
    assert recall_at(list(ranking), gold, k) == pytest.approx(expected)


def test_recall_at_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        recall_at(["A"], ["A"], 0)


@given(rankings, gold_sets, st.integers(1, 10))
def test_recall_grows_with_k(ranking: list[str], gold: list[frozenset[str]], k: int) -> None:
    assert 0 <= recall_at(ranking, gold, k) <= recall_at(ranking, gold, k + 1) <= 1


@given(rankings, gold_sets)
def test_duplicates_and_the_order_of_gold_sets_change_nothing(
    ranking: list[str], gold: list[frozenset[str]]
) -> None:
    once = list(dict.fromkeys(ranking))
    assert r_precision(ranking, gold) == r_precision(once, gold[::-1])
    for k in (1, 3):
        assert recall_at(ranking + ranking, gold, k) == recall_at(once, gold, k)


@given(rankings, st.frozensets(st.sampled_from(PAGES), min_size=1, max_size=1), st.integers(1, 5))
def test_one_gold_page_makes_kilt_recall_ordinary(
    ranking: list[str], gold: frozenset[str], k: int
) -> None:
    values = measure_rankings(
        {"q": ranking},
        {"q": dict.fromkeys(gold, 1)},
        {"q": [gold]},
        [f"KILT-R@{k}", f"R@{k}"],
        ["q"],
    )
    assert values[f"KILT-R@{k}"] == pytest.approx(values[f"R@{k}"])


def test_ir_measures_by_hand() -> None:
    ranking = {"q": ["x", "a", "y", "b"]}
    qrels = {"q": {"a": 1, "b": 2, "c": 1, "x": 0}}
    values = measure_rankings(ranking, qrels, {}, ["nDCG@10", "RR@10", "AP", "R@2", "RR@1"], ["q"])
    gain = 1 / math.log2(3) + 2 / math.log2(5)
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert values["nDCG@10"] == pytest.approx([gain / ideal])
    assert values["RR@10"] == pytest.approx([0.5])
    assert values["RR@1"] == pytest.approx([0.0])
    assert values["AP"] == pytest.approx([(1 / 2 + 2 / 4) / 3])
    assert values["R@2"] == pytest.approx([1 / 3])


def test_several_names_of_one_measure() -> None:
    names = ["RR@10", "AP", "MRR@10", "MAP"]
    values = measure_rankings({"q": ["x", "a"]}, {"q": {"a": 1}}, {}, names, ["q"])
    assert list(values) == names
    assert all(per_query.tolist() == [0.5] for per_query in values.values())


def test_queries_keep_their_order_and_a_missing_ranking_scores_zero() -> None:
    rankings = {"q2": ["a"], "unjudged": ["a"], "empty": []}
    qrels = {query: {"a": 1} for query in ("q1", "q2", "empty")}
    gold = {query: (frozenset("a"),) for query in qrels}
    measures = ["R@5", "KILT-R@5", "nDCG@10", "KILT-Rprec"]
    values = measure_rankings(rankings, qrels, gold, measures, ["q1", "q2", "empty"])
    assert list(values) == measures
    for per_query in values.values():
        assert per_query.tolist() == [0, 1, 0]


def test_no_ranking_at_all() -> None:
    values = measure_rankings({}, {"q": {"a": 1}}, {"q": ["a"]}, ["R@5", "KILT-Rprec"], ["q"])
    assert [per_query.tolist() for per_query in values.values()] == [[0.0], [0.0]]


def test_unknown_measure_names_known_ones() -> None:
    names = ["nonsense@3", "KILT-R@0", "KILT-R", "", "nDCG@"]
    names += ["P", "R", "BPM@5", "RBP(p=2)", "nDCG@10.5"]  # that lack a number, or have a wrong one
    names += ["R@0", "nDCG@0", "P@0", "P@-1"]  # trec_eval would end the process
    for name in names:
        with pytest.raises(ValueError, match="nDCG@10, RR@10"):
            measure_rankings({}, {}, {}, [name], [])


def test_a_measure_that_cannot_be_calculated_is_named() -> None:
    with pytest.raises(ValueError, match=r"AP\(rel=0\) cannot be calculated here; choose"):
        measure_rankings({"q": ["a"]}, {"q": {"a": 1}}, {}, ["AP(rel=0)"], ["q"])


@pytest.mark.skipif(find_spec("pyndeval") is not None, reason="what is to be missing is there")
def test_a_measure_whose_package_is_missing_names_it() -> None:
    with pytest.raises(ValueError, match=r"alpha_nDCG@10 cannot .* here: .*pyndeval.*; choose"):
        measure_rankings({"q": ["a"]}, {"q": {"a": 1}}, {}, ["alpha_nDCG@10"], ["q"])


def test_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval(np.full(30, 0.4)) == pytest.approx((0.4, 0.4))


def test_interval_is_seeded_and_about_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(5).normal(size=400)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert (low, high) != bootstrap_interval(values, seed=2)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    wider = bootstrap_interval(values, confidence=0.99, seed=1)
    assert wider.low < low < high < wider.high


def test_interval_needs_values() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        bootstrap_interval(np.array([]))


def test_randomisation_test_of_equal_systems() -> None:
    values = np.array([0.1, 0.2, 1.0])
    assert randomisation_test(values, values) == 1.0


def test_randomisation_test_against_the_exact_value() -> None:
    # Four differences of one sign: 2 of the 16 sign assignments are as extreme.
    difference = np.array([0.3, 0.1, 0.2, 0.4])
    p = randomisation_test(difference, np.zeros(4), permutations=20_000)
    assert p == pytest.approx(2 / 16, abs=0.01)


def test_randomisation_test_is_symmetric_seeded_and_never_zero() -> None:
    random = np.random.default_rng(3)
    first, second = random.normal(1, 1, 200), random.normal(0, 1, 200)
    p = randomisation_test(first, second, permutations=999, seed=4)
    assert p == randomisation_test(second, first, permutations=999, seed=4)
    assert p == 1 / 1000


def test_randomisation_test_is_calibrated_where_systems_do_not_differ() -> None:
    random = np.random.default_rng(6)
    ps = [randomisation_test(*random.normal(size=(2, 40)), permutations=200) for _ in range(200)]
    assert 0.01 < np.mean(np.array(ps) < 0.05) < 0.1


def test_randomisation_test_needs_pairs() -> None:
    with pytest.raises(ValueError, match="same queries"):
        randomisation_test(np.zeros(2), np.zeros(3))


@given(
    rankings,
    st.dictionaries(st.sampled_from(PAGES), st.integers(0, 3), min_size=1),
    st.integers(1, 10),
)
def test_ndcg_and_recall_are_those_of_ir_measures(
    ranking: list[str], relevance: dict[str, int], k: int
) -> None:
    measures = [f"nDCG@{k}", f"R@{k}"]
    ours = measure_rankings({"q": ranking}, {"q": relevance}, {}, measures, ["q"])
    run = {"q": {key: -float(place) for place, key in enumerate(dict.fromkeys(ranking))}}
    parsed = [ir_measures.parse_measure(name) for name in measures]
    theirs = ir_measures.calc_aggregate(parsed, {"q": relevance}, run)
    for name, measure in zip(measures, parsed, strict=True):
        assert ours[name] == pytest.approx([theirs[measure] if run["q"] else 0.0])
