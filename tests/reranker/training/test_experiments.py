"""Experiments: label noise, arms that resume, paired intervals, and the commands that run them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from plugin.cli import curves as curves_command
from plugin.cli import experiment as command
from plugin.cli.options import CommandError
from reranker.evaluation.plots import smooth
from reranker.runtime import load_model
from reranker.training.config import ListConfig
from reranker.training.examples import Example
from reranker.training.experiments import (
    compare,
    paired_interval,
    read_results,
    table,
    with_noise,
)
from reranker.training.lists import draw_list
from tests.reranker.training.conftest import prepared, recipe_text


def examples(count: int) -> list[Example]:
    return [
        Example("s", f"q{i}", [0, 1], [2, 3, 4], [2.0, 1.0, 0.0], [3.0, 3.0]) for i in range(count)
    ]


def test_noise_replaces_a_share_of_the_positives_by_a_candidate():
    items = examples(2000)
    assert list(with_noise(items, 0.0, 1)) == items
    noisy = list(with_noise(items, 0.25, 1))
    spoilt = [item for item in noisy if item.golds != [0, 1]]
    assert 0.2 < len(spoilt) / len(items) < 0.3
    for item in spoilt:
        assert len(item.golds) == 1
        assert sorted(item.golds + item.candidates) == [2, 3, 4]
        known = dict(zip([2, 3, 4], [2.0, 1.0, 0.0], strict=True))
        assert item.gold_first_stage == [known[item.golds[0]]]
        assert item.first_stage == [known[text] for text in item.candidates]
    assert {item.golds[0] for item in spoilt} == {2, 3, 4}
    assert list(with_noise(items, 0.25, 1)) == noisy
    assert list(with_noise(items, 0.25, 2)) != noisy


def test_noise_leaves_a_teacher_s_scores_with_their_texts():
    first = [2.0, 1.0, 0.0]
    item = Example("s", "q", [0, 1], [2, 3, 4], first, [3.0, 3.0], [7], [9.0, 8.0, 2.0, 3.0, None])
    for seed in range(4):
        (noisy,) = with_noise([item], 1.0, seed)
        assert noisy.taught_by_text == {2: 2.0, 3: 3.0}
        # What was relevant is not drawn from the whole pool either.
        texts, _ = draw_list(noisy, ListConfig(random=20), 8, np.random.default_rng(seed))
        assert not {0, 1} & set(texts)


def test_more_noise_spoils_what_less_noise_spoils_and_more():
    items = examples(500)
    spoilt = {
        share: {i.query for i in with_noise(items, share, 3) if i.golds != [0, 1]}
        for share in (0.1, 0.2, 0.4)
    }
    assert spoilt[0.1] < spoilt[0.2] < spoilt[0.4]


def test_a_paired_interval_covers_seeds_and_queries():
    rng = np.random.default_rng(0)
    hard = rng.random((1, 200))  # some queries are harder, for both alike
    one = hard + 0.1 + rng.normal(size=(3, 200)) * 0.01
    mean, low, high = paired_interval(one, np.repeat(hard, 3, 0))
    assert low < mean < high
    assert mean == pytest.approx(0.1, abs=0.01)
    assert high - low < 0.02  # paired: how hard the queries are does not widen it
    shifted = one + np.array([[-0.1], [0.0], [0.1]])
    _, low, high = paired_interval(shifted, np.repeat(hard, 3, 0))
    assert high - low > 0.1  # but seeds that differ do


def test_only_pairs_of_finished_arms_are_compared():
    def result(name: str, noise: float, seed: int, value: float) -> dict[str, object]:
        values = [value, value]
        return {"name": name, "noise": noise, "seed": seed, "alone": values, "first": [0.5, 0.5]}

    results = [
        result("a", 0.0, 0, 0.5),
        result("b", 0.0, 0, 0.7),
        result("a", 0.0, 1, 0.1),  # its partner is not finished
        result("a", 0.4, 0, 0.3),
    ]
    rows = compare(results, "a", "b")
    assert [(row["noise"], row["seeds"]) for row in rows] == [(0.0, [0])]
    assert rows[0]["difference"]["mean"] == pytest.approx(0.2)
    assert "| 0% | 1 | 50.0 | 70.0 | +20.0 (+20.0 to +20.0) |" in table(rows, "a", "b")


def run(module: object, *arguments: object) -> str:
    app = typer.Typer()
    module.register(app)  # type: ignore[attr-defined]
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def small(data, backbone, tmp_path) -> tuple[Path, Path]:
    """A prepared folder and a recipe of two steps."""
    text = recipe_text("title", backbone).replace("steps = 12", "steps = 2")
    prepared(tmp_path / "prepared", data, text)
    return tmp_path / "prepared", tmp_path / "prepared" / "recipe.toml"


def test_the_sigmoid_trick_experiment_resumes(small, tmp_path):
    folder, recipe = small
    arguments = ["experiment", "sigmoid-trick", "--prepared", folder, "--config", recipe]
    arguments += ["--out", tmp_path / "out", "--noise", 0, "--noise", 0.5]
    run(command, *arguments, "--seeds", 1)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/result.json")}
    assert len(first) == 4
    assert "40%" not in run(command, *arguments, "--seeds", 2)
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    results = read_results(tmp_path / "out")
    assert len(results) == 8
    assert {len(result["alone"]) for result in results} == {8}
    assert [row["seeds"] for row in json.loads((tmp_path / "out/table.json").read_text())] == [
        [0, 1],
        [0, 1],
    ]
    assert "| 50% | 2 |" in (tmp_path / "out/table.md").read_text()
    assert not list(tmp_path.glob("out/*/*.pt"))
    with pytest.raises(ValueError, match="other settings"):
        run(command, *arguments, "--seeds", 1, "--temperature", 9)


def test_choosing_looks_at_other_queries(small, tmp_path):
    folder, recipe = small
    arguments = ["experiment", "sigmoid-trick", "--prepared", folder, "--config", recipe]
    arguments += ["--noise", 0, "--seeds", 1, "--only", "softmax"]
    run(command, *arguments, "--out", tmp_path / "a")
    run(command, *arguments, "--out", tmp_path / "b", "--choosing")
    one, two = (read_results(tmp_path / name)[0] for name in "ab")
    assert one["name"] == two["name"] == "softmax"
    assert len(one["first"]) == len(two["first"]) == 8
    for other in (["--choosing"], ["--every", 2]):
        with pytest.raises(ValueError, match=f"another {other[0]}; give the same one"):
            run(command, *arguments, *other, "--out", tmp_path / "a", "--first-seed", 1)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    arguments[3] = moved
    with pytest.raises(ValueError, match="another --prepared"):
        run(command, *arguments, "--out", tmp_path / "a")


def test_settings_of_the_sigmoid_trick_are_checked(small, tmp_path):
    folder, recipe = small
    arguments = ["experiment", "sigmoid-trick", "--prepared", folder, "--config", recipe]
    arguments += ["--out", tmp_path / "out"]
    with pytest.raises(ValueError, match="temperature: Input should be greater than 0"):
        run(command, *arguments, "--temperature", -4)
    said = run(command, *arguments, "--only", "sofmax")
    assert "'sofmax'" in said
    assert "sigmoid-trick" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_as_before")
def test_pairwise_and_broadcast_are_measured_and_timed(data, backbone, tmp_path):
    torch.set_num_threads(2)
    text = recipe_text("title", backbone).replace("steps = 12", "steps = 2")
    prepared(tmp_path / "prepared", data, text)
    said = run(
        command,
        *["experiment", "pairwise", "--prepared", tmp_path / "prepared", "--titles", 10],
        *["--config", tmp_path / "prepared/recipe.toml", "--out", tmp_path / "out"],
        *["--threads", 1],
    )
    assert "times less" in said
    assert torch.get_num_threads() == 1
    times = json.loads((tmp_path / "out/times.json").read_text())
    assert set(times["milliseconds"]) == {"broadcast", "pairwise"}
    for name, kind in (("broadcast", "broadcast"), ("pairwise", "pair")):
        _, config = load_model(tmp_path / "out" / f"{name}-noise00-seed0" / "model", 1)
        assert config["architecture"] == kind
        assert config["precision"] == "int8"


def test_an_experiment_needs_data(tmp_path):
    with pytest.raises(CommandError, match="--data"):
        run(command, "experiment", "sigmoid-trick", "--out", tmp_path)


def test_curves_show_the_last_line_of_every_step(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    lines = [
        {"step": 10, "loss": 2.0},
        {"step": 20, "loss": 9.0, "first": 0.1, "alone": 0.1, "fused": 0.1},
        {"step": 20, "loss": 1.0, "first": 0.25, "alone": 0.5, "fused": 0.75},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = run(curves_command, "curves", folder, "--plot", tmp_path / "c.png")
    assert "0.7500" in said
    assert "9.0000" not in said
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    shutil.copytree(folder, tmp_path / "two" / "one")
    said = run(curves_command, "curves", folder, tmp_path / "two" / "one")
    assert said.count("0.7500") == 2
    with pytest.raises(CommandError, match="titlecast train"):
        run(curves_command, "curves", tmp_path)


def test_smoothing_starts_at_the_first_value_and_passes_over_gaps():
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([2.0, float("nan"), 4.0])[:2] == pytest.approx([2.0, 2.0])
    assert 2.0 < smooth([2.0, float("nan"), 4.0])[2] < 4.0
