"""Fusion: standardised windows, neutral stand-ins, a scale that keeps order."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.fusion import Fusion, is_question, lifted, neutral, squash, standardise, trust

finite = st.floats(-1e6, 1e6)


@given(st.lists(st.floats(), max_size=40))
def test_any_scores_standardise_to_finite_numbers(scores):
    out = standardise(np.array(scores, dtype=np.float64))
    assert out.shape == (len(scores),)
    assert np.isfinite(out).all()
    unknown = [not math.isfinite(score) for score in scores]
    assert not out[unknown].any()


@given(st.lists(finite, min_size=2, max_size=20), st.floats(1e-3, 1e3), finite)
def test_the_engine_s_scale_does_not_matter(scores, factor, shift):
    values = np.array(scores)
    if values.std() <= 1e-3 * max(1.0, np.abs(values).max(), abs(shift) / factor):
        return  # nearly equal scores drown in rounding
    assert np.allclose(standardise(values), standardise(values * factor + shift), atol=1e-2)


@pytest.mark.parametrize("scores", [[3.0], [2.0, 2.0, 2.0], [math.nan], [], [0.3, 0.1 + 0.2]])
def test_scores_that_say_nothing_become_zero(scores):
    assert not standardise(np.array(scores)).any()


def test_standardised_scores_by_hand():
    assert standardise(np.array([1.0, 2.0, 3.0])).tolist() == pytest.approx(
        [-1.2247, 0, 1.2247], abs=1e-4
    )


def test_unknown_logits_stand_at_the_mean():
    logits = np.array([1.0, 9.0, 3.0], dtype=np.float32)
    assert neutral(logits, np.array([True, False, True])).tolist() == [1.0, 2.0, 3.0]
    assert neutral(logits, np.zeros(3, dtype=bool)).tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=30))
def test_squashing_keeps_order_inside_the_unit_interval(values):
    ordered = np.sort(np.array(values))
    out = squash(ordered).astype(np.float32)
    assert ((out > 0) & (out < 1)).all()
    assert (np.diff(out) >= 0).all()


def test_the_first_stage_is_trusted_more_the_longer_the_query_is_up_to_a_limit():
    lengths = (0, 1, 10, 15, 20, 21, 10**6)
    assert [trust(tokens, True, 6.0) for tokens in lengths] == [0, 0.1, 1, 1.5, 2, 2, 2]
    assert [trust(tokens, False, 6.0) for tokens in (0, 1, 10, 40, 10**6)] == [0, 0.1, 1, 6, 6]
    assert trust(20, False, 6.0) == pytest.approx(2 * 2**0.5)
    assert trust(20, False) == 2


@given(st.integers(0, 2000), st.floats(2, 20))
def test_a_statement_is_trusted_no_less_than_a_question_nor_than_a_shorter_one(tokens, most):
    assert trust(tokens, True, most) <= trust(tokens, False, most) <= most
    assert trust(tokens, False, most) <= trust(tokens + 1, False, most)


@pytest.mark.parametrize(
    "query",
    [
        "who wrote it",
        "The film was shot in WHICH city",
        "is it so",
        "  Does it help",
        "the capital of France?",
        "法国的首都？",
    ],
)
def test_what_asks_is_a_question(query):
    assert is_question(query)


@pytest.mark.parametrize(
    "query", ["", "merge sorted lists", "its name", "water is wet", "whoever", "show"]
)
def test_what_states_or_names_is_none(query):
    assert not is_question(query)


def test_no_hit_is_lifted_above_the_best_of_those_it_has_links_to():
    scores = np.array([5.0, 3.0, 1.0, 0.0, np.nan])
    gain = np.array([9.0, 9.0, 1.5, 9.0, 9.0])
    links = np.array([[0.0, 0.1, 0.1, 0.0, 0.1], [0.1, 0.0, 0.2, 0.0, 0.0]])
    found = lifted(scores, gain, scores[:2], links)
    # The best is linked to a worse one only, the fourth to none; the last was not read.
    assert found[:4].tolist() == [5.0, np.nextafter(5.0, -np.inf), 2.5, 0.0]
    assert np.isnan(found[4])


def test_squashing_does_not_saturate():
    assert np.float32(2 + squash(np.array([50.0]))[0]) < np.float32(2 + squash(np.array([51.0]))[0])


def test_written_and_read_again(tmp_path):
    fusion = Fusion(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    fusion.write(tmp_path / "fusion.json")
    assert Fusion.read(tmp_path / "fusion.json") == fusion


def test_a_file_from_before_some_weights_is_read_as_it_was_meant(tmp_path):
    older = {k: v for k, v in Fusion(1, 2, 3, 4, 5, 6, 7)._asdict().items() if "only" not in k}
    del older["mention"], older["most_trust"]
    (tmp_path / "fusion.json").write_text(json.dumps(older))
    assert Fusion.read(tmp_path / "fusion.json") == Fusion(1, 2, 3, 4, 5, 1, 2, 0, most_trust=2.0)


def test_fused_scores_by_hand():
    fusion = Fusion(
        2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, title_coverage=19.0, passage_coverage=23.0
    )
    logits, first, held = np.array([1.0, 0.0]), np.array([0.5, -1.0]), np.array([0.5, 1.0])
    assert fusion.titles(logits, first, held, alone=False).tolist() == [13.0, 16.0]
    assert fusion.titles(logits, first, held, alone=True).tolist() == [21.5, -17.0]
    scores = fusion.passages(np.array([1.0, np.nan]), logits, first, held)
    assert scores[0] == 29.0
    assert np.isnan(scores[1])


def test_what_has_links_to_likely_passages_gains_by_hand():
    fusion = Fusion(0, 0, 0, 0, 0, 0, 0, mention=4.0)
    scores = np.array([1000.0, 1000.0 + math.log(3)])  # one in four, three in four
    links = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    assert fusion.mentions(scores, links).tolist() == pytest.approx([1.5, 2.5, 0.0])


@pytest.mark.parametrize("content", [{"title": 1.0}, [1, 2]])
def test_a_wrong_file_is_named(tmp_path, content):
    (tmp_path / "fusion.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must hold exactly"):
        Fusion.read(tmp_path / "fusion.json")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("NaN", "passage is nan"), ("Infinity", "passage is inf"), ('"much"', "must hold exactly")],
)
def test_a_weight_that_is_no_number_is_named(tmp_path, wrong, said):
    weights = json.dumps(dict.fromkeys(Fusion._fields, 1.0))
    path = tmp_path / "fusion.json"
    path.write_text(weights.replace('"passage": 1.0', f'"passage": {wrong}'))
    with pytest.raises(ValueError, match=said):
        Fusion.read(path)
