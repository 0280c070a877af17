"""Batching: every row once, little padding, bounded batches; loading with clear errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.runtime import batches, load_model


@given(st.lists(st.integers(1, 300), max_size=200))
@settings(deadline=None)
def test_every_row_is_in_exactly_one_batch(lengths):
    rows = [np.full(length, place, dtype=np.int64) for place, length in enumerate(lengths)]
    seen: list[int] = []
    for places, ids, counts in batches(rows):
        assert ids.shape == (len(places), counts.max())
        assert len(places) == 1 or ids.size <= 2048
        for at, place in enumerate(places.tolist()):
            assert ids[at, : counts[at]].tolist() == rows[place].tolist()
            assert not ids[at, counts[at] :].any()
        seen += places.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 60), min_size=50, max_size=300))
@settings(deadline=None)
def test_little_is_padding(lengths):
    rows = [np.ones(length, dtype=np.int64) for length in lengths]
    padded = sum(ids.size for _, ids, _ in batches(rows))
    # A tenth at most, and what the first, small batch may lose.
    assert padded <= 1.12 * sum(lengths) + 192 * 60


def test_no_model_is_said_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="titlecast export"):
        load_model(tmp_path)


def test_an_unknown_architecture_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "retro"}))
    with pytest.raises(ValueError, match="'retro'"):
        load_model(tmp_path)
