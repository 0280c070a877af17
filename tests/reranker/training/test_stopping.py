"""Fitting when the passage stage may stop: numbers that are known are found again."""

from __future__ import annotations

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from plugin.cli import train as command
from reranker import Cascade
from reranker.fusion import Fusion
from reranker.stopping import Stopping
from reranker.training.fusing import Window
from reranker.training.stopping import fit_stopping, stops_at, try_stopping
from tests.reranker.conftest import write_models
from tests.reranker.training.conftest import recipe_text

# The title's logit is the title stage's score, the passage's logit the passage stage's.
PLAIN = Fusion(1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0)


def window(promise: list[float], final: list[float], gold: int) -> Window:
    return Window(
        np.array(promise), np.array(final), np.zeros(len(promise)), np.arange(len(promise)) == gold
    )


def drawn(count: int, size: int = 24, seed: int = 0) -> list[Window]:
    """Windows whose final scores lie 0.5 around a line of slope 2, at any height."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        promise = rng.normal(size=size)
        final = 2 * promise + rng.normal(scale=0.5, size=size) + rng.normal(scale=5)
        likely = np.exp(final - final.max())
        gold = int(rng.choice(size, p=likely / likely.sum()))
        order = rng.permutation(size)  # the first stage's order, which is no help
        found.append(Window(promise[order], final[order], np.zeros(size), order == gold))
    return found


def test_slope_and_spread_are_found():
    rule = fit_stopping({"set": drawn(100)}, PLAIN, share=0.05)
    assert rule.slope == pytest.approx(2.0, abs=0.05)
    assert rule.spread == pytest.approx(0.5, abs=0.03)
    assert rule.share == 0.05


def test_the_fusion_is_looked_through():
    windows = drawn(100)
    for one in windows:
        one.first = one.title.copy()
        one.passage = one.passage - one.title
    rule = fit_stopping({"set": windows}, Fusion(0.5, 0.5, 1.0, 0.25, 0.75, 0.5, 0.5), share=0.05)
    assert rule.slope == pytest.approx(2.0, abs=0.05)


def test_sets_count_the_same_and_those_without_passages_not_at_all():
    flat = [window([1.0, 0.0], [0.0, 0.0], 0) for _ in range(300)]
    steep = [window([1.0, 0.0], [2.0, 0.0], 0) for _ in range(3)]
    unread = [window([1.0, 0.0], [np.nan, 9.0], 0)]
    rule = fit_stopping({"flat": flat, "steep": steep, "unread": unread}, PLAIN, 0.05)
    assert rule.slope == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no window has passages"):
        fit_stopping({"unread": unread}, PLAIN, 0.05)


def test_titles_that_say_nothing_give_a_flat_line():
    windows = [window([0.0, 0.0, 0.0], [1.0, 0.0, -1.0], 0)]
    assert fit_stopping({"set": windows}, PLAIN, 0.05)[:2] == (0.0, 1.0)
    falling = [window([1.0, 0.0], [0.0, 1.0], 0)]
    assert fit_stopping({"set": falling}, PLAIN, 0.05).slope == 0.0


def test_it_stops_where_the_rule_says():
    promise = np.arange(12.0)[::-1]
    rule = Stopping(1.0, 0.0, 0.1)
    assert stops_at(rule, promise, promise) == 4  # four of twelve steps down: 2 % are left
    assert stops_at(rule, promise / 4, promise / 4) == 8  # 33 % after four, 9 % after eight
    assert stops_at(rule._replace(share=0.0), promise, promise) == 12
    assert stops_at(rule, promise[:3], promise[:3]) == 3


def test_what_stopping_costs_by_hand():
    # The fifth by promise is the best by far, and right.
    one = window([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 40.0, 0.0], gold=4)
    early = try_stopping({"set": [one]}, PLAIN, Stopping(1.0, 0.0, 1.0))
    lost = 1 - 1 / np.log2(6)
    assert early == pytest.approx((4.0, lost, 0.0, lost))
    whole = try_stopping({"set": [one]}, PLAIN, Stopping(1.0, 0.0, 0.0))
    assert whole == (6.0, 0.0, 0.0, 0.0)


def test_what_the_stage_would_not_read_in_any_case_counts_for_nothing():
    one = window([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 9.0, 40.0], gold=4)
    early = try_stopping({"set": [one]}, PLAIN, Stopping(1.0, 0.0, 1.0), depth=5)
    assert early.read == 4
    assert early.lost_by_score > 0.5


def test_a_fitted_rule_reads_less_and_loses_little():
    rule = fit_stopping({"set": drawn(100)}, PLAIN, share=0.05)
    tried = try_stopping({"set": drawn(200, seed=1)}, PLAIN, rule)
    assert tried.read < 14
    assert abs(tried.lost) < 0.01
    assert tried.lost_by_score < 0.01
    # The rule's prediction is right on average: what is left unread is what it says is left.
    careless = try_stopping({"set": drawn(200, seed=1)}, PLAIN, rule._replace(share=0.5))
    assert careless.read < tried.read
    assert careless.lost_by_score > tried.lost_by_score


@pytest.mark.parametrize("share", ["0.2", "0"])
def test_fuse_writes_the_rule_beside_the_fusion(data, backbone, tmp_path, share):
    models = write_models(tmp_path / "models")
    Stopping(9.0, 9.0, 0.9).write(models / "stopping.json")  # of the weights before
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text("passage", backbone), "utf-8")
    app = typer.Typer()
    app.command()(command.fuse)
    given = [models, "--data", data, "--config", recipe, "--queries", 10, "--stop-share", share]
    result = CliRunner().invoke(app, [str(one) for one in given], catch_exceptions=False)
    assert result.exit_code == 0
    assert "nDCG@10 lost" in result.output
    rule = Cascade.load(models, threads=1).stopping
    if share == "0":
        assert rule is None
    else:
        assert rule is not None
        assert rule.slope < 9
        assert rule.share == 0.2
