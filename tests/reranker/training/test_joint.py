"""Joint training: both models move, passes change nothing, minings resume, recipes run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from plugin.cli.main import app
from plugin.cli.options import CommandError
from reranker.dual import DualEncoder
from reranker.training.augment import Mined
from reranker.training.config import RECIPES, Recipe, read_recipe
from reranker.training.draws import passes
from reranker.training.experiments import Arm, Interval
from reranker.training.finish import export_trained
from reranker.training.joint import (
    ALONE,
    AUGMENTED,
    PAIR,
    START,
    joint_arms,
    joint_table,
    summarise,
)
from reranker.training.lists import make_batch
from reranker.training.loop import batch_loss, train
from reranker.training.prepare import prepare
from reranker.training.scoring import dual_logits, list_logits
from tests.reranker.conftest import SMALL, WORDS, random_encoder
from tests.reranker.training.conftest import recipe_text


def small(**changes: object) -> Recipe:
    return Recipe.model_validate(
        {
            "task": "passage",
            "data": {"sources": [{"path": "x"}]},
            "lists": {"size": 6, "max_text_tokens": 16, "max_query_tokens": 8},
            **changes,
        }
    )


def some_batch(recipe: Recipe):
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 60, rng.integers(3, 16)).astype(np.int32) for _ in range(40)]
    lists = [(rng.permutation(40)[:6].tolist(), [0.5] * 6) for _ in range(3)]
    golds = [{texts[0]} for texts, _ in lists]
    queries = [rng.integers(4, 60, 5).astype(np.int32) for _ in range(3)]
    return make_batch(queries, lists, golds, rows, chunks=passes(recipe, lists))


def gradients(recipe: Recipe):
    model = random_encoder(SMALL)
    first_stage = torch.nn.Parameter(torch.tensor(1.0))
    batch = some_batch(recipe)
    loss = batch_loss(recipe, model, batch, first_stage, torch.ones(3, dtype=torch.bool))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        again = batch_loss(recipe, model, batch, first_stage, torch.ones(3, dtype=torch.bool))
    del again
    loss.backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), named | {"first_stage": first_stage.grad}, sum(kept), len(batch.chunks)


@pytest.mark.parametrize("teacher", ["dynamic", "static"])
def test_texts_in_passes_give_the_same_gradients_in_less_memory(teacher):
    weights = {"distillation": 1.0, "in_batch": 0.5, "teacher": teacher}
    plain, slow, whole, _ = gradients(small(**weights))
    value, fast, part, chunks = gradients(small(**weights, texts_per_pass=2))
    assert chunks == 9
    assert value == pytest.approx(float(plain), abs=1e-6)
    assert slow.keys() == fast.keys()
    for name, gradient in slow.items():
        assert torch.allclose(gradient, fast[name], atol=1e-5, rtol=1e-4), name
    assert part < whole / 4  # elements kept between forward and backward


def test_the_distillation_moves_the_reranker_only_where_it_is_dynamic():
    """With the KL term alone: d KL / d teacher, by hand softmax(teacher) - softmax(student)."""
    for teacher in ("dynamic", "static"):
        recipe = small(distillation=1.0, teacher=teacher)
        model = random_encoder(SMALL)
        model.scale.data.fill_(300.0)
        batch = some_batch(recipe)
        without = small()
        first, added = torch.nn.Parameter(torch.tensor(0.0)), torch.zeros(3, dtype=torch.bool)

        def head(recipe: Recipe, model=model, batch=batch, first=first, added=added):
            model.zero_grad()
            batch_loss(recipe, model, batch, first, added).backward()
            return model.head.weight.grad.clone(), model.query_bias.grad.clone()

        both, alone = head(recipe), head(without)
        # Only the reranker has a head and reads the query.
        moved = not torch.allclose(both[0], alone[0], atol=1e-7)
        assert moved == (teacher == "dynamic")
        if moved:
            with torch.no_grad():
                theirs, ours = list_logits(model, batch), dual_logits(model, batch)
            leaf = theirs.clone().requires_grad_()
            kl = (ours.softmax(-1) * (ours.log_softmax(-1) - leaf.log_softmax(-1))).sum(-1).mean()
            (by_torch,) = torch.autograd.grad(kl, leaf)
            by_hand = (theirs.softmax(-1) - ours.softmax(-1)) / 3
            assert torch.allclose(by_torch, by_hand, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e6])
def test_equal_and_extreme_scores_give_finite_gradients(size):
    recipe = small(distillation=1.0, in_batch=0.5)
    model = random_encoder(SMALL)
    model.scale.data.fill_(size)
    if size == 0.0:
        model.head.weight.data.zero_()  # now all scores are equal
    first_stage = torch.nn.Parameter(torch.tensor(1.0))
    batch = some_batch(recipe)
    batch_loss(recipe, model, batch, first_stage, torch.ones(3, dtype=torch.bool)).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found
    assert all(torch.isfinite(gradient).all() for gradient in found)


@pytest.fixture(scope="module")
def marco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slice in the formats of MS MARCO and of BEIR's NQ, with unlabelled queries."""
    folder = tmp_path_factory.mktemp("marco")
    rng = np.random.default_rng(3)
    (folder / "msmarco").mkdir()
    (folder / "nq-train" / "qrels").mkdir(parents=True)
    sentences = [
        ". ".join(" ".join(rng.choice(WORDS, 6)).capitalize() for _ in range(3)) + "."
        for _ in range(60)
    ]
    queries = [" ".join([*text.split()[1:4], str(i % 9)]) for i, text in enumerate(sentences)]
    write = {
        "msmarco/collection.tsv": "".join(f"{i}\t{t}\n" for i, t in enumerate(sentences)),
        "msmarco/queries.train.tsv": "".join(f"{i}\t{q}\n" for i, q in enumerate(queries)),
        "msmarco/qrels.train.tsv": "".join(f"{i} 0 {i} 1\n" for i in range(60)),
        "nq-train/corpus.jsonl": "".join(
            json.dumps({"_id": f"d{i}", "title": f"Page {i % 20}", "text": t}) + "\n"
            for i, t in enumerate(sentences)
        ),
        "nq-train/queries.jsonl": "".join(
            json.dumps({"_id": f"q{i}", "text": q}) + "\n" for i, q in enumerate(queries)
        ),
        "nq-train/qrels/train.tsv": "query-id\tcorpus-id\tscore\n"
        + "".join(f"q{i}\td{i}\t1\n" for i in range(60)),
        "more.jsonl": "".join(json.dumps({"text": f"{q} more"}) + "\n" for q in queries[:8]),
    }
    for name, text in write.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def test_the_published_recipes_train_on_slices_of_their_formats(marco, backbone, tmp_path):
    """With the recipe as it is, but for sizes: the same source, lists, minings and losses."""
    for name in ("msmarco-joint", "nq-joint"):
        recipe = read_recipe(RECIPES / f"{name}.toml")
        assert recipe.lists.max_query_tokens == 32
        assert recipe.lists.max_text_tokens == 128
        assert recipe.learning_rate == 1e-5
        assert recipe.lists.size == {"msmarco-joint": 256, "nq-joint": 64}[name]
        lists = recipe.lists.model_copy(update={"size": 8, "max_text_tokens": 48})
        mined = {"first": 1, "every": 2, "labelled": 6, "unlabelled": 4, "made": 4}
        small = {
            "backbone": str(backbone),
            "steps": 4,
            "queries_per_step": 2,
            "texts_per_pass": 4,
            "check_every": 4,
            "check_queries": 2,
            "save_every": 1,
            "lists": lists,
            "augment": recipe.augment.model_copy(
                update={**mined, "pool": 40, "depth": 6, "queries": ["more.jsonl"]}
            ),
        }
        recipe = recipe.model_copy(update=small)
        folder = tmp_path / name
        prepare(recipe, marco, folder)
        asked = json.loads((folder / "unlabelled.json").read_text("utf-8"))
        assert 0 < len(asked) <= 8
        shutil.copytree(folder, tmp_path / f"{name}-again")
        train(recipe, folder)
        assert sorted(p.name for p in (folder / "mined").iterdir()) == ["1.json", "3.json"]
        assert Mined.read(folder / "mined" / "1.json").lists
        # Cut off between two minings and after one, it ends with the same weights.
        for stop in (2, 3, 4):
            train(recipe, tmp_path / f"{name}-again", stop_at=stop)
        one, two = (
            torch.load(tmp_path / f / "checkpoint.pt", weights_only=True)["model"]
            for f in (name, f"{name}-again")
        )
        assert all(torch.equal(value, two[key]) for key, value in one.items())
    (folder / "mined" / "3.json").unlink()
    recipe = recipe.model_copy(update={"steps": 5})
    with pytest.raises(FileNotFoundError, match=r"3\.json is missing"):
        train(recipe, folder)


