"""The shipped weights: complete, independent of neighbours, and right about what anyone knows."""

from __future__ import annotations

import numpy as np
import pytest

from reranker import Cascade, Hit
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
    assert np.abs(together - alone).max() < 1e-3
    assert np.abs(together - turned).max() < 1e-3


def test_what_anyone_would_rank_first_is_first(cascade):
    hits = [Hit(str(place), title, "", 9.0) for place, title in enumerate(TITLES)]
    assert cascade.rerank("merge several sorted lists", hits).hits[0].id == "0"
    assert cascade.rerank("highest mountains in america", hits).hits[0].id == "4"


def test_it_is_known_what_the_weights_were_trained_on():
    seen = trained_on(SHIPPED)
    assert seen is not None
    assert len(seen) > 20_000
