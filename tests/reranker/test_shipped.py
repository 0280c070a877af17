"""The shipped weights: complete, independent of neighbours, and right about what anyone knows."""

from __future__ import annotations

import numpy as np
import pytest

from reranker import Cascade, Hit, TitleReranker
from reranker.evaluation.contamination import trained_on
from reranker.stages import SHIPPED

TITLES = [
    "heapq.merge: Merge multiple sorted inputs into a single sorted output",
    "bisect: Bisection algorithms",
    "email.message: Basic message object for the email package object model",
    "",
    "List of mountain peaks of North America",
    "Nürnberg – Straße der Menschenrechte",
]


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return Cascade.load()


def test_int8_keeps_the_order_of_the_training(cascade):
    # Measured at export, over dev lists against torch in fp32.
    assert cascade.title.config["kendall_tau"] >= 0.95
    assert cascade.passage.config["kendall_tau"] >= 0.95


def test_a_title_s_score_depends_on_no_other_title(cascade):
    query = "merge several sorted lists"
    together = cascade.title.score(query, TITLES)
    alone = np.concatenate([cascade.title.score(query, [title]) for title in TITLES])
    turned = cascade.title.score(query, TITLES[::-1])[::-1]
    assert np.isfinite(together).all()
    rounding = 0.05  # int8's, which depends on the batch
    assert np.abs(together - alone).max() < rounding
    assert np.abs(together - turned).max() < rounding
    # And only where a state lies on the edge between two of int8's steps.
    assert (np.abs(together - alone) < 1e-3).sum() >= len(TITLES) - 1
    assert (np.abs(together - turned) < 1e-3).sum() >= len(TITLES) - 1
    assert together.std() > 1


@pytest.mark.parametrize("seed", range(3))
def test_titles_kept_from_other_company_score_the_same_up_to_rounding(seed):
    rng = np.random.default_rng(seed)
    words = " ".join(TITLES).split()
    titles = [" ".join(rng.choice(words, size)) for size in rng.integers(1, 30, 150)]
    asked, others = titles[:100], titles[100:]
    plain = TitleReranker.load(threads=1)
    kept = TitleReranker.load(threads=1, cache_mb=64)
    kept.score("highest mountains in america", [*others, *rng.choice(asked, 50, replace=False)])
    query = "merge several sorted lists"
    expected = plain.score(query, asked)
    assert np.abs(kept.score(query, asked) - expected).max() < 0.2
    assert kept.cache_use.hits >= 100  # tokens and states of half of them
    assert expected.std() > 1  # so that 0.2 is little


def test_the_end_of_a_dialogue_is_read(cascade):
    turns = [
        "How was your holiday?",
        "We were lucky with the weather, and my sister cooked every evening.",
        "I would like to travel more, but there is never the time for it.",
        "Perhaps next summer, when the children have no school.",
        "We want to go hiking then.",
    ] * 2
    asked = "Which mountain is the highest of North America?"
    titles = [title for title in TITLES if title]
    hits = [Hit(title, title, title, 9.0) for title in titles]
    dialogue = "\n".join([*turns, asked])
    assert len(cascade.title.tokenizer.encode([dialogue], 1000)[0].ids) > 100
    result = cascade.rerank(dialogue, hits)
    assert result.hits[0].id == TITLES[4]
    assert not result.query_cut
    for logits in (
        cascade.title.score(dialogue, titles),
        cascade.passage.score(dialogue, titles, titles),
    ):
        assert titles[logits.argmax()] == TITLES[4]


def test_what_anyone_would_rank_first_is_first(cascade):
    hits = [Hit(str(place), title, "", 9.0) for place, title in enumerate(TITLES)]
    assert cascade.rerank("merge several sorted lists", hits).hits[0].id == "0"
    assert cascade.rerank("highest mountains in america", hits).hits[0].id == "4"


def test_it_is_known_what_the_weights_were_trained_on():
    seen = trained_on(SHIPPED)
    assert seen is not None
    assert len(seen) > 20_000