def test_a_joint_training_exports_both_models(marco, backbone, tmp_path):
    text = recipe_text("passage", backbone, distillation="1.0", in_batch="0.5")
    text = text.replace('path = "beir", queries = "all"', 'path = "nq-train", queries = "train"')
    text = text.replace("steps = 12", "steps = 3").replace('corpora = ["beir"]\n', "")
    (tmp_path / "r.toml").write_text(text, "utf-8")
    arguments = ["train", "joint", "--config", str(tmp_path / "r.toml"), "--data", str(marco)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "t")])
    assert result.exception is None, result.output
    export_trained(tmp_path / "t", tmp_path / "m", "both")
    encoder = DualEncoder.load(tmp_path / "m", threads=1)
    query = encoder.encode_queries(["merge lists"])
    assert query.shape == (1, 32)
    assert encoder.encode_passages(["a"], ["merge lists"]).shape == (1, 32)


def test_a_dry_run_says_the_cost_and_makes_nothing(backbone, tmp_path):
    text = recipe_text("passage", backbone, distillation="1.0")
    (tmp_path / "r.toml").write_text(text, "utf-8")
    arguments = ["train", "joint", "--config", str(tmp_path / "r.toml"), "--dry-run"]
    result = CliRunner().invoke(app, [*arguments, "--teraflops", "2.5"])
    assert result.exception is None, result.output
    assert "12 steps of 12 texts of 32 tokens" in result.output
    assert "measured on this machine's CPU" in result.output
    assert "at 2.5 TFLOP/s sustained" in result.output
    assert "not counted" not in result.output
    assert list(tmp_path.iterdir()) == [tmp_path / "r.toml"]
    taught = f'[taught_by]\nfolder = "{tmp_path / "gone"}"\n'
    (tmp_path / "r.toml").write_text(text + taught, "utf-8")
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None, result.output
    assert "gone takes to teach, which is not there yet" in " ".join(result.output.split())


