"""`titlecast train`, `export`, `fuse`: what is refused, each time with the remedy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from plugin.cli import train as command
from plugin.cli.options import CommandError
from reranker import PassageReranker, TitleReranker
from reranker.evaluation.contamination import FILE, fingerprints
from reranker.training.config import as_toml
from reranker.training.inputs import keep_inputs
from tests.reranker.training.test_prepare import Asked, families, write_claims

RECIPE = 'task = "title"\n[data]\nsources = [{path = "x.jsonl", format = "kilt"}]\n'


def run(*arguments: object) -> str:
    app = typer.Typer()
    command.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_recipe_of_the_other_stage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    with pytest.raises(CommandError, match="recipe for titles"):
        run(
            "train",
            "passage",
            "--data",
            tmp_path,
            "--out",
            tmp_path,
            "--config",
            tmp_path / "r.toml",
        )


def test_a_folder_with_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.toml").write_text(RECIPE + "# changed\n")
    with pytest.raises(CommandError, match="another --out"):
        run("train", "title", "--data", tmp_path, "--out", out, "--config", tmp_path / "r.toml")


def test_the_recipe_is_kept_beside_examples_of_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `distilled.toml` says to: they are copied, the recipe that made them is not."""
    out = tmp_path / "out"
    keep_inputs(out, {"--data": str(tmp_path.resolve()), "--exclude": []})
    np.save(out / FILE, fingerprints(["a query"]))
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.setattr("reranker.training.loop.train", lambda recipe, folder, stop_at: folder)
    run("train", "title", "--data", tmp_path, "--out", out, "--config", tmp_path / "r.toml")
    assert (out / "recipe.toml").read_text() == RECIPE  # which `titlecast export` needs


def test_export_before_training_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    with pytest.raises(FileNotFoundError, match="titlecast train"):
        run("export", tmp_path, "--out", tmp_path / "model", "--name", "x")


def test_fuse_leaves_out_what_is_excluded_and_what_gives_a_claim_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = Asked()
    monkeypatch.setattr(TitleReranker, "load", lambda *_: title)
    monkeypatch.setattr(PassageReranker, "load", lambda *_: title)
    texts = write_claims(tmp_path)
    np.save(tmp_path / "trained-on.npy", fingerprints([texts["h1-1"]]))
    (tmp_path / "r.toml").write_text(as_toml(families()), "utf-8")
    (tmp_path / "ex.jsonl").write_text(f'{{"claim": "{texts["h2-0"]}"}}\n', "utf-8")
    arguments = ["fuse", tmp_path, "--data", tmp_path, "--config", tmp_path / "r.toml"]
    with pytest.raises(ValueError, match="sources that have passages"):  # these are pages alone
        run(*arguments, "--exclude", tmp_path / "ex.jsonl")
    assert title.queries == {texts[f"h{i}-0"] for i in (0, 3, 4)}


def test_fuse_names_a_corpus_that_is_not_there_before_it_reads_models(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"no .*gone; --sentences names a corpus"):
        run("fuse", tmp_path, "--data", tmp_path, "--sentences", "gone")


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else True)
    with pytest.raises(CommandError, match=r"training needs torch; .*titlecast\[train\]"):
        run("train", "title", "--data", tmp_path, "--out", tmp_path)
