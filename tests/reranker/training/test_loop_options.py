"""What a recipe can ask of the loop: early stop, mining, teachers, keeping, bf16, teams."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from plugin.ports import free_port
from reranker.training import losses
from reranker.training.config import Recipe
from reranker.training.examples import Example
from reranker.training.lists import draw_list, make_batch
from reranker.training.loop import (
    batch_loss,
    dev_sample,
    load_data,
    train,
)
from reranker.training.mining import Miner
from reranker.training.processes import find_processes
from reranker.training.scoring import list_logits
from reranker.training.start import load_last, load_trained, new_model, some_layers
from tests.reranker.training.conftest import prepared, recipe_text, records


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)[
        "model"
    ]
    return state


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], within: float = 0.0) -> bool:
    return one.keys() == two.keys() and all(
        torch.allclose(value, two[name], rtol=0, atol=within) for name, value in one.items()
    )


def test_training_stops_where_nothing_gets_better(data, backbone, tmp_path):
    text = recipe_text("title", backbone, patience="2", learning_rate="1e-12")
    text = text.replace("steps = 12", "steps = 40").replace("check_every = 4", "check_every = 2")
    changes = "bias_learning_rate = 1e-12\nhead_learning_rate = 1e-12\n[data]"
    recipe = prepared(tmp_path, data, text.replace("[data]", changes))
    # Equal quality counts as better (the later weights have seen more), so make it get worse.
    train(recipe, tmp_path, stop_at=2)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(state | {"best": 2.0}, tmp_path / "checkpoint.pt")
    train(recipe, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6
    train(recipe, tmp_path)  # and does not go on when it is asked again
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6


def test_a_dev_sample_has_as_many_of_every_source():
    recipe = Recipe.model_validate(
        {"task": "title", "data": {"sources": [{"path": "x"}]}, "check_queries": 20}
    )
    items = [
        Example(source, f"{source} {i}", [0], [1], [0.0], [0.0])
        for source, count in (("large", 100), ("middle", 30), ("small", 4))
        for i in range(count)
    ]
    sources = [item.source for item in dev_sample(items, recipe)]
    assert {name: sources.count(name) for name in set(sources)} == {
        "large": 8,
        "middle": 8,
        "small": 4,
    }


def test_mined_negatives_are_those_the_model_ranks_first(data, backbone, tmp_path):
    text = recipe_text("title", backbone) + "mined = 3\nremine_every = 2\nhead = 5\n"
    recipe = prepared(tmp_path, data, text)
    loaded = load_data(recipe, tmp_path)
    model = new_model(recipe).eval()
    miner = Miner(recipe, loaded.items, loaded.texts, loaded.queries)
    miner.advance(0, model, find_processes())
    assert 0 < len(miner.hardest) <= 2 * recipe.queries_per_step
    for place, hardest in miner.hardest.items():
        item = loaded.items[place]
        query = torch.from_numpy(loaded.queries[place].astype(np.int64))[None]
        read = model.encode_query(query, torch.ones_like(query, dtype=torch.bool))
        scores = {}
        with torch.no_grad():
            for text_place in {*item.candidates, *item.others}:
                ids = torch.from_numpy(loaded.texts[text_place].astype(np.int64))[None]
                mask = torch.ones_like(ids, dtype=torch.bool)
                scores[text_place] = float(model.score(read, ids, mask))
        assert not set(hardest) & set(item.golds)
        best = sorted(scores.values(), reverse=True)[:5]
        assert [scores[t] for t in hardest] == pytest.approx(best, abs=1e-4)
        texts, _ = draw_list(
            item, recipe.lists, len(loaded.pool), np.random.default_rng(0), hardest
        )
        assert len(set(texts) & set(hardest)) >= 3
    before = dict(miner.hardest)
    miner.advance(1, model, find_processes())
    assert miner.hardest == before


def test_mined_negatives_may_be_those_the_teacher_ranks_first(data, backbone, tmp_path):
    text = recipe_text("title", backbone) + 'mined = 3\nmined_by = "teacher"\nhead = 5\n'
    recipe = prepared(tmp_path, data, text)
    loaded = load_data(recipe, tmp_path)
    with pytest.raises(ValueError, match="carry no teacher's scores"):
        Miner(recipe, loaded.items, loaded.texts, loaded.queries)
    rng = np.random.default_rng(0)
    for item in loaded.items[1:]:
        item.taught = rng.normal(size=len(item.texts)).tolist()
        item.taught[len(item.golds)] = None  # this candidate was not scored
    miner = Miner(recipe, loaded.items, loaded.texts, loaded.queries)
    miner.advance(0, new_model(recipe), find_processes())
    assert not miner.hardest  # the model has ranked nothing
    assert miner.of(0) == []
    for place, item in enumerate(loaded.items[1:], start=1):
        scores = dict(zip(item.texts, item.taught, strict=True))
        scored = [t for t in item.texts[len(item.golds) :] if scores[t] is not None]
        assert miner.of(place) == sorted(scored, key=lambda t: -scores[t])[:5]
    train(recipe, tmp_path, stop_at=2, data=loaded)


@pytest.mark.parametrize("kind", ["mined", "keep", "bf16", "keep bf16"])
def test_every_option_resumes_bit_for_bit(data, backbone, tmp_path, kind):
    text = recipe_text("title", backbone, **({"precision": '"bf16"'} if "bf16" in kind else {}))
    if kind == "mined":
        text += "mined = 3\nremine_every = 4\n"
    if "keep" in kind:
        text += '[keep]\ncorpora = ["beir"]\nqueries = 20\nsize = 5\n'
    recipe = prepared(tmp_path / "one", data, text)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train(recipe, tmp_path / "one", stop_at=8)
    for stop in (3, 8):
        train(recipe, tmp_path / "two", stop_at=stop)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    plain = prepared(tmp_path / "plain", data, recipe_text("title", backbone))
    train(plain, tmp_path / "plain", stop_at=8)
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "one"))  # it does something


# Where there is one processor, torch warns of two.
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("kind", ["title", "passage"])
def test_other_processes_put_together_what_this_one_would(data, backbone, tmp_path, kind):
    text = recipe_text(kind, backbone) + "mined = 3\nremine_every = 4\nquery_dropout = 0.2\n"
    if kind == "passage":  # what is mined between steps reaches them, too
        text += "[augment]\nfirst = 1\nevery = 2\nlabelled = 4\nmade = 2\npool = 30\ndepth = 5\n"
    recipe = prepared(tmp_path / "one", data, text)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train(recipe, tmp_path / "one", stop_at=5)
    with_others = recipe.model_copy(update={"workers": 2})
    for stop in (2, 5):
        train(with_others, tmp_path / "two", stop_at=stop)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_weights_of_a_device_that_is_not_here_are_read(data, backbone, tmp_path, monkeypatch):
    recipe = prepared(tmp_path, data, recipe_text("title", backbone))
    # As a GPU's tensors are saved, and what reading them means where there is none.
    known = [(0, lambda storage: "elsewhere:0", refuse), *torch.serialization._package_registry]
    monkeypatch.setattr(torch.serialization, "_package_registry", known)
    train(recipe, tmp_path, stop_at=4)
    with pytest.raises(RuntimeError, match="no such device"):
        torch.load(tmp_path / "best.pt", weights_only=True)
    train(recipe, tmp_path, stop_at=6)
    load_trained(tmp_path, average=True)
    load_last(recipe, tmp_path)


def refuse(storage: object, location: str) -> None:
    """Read no tensor of the device that only the test above has."""
    if location.startswith("elsewhere"):
        raise RuntimeError("no such device")


@pytest.fixture(scope="module")
def teacher(data, backbone, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("teacher")
    recipe = prepared(folder, data, recipe_text("title", backbone))
    train(recipe, folder, stop_at=4)
    return folder


def test_a_student_starts_as_its_teacher_s_layers(data, backbone, teacher, tmp_path):
    text = recipe_text("title", backbone).replace("[data]", "[model]\nlayers = 1\n[data]")
    text += f'[taught_by]\nfolder = "{teacher}"\nlayers = [1]\n'
    recipe = prepared(tmp_path, data, text)
    student = new_model(recipe).state_dict()
    _, model = load_trained(teacher)
    theirs = model.state_dict()
    assert torch.equal(student["layers.0.up.weight"], theirs["layers.1.up.weight"])
    assert torch.equal(student["query_bias"], theirs["query_bias"][[1]])
    assert torch.equal(student["words.weight"], theirs["words.weight"])
    with pytest.raises(ValueError, match="one for each"):
        some_layers(theirs, [0, 2], model)
    train(recipe, tmp_path, stop_at=4)
    assert not torch.equal(weights(tmp_path)["layers.0.up.weight"], student["layers.0.up.weight"])


@pytest.mark.parametrize("first", ["broadcast", "pair"])
def test_a_start_of_another_architecture_is_refused(data, backbone, tmp_path, first):
    kinds = [first, {"broadcast": "pair", "pair": "broadcast"}[first]]
    one, two = (recipe_text("title", backbone, architecture=f'"{kind}"') for kind in kinds)
    recipe = prepared(tmp_path / "one", data, one)
    train(recipe, tmp_path / "one", stop_at=4)
    start = {"start": str(tmp_path / "one")}
    assert type(new_model(recipe.model_copy(update=start))) is type(new_model(recipe))
    other = prepared(tmp_path / "two", data, two).model_copy(update=start)
    with pytest.raises(ValueError, match=f'is a model of the {first} .* architecture = "{first}"'):
        new_model(other)


def test_a_student_comes_to_score_like_its_teacher(data, backbone, teacher, tmp_path):
    distance = {}
    for weight in (0.0, 20.0):
        folder = tmp_path / str(weight)
        text = recipe_text("title", backbone, learning_rate="3e-3", with_first_stage="0.0")
        text = text.replace("[data]", "[model]\nlayers = 1\n[data]")
        text += f'[taught_by]\nfolder = "{teacher}"\nweight = {weight}\n'
        recipe = prepared(folder, data, text)
        train(recipe, folder)
        loaded = load_data(recipe, folder)
        _, master = load_trained(teacher)
        _, student = load_trained(folder)
        total = 0.0
        for item in loaded.dev:
            lists = [([*item.golds, *item.candidates], [0.0] * 99)]
            lists = [(texts, scores[: len(texts)]) for texts, scores in lists]
            place = loaded.dev.index(item)
            batch = make_batch([loaded.dev_queries[place]], lists, [set()], loaded.texts, 2)
            with torch.no_grad():
                theirs, ours = list_logits(master, batch), list_logits(student, batch)
            total += float(losses.dynamic_distillation(theirs, ours, batch.valid))
        distance[weight] = total
    assert distance[20.0] < 0.8 * distance[0.0]


def test_without_labels_only_the_teacher_is_learned_from(data, backbone, teacher, tmp_path):
    text = recipe_text("title", backbone, labels="0")
    text += f'[taught_by]\nfolder = "{teacher}"\nweight = 2.0\n'
    recipe = prepared(tmp_path, data, text)
    _, items, texts, queries, *_ = load_data(recipe, tmp_path)
    lists = [(items[0].texts[:6], [0.0] * 6)]
    golds = set(items[0].golds)
    batch = make_batch([queries[0]], lists, [golds], texts, 2)
    model, weight = new_model(recipe), torch.tensor(1.0)
    theirs = torch.randn(1, 6)

    def loss(recipe) -> float:
        return float(
            batch_loss(recipe, model, batch, weight, torch.ones(1), taught=theirs).detach()
        )

    with torch.no_grad():
        ours = list_logits(model, batch)
        distance = float(losses.dynamic_distillation(theirs, ours, batch.valid))
        by_labels = float(
            losses.listwise_softmax(ours + batch.first_stage, batch.gold, batch.valid)
        )
    assert loss(recipe) == pytest.approx(2 * distance, rel=1e-4)
    half = recipe.model_copy(update={"labels": 0.5})
    assert loss(half) == pytest.approx(2 * distance + 0.5 * by_labels, rel=1e-4)
    # Of lists that nobody says anything of nothing is learned, which is no error either.
    model.zero_grad()
    batch_loss(recipe, model, batch, weight, torch.ones(1)).backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    train(recipe, tmp_path, stop_at=4)
    train(recipe, tmp_path)


def test_two_processes_train_what_one_does(data, backbone, tmp_path):
    text = recipe_text("title", backbone, with_first_stage="1.0")
    text = text.replace("queries_per_step = 2", "queries_per_step = 4")
    text += "mined = 2\nremine_every = 2\n"  # one gold text a list: every list counts the same
    recipe = prepared(tmp_path / "one", data, text)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train(recipe, tmp_path / "one", stop_at=4)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from reranker.training.config import read_recipe\n"
        "from reranker.training.loop import train\n"
        "folder = Path(sys.argv[1])\n"
        "train(read_recipe(folder / 'recipe.toml'), folder, stop_at=4)\n"
        "import torch.distributed\n"
        "assert torch.distributed.get_world_size() == 2\n"
        "torch.distributed.destroy_process_group()\n"
    )
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(["", *sys.path]).strip(os.pathsep),
    }
    team = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "two")],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=500)[0] for process in team]
    finally:
        for process in team:
            process.kill()
            process.wait()
    assert [process.returncode for process in team] == [0, 0], said
    # Sums in another order: the same to float tolerance, not to the bit. Softmax does not feel the
    # biases of keys and head; their gradients are rounding errors, which Adam makes large.
    one, two = (
        {
            name: value
            for name, value in weights(tmp_path / folder).items()
            if not name.endswith(("key.bias", "head.bias"))
        }
        for folder in ("one", "two")
    )
    assert same(one, two, within=2e-4)
    assert len(records(tmp_path / "two/log.jsonl")) == len(records(tmp_path / "one/log.jsonl"))


@pytest.mark.parametrize("name", ["queries_per_step", "keep.queries_per_step"])
def test_uneven_shares_are_refused(data, backbone, tmp_path, monkeypatch, name):
    text = recipe_text("title", backbone)
    if name.startswith("keep"):
        text = text.replace("queries_per_step = 2", "queries_per_step = 3")
        text += '[keep]\ncorpora = ["beir"]\nqueries = 20\n'
    recipe = prepared(tmp_path, data, text)
    monkeypatch.setattr(
        "reranker.training.loop.find_processes",
        lambda: type("Three", (), {"device": torch.device("cpu"), "num_processes": 3})(),
    )
    with pytest.raises(ValueError, match=rf"^{name} is 2: 3 processes cannot share"):
        train(recipe, tmp_path)


def test_settings_that_exclude_each_other_are_refused():
    sources = {"sources": [{"path": "x"}]}
    with pytest.raises(ValueError, match="only a network scores"):
        Recipe.model_validate({"task": "title", "data": sources, "augment": {}, "taught_by": {}})
    with pytest.raises(ValueError, match="leaves nothing to learn from"):
        Recipe.model_validate({"task": "title", "data": sources, "labels": 0})
    with pytest.raises(ValueError, match=r"made is for titles; passages have augment\.made"):
        Recipe.model_validate({"task": "passage", "data": sources | {"made": 1}})
    assert json.loads(Recipe.model_validate({"task": "title", "data": sources}).model_dump_json())
