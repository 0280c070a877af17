"""When the passage stage may stop: the rule by hand, and its file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.stopping import Stopping

scores = st.lists(st.floats(-30, 30), min_size=1, max_size=8).map(np.array)


def test_the_share_left_by_hand():
    rule = Stopping(slope=2.0, spread=0.0, share=0.1)
    read, promise, unread = np.array([4.0, 2.0]), np.array([2.0, 1.0]), np.array([0.5])
    # The line through both read ones is 2 * promise, which gives the unread one 1.
    whole = math.exp(4) + math.exp(2) + math.exp(1)
    assert rule.left(read, promise, unread) == pytest.approx(math.exp(1) / whole)
    # One that may be higher or lower by 1 is worth more by a half: the exponential is convex.
    whole = math.exp(4) + math.exp(2) + math.exp(1.5)
    wide = rule._replace(spread=1.0)
    assert wide.left(read, promise, unread) == pytest.approx(math.exp(1.5) / whole)


def test_it_is_settled_below_the_share():
    read, promise, unread = np.array([4.0, 2.0]), np.array([2.0, 1.0]), np.array([0.5])
    left = Stopping(2.0, 1.0, 0.1).left(read, promise, unread)
    assert Stopping(2.0, 1.0, left * 1.01).settled(read, promise, unread)
    assert not Stopping(2.0, 1.0, left * 0.99).settled(read, promise, unread)
    assert not Stopping(2.0, 1.0, 0.0).settled(read, promise, unread)


@given(scores, scores, st.floats(-100, 100), st.floats(-100, 100))
def test_a_model_s_height_does_not_matter(read, unread, up, aside):
    rule = Stopping(1.1, 0.8, 0.05)
    promise = read[::-1] / 2
    left = rule.left(read, promise, unread)
    assert 0 <= left <= 1
    assert rule.left(read + up, promise, unread) == pytest.approx(left, abs=1e-6)
    assert rule.left(read, promise + aside, unread + aside) == pytest.approx(left, abs=1e-6)


def test_scores_out_of_all_proportion_overflow_nothing():
    rule = Stopping(1.0, 1.0, 0.05)
    assert rule.left(np.array([1e5]), np.zeros(1), np.zeros(3)) == pytest.approx(
        3 * math.exp(0.5) / (1 + 3 * math.exp(0.5))
    )
    assert rule.left(np.array([1e5, -1e5]), np.zeros(2), np.zeros(1)) == 0.0


def test_written_and_read_again(tmp_path):
    rule = Stopping(1.0359, 1.0439, 0.05)
    rule.write(tmp_path / "stopping.json")
    assert Stopping.read(tmp_path / "stopping.json") == rule


def test_no_file_is_no_rule(tmp_path):
    assert Stopping.read(tmp_path / "stopping.json") is None


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1, 2]",
        '{"slope": 1.0}',
        json.dumps({"slope": 1.0, "spread": -1.0, "share": 0.05}),
        json.dumps({"slope": math.nan, "spread": 1.0, "share": 0.05}),
        json.dumps({"slope": "x", "spread": 1.0, "share": 0.05}),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content):
    (tmp_path / "stopping.json").write_text(content)
    with pytest.raises(ValueError, match="must hold exactly slope, spread, share"):
        Stopping.read(tmp_path / "stopping.json")
