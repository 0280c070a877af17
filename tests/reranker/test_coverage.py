"""Coverage: which share of a query's words a text holds, against a slow twin."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.coverage import Coverage, Covered

# Not in the order of their ids, which alone says how frequent a word is.
VOCABULARY = {
    "sinatra": 7,
    "[CLS]": 0,
    "a": 1,
    "the": 2,
    "##s": 3,
    "of": 4,
    "song": 6,
    "which": 5,
}
COVERAGE = Coverage(VOCABULARY)
RANKS = {"the": 1, "of": 2, "which": 3, "song": 4, "sinatra": 5}
UNKNOWN = 5


def weight(word: str) -> float:
    return math.log(1 + RANKS.get(word, UNKNOWN) / 100)


def test_rare_words_weigh_more_and_unknown_ones_most():
    weights = COVERAGE.weights("Which SONG of the Xylophonist?")
    assert weights == pytest.approx(
        {word[:5]: weight(word) for word in ("which", "song", "of", "the", "xylophonist")}
    )
    assert weights["the"] < weights["of"] < weights["song"] < weights["xylop"]


def test_of_words_that_start_alike_the_rarest_weighs():
    assert COVERAGE.weights("whichever which") == pytest.approx({"which": weight("whichever")})


def test_coverage_by_hand():
    texts = ["The songs.", "Frank Sinatra", "nothing here", ""]
    held = np.array([weight("the") + weight("song"), weight("sinatra"), 0, 0])
    # "which" is in no text, and does not count.
    found = COVERAGE.of("which song the sinatra", texts).shares
    # "songs" starts otherwise than "song": the first five letters tell.
    held[0] -= weight("song")
    assert found == pytest.approx(held / (weight("the") + weight("sinatra")))


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("reranking", "we rerank"),  # another ending
        ("Ångström", "ångströms"),
        ("naïve", "the NAÏVE one"),
        ("hotels", "(hotel)"),
    ],
)
def test_words_are_compared_by_their_first_letters(query, text):
    assert COVERAGE.of(query, [text, "other"]).shares.tolist() == [1.0, 0.0]


def test_a_word_is_held_where_it_starts():
    assert COVERAGE.of("song", ["singsong", "a song", "song-book"]).shares.tolist() == [
        0.0,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("query", ["", "?", "a b", "xyz"])
def test_a_query_without_words_that_a_text_holds_covers_nothing(query):
    assert COVERAGE.of(query, ["the song", ""]).shares.tolist() == [0.0, 0.0]
    assert COVERAGE.of(query, []).shares.shape == (0,)


words = st.lists(st.sampled_from([*RANKS, "songbook", "sinatras", "offer", "é", "ofé", "x"]))


@given(words, st.lists(words.map(" - ".join), max_size=6))
def test_coverage_is_that_of_the_slow_twin(asked, texts):
    query = " ".join(asked)

    def holds(text: str, start: str) -> bool:
        return any(word[:5] == start for word in re.split(r"\W+", text) if len(word) > 1)

    terms = {word[:5] for word in asked if len(word) > 1}
    terms = {start for start in terms if any(holds(text, start) for text in texts)}
    weights = {s: max(weight(w) for w in asked if w[:5] == s and len(w) > 1) for s in terms}
    total = sum(weights.values()) or 1.0
    expected = [sum(v for s, v in weights.items() if holds(text, s)) / total for text in texts]
    assert COVERAGE.of(query, texts).shares.tolist() == pytest.approx(expected)


@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=5))
def test_any_texts_give_shares_that_do_not_depend_on_the_order(query, texts):
    found = COVERAGE.of(query, texts).shares
    assert found.shape == (len(texts),)
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()
    assert COVERAGE.of(query, texts[::-1]).shares.tolist() == found[::-1].tolist()


def test_the_more_of_a_query_a_text_holds_the_higher_it_is():
    texts = ["which", "which song", "which song of", "which song of sinatra"]
    found = COVERAGE.of("which song of sinatra", texts).shares
    assert (np.diff(found) > 0).all()
    assert found[-1] == pytest.approx(1.0)


def test_what_a_text_adds_by_hand():
    covered = COVERAGE.of("which song the sinatra", ["the song", "Sinatra, the one", "", "song"])
    total = weight("the") + weight("song") + weight("sinatra")
    sinatra, song, the = (weight(word) / total for word in ("sinatra", "song", "the"))
    assert covered.added_to(0).tolist() == pytest.approx([0, sinatra, 0, 0])
    assert covered.added_to(1).tolist() == pytest.approx([song, 0, 0, song])
    assert covered.added_to(2).tolist() == pytest.approx(covered.shares)
    assert covered.added_to(3).tolist() == pytest.approx([the, sinatra + the, 0, 0])


@given(words, st.lists(words.map(" ".join), min_size=1, max_size=6), st.data())
def test_two_texts_together_hold_what_one_adds_to_the_other(asked, texts, data):
    query = " ".join(asked)
    one = data.draw(st.integers(0, len(texts) - 1))
    covered = COVERAGE.of(query, texts)
    # With every pair as further texts, so that the same words count.
    pairs = COVERAGE.of(query, [*texts, *(f"{texts[one]} {text}" for text in texts)]).shares
    assert covered.lacked_by(one) == pytest.approx(
        1 - covered.shares[one] if covered.shares.any() else 0
    )
    together = covered.shares[one] + covered.added_to(one)
    assert together.tolist() == pytest.approx(pairs[len(texts) :].tolist())


def test_of_nothing_each_text_holds_nothing():
    covered = Covered.nothing(3)
    assert covered.shares.tolist() == covered.added_to(1).tolist() == [0.0, 0.0, 0.0]
    assert covered.lacked_by(1) == 0.0