def test_a_joint_training_without_distillation_is_refused(backbone, tmp_path):
    (tmp_path / "r.toml").write_text(recipe_text("passage", backbone), "utf-8")
    arguments = ["train", "joint", "--config", str(tmp_path / "r.toml"), "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, CommandError)
    assert "distillation = 1.0" in str(result.exception)
    (tmp_path / "r.toml").write_text(recipe_text("passage", backbone, distillation="1.0"), "utf-8")
    result = CliRunner().invoke(app, arguments[:-1])
    assert isinstance(result.exception, CommandError)
    assert "--data" in str(result.exception)


def test_the_arms_differ_in_what_is_compared_alone():
    recipe = small(in_batch=0.5, augment={"every": 7})
    arms = {arm.name: arm for arm in joint_arms(recipe, seeds=2) if arm.seed == 1}
    mined = [name for name, arm in arms.items() if arm.recipe.augment == recipe.augment]
    assert mined == [AUGMENTED]
    with pytest.raises(ValueError, match="give the recipe an"):
        joint_arms(small())
    assert len(arms) == 6
    assert len({arm.folder for arm in arms.values()}) == 6
    plain = arms[ALONE].recipe.model_dump()
    for name, arm in arms.items():
        changed = {key for key, value in arm.recipe.model_dump().items() if value != plain[key]}
        assert changed <= {
            "distillation", "teacher", "augment", "architecture",
            *(("steps", "learning_rate", "head_learning_rate", "bias_learning_rate")
              if name == START else ()),
        }  # fmt: skip


def test_the_table_compares_every_arm_with_the_reranker_alone():
    def result(name: str, values: list[float], seconds: float) -> dict[str, object]:
        found = {"name": name, "seed": 0, "alone": values, "fused": values, "first": values}
        if name != PAIR:
            found |= {"dual": [1.0] * 4, "dual_fused": [1.0] * 4}
        return found | {"search_seconds": seconds}

    rows = summarise([result(ALONE, [0.5] * 4, 2.0), result(PAIR, [0.75] * 4, 5.0)])
    pair = next(row for row in rows if row["arm"] == PAIR and row["measure"] == "alone")
    assert pair["difference"] == Interval(0.25, 0.25, 0.25)
    table = joint_table(rows)
    assert f"| {PAIR} | 75.0 (75.0 to 75.0); +25.0 (+25.0 to +25.0) |" in table
    assert table.splitlines()[-1].endswith("|  |  | 2.50 |")
    assert Arm("a b", 0.0, 1, small()).folder.endswith("seed1")
