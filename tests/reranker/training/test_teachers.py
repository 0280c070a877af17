"""Teachers: what they score, and what a student makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from reranker.evaluation.baselines import BiEncoder, load_bi_encoder, normalise
from reranker.training import losses
from reranker.training.config import Recipe, TeacherConfig, read_recipe
from reranker.training.examples import Example, load
from reranker.training.finish import export_trained
from reranker.training.lists import make_batch
from reranker.training.loop import batch_loss, load_data, train
from reranker.training.prepare import prepare_once
from reranker.training.scoring import dual_logits, list_logits
from reranker.training.start import load_trained
from reranker.training.teachers import EncoderTeacher, NetworkTeacher, StoredScores, find_teacher
from tests.reranker.training.conftest import prepared, recipe_text


def lists_of(*rows: list[int]) -> list[tuple[list[int], list[float]]]:
    return [(row, [0.0] * len(row)) for row in rows]


def batch_of(*sizes: int) -> SimpleNamespace:
    """All that a teacher without a network looks at: which places of the lists are texts."""
    width = max(sizes)
    return SimpleNamespace(valid=torch.tensor([[i < n for i in range(width)] for n in sizes]))


def test_scores_that_examples_carry_are_found_by_text():
    item = Example("s", "q", [7], [3, 4], [1.0, 0.0], [2.0], [8], [5.0, None, 1.5, 0.5])
    other = Example("s", "q", [1], [2], [0.0], [0.0])
    stored, lists = StoredScores([item, other]), lists_of([7, 4, 3, 8, 9], [1, 2])
    scores = stored.scores(batch_of(5, 2), [0, 1], lists)  # type: ignore[arg-type]
    assert scores is not None
    assert scores[0, :2].tolist() == [5.0, 1.5]
    assert scores[0, 2].isnan()
    assert scores[0, 3] == 0.5
    assert scores[0, 4].isnan()  # drawn from the whole pool
    assert scores[1].isnan().all()
    assert stored.scores(batch_of(2), [1], lists_of([1, 2])) is None  # type: ignore[arg-type]


class Known:
    """An encoder of vectors given by text; it remembers what it encoded."""

    vectors: ClassVar = {
        "one": [3.0, 0.0],
        "two": [0.0, 2.0],
        "both": [1.0, 1.0],
        "find: one": [0.5, 0.0],
    }

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def __call__(self, texts):
        self.encoded += texts
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_bi_encoder_teaches_its_cosines(at_once):
    encode = Known()
    config = TeacherConfig(encoder="any", scale=10.0)
    both = BiEncoder(lambda queries: encode(["find: " + query for query in queries]), encode)
    items = [Example("s", "one", [0], [1], [0.0], [0.0])]
    teacher = EncoderTeacher(config, both, ["one", "two", "both"], items, at_once)
    assert encode.encoded == (["one", "two", "both"] if at_once else [])
    lists = lists_of([0, 2, 1], [2])
    scores = teacher.scores(batch_of(3, 1), [0, 0], lists)  # type: ignore[arg-type]
    assert scores is not None
    np.testing.assert_allclose(scores[0], [10.0, 10 / 2**0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(scores[1], [10 / 2**0.5, np.nan, np.nan], atol=1e-6)
    teacher.scores(batch_of(1), [0], lists_of([1]))  # type: ignore[arg-type]
    assert sorted(text for text in encode.encoded if "find" not in text) == ["both", "one", "two"]


def test_there_is_one_teacher():
    sources = {"sources": [{"path": "x"}]}
    both = {"folder": "runs/title", "encoder": "some/model"}
    with pytest.raises(ValidationError, match="one teacher"):
        Recipe.model_validate({"task": "title", "data": sources, "taught_by": both})
    mined = {"augment": {}, "taught_by": {"encoder": "some/model"}}
    with pytest.raises(ValidationError, match="mined lists"):
        Recipe.model_validate({"task": "passage", "data": sources} | mined)


@pytest.mark.parametrize("task", ["title", "passage"])
def test_a_student_comes_to_score_like_a_bi_encoder(task, data, backbone, tmp_path):
    def recipe_of(weight: float) -> str:
        text = recipe_text(task, backbone, learning_rate="3e-3", with_first_stage="0.0")
        return f'{text}\n[taught_by]\nencoder = "{backbone}"\nweight = {weight}\nscale = 30.0\n'

    distance = {}
    for weight in (0.0, 20.0):
        recipe = prepared(tmp_path / str(weight), data, recipe_of(weight))
        train(recipe, tmp_path / str(weight))
        loaded = load_data(recipe, tmp_path / str(weight))
        device = torch.device("cpu")
        teacher = find_teacher(recipe, loaded.pool, loaded.dev, device)
        _, student = load_trained(tmp_path / str(weight))
        total = 0.0
        for place, item in enumerate(loaded.dev):
            lists = lists_of([*item.golds, *item.candidates])
            batch = make_batch([loaded.dev_queries[place]], lists, [set()], loaded.texts, 2)
            theirs = teacher.scores(batch, [place], lists)
            assert theirs is not None
            with torch.no_grad():
                ours = list_logits(student, batch)
            total += float(losses.dynamic_distillation(theirs, ours, batch.valid))
        distance[weight] = total
    assert distance[20.0] < 0.8 * distance[0.0]

    # Stopped on the way and resumed: the same weights, bit for bit.
    recipe = prepared(tmp_path / "again", data, recipe_of(20.0))
    train(recipe, tmp_path / "again", stop_at=recipe.steps // 2)
    train(recipe, tmp_path / "again")
    _, again = load_trained(tmp_path / "again")
    for name, value in student.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_vector_does_not_depend_on_which_texts_come_together(backbone):
    encode = load_bi_encoder(backbone, batch_size=1)
    texts = ["merge sorted lists", "heap", "read the lines of files"]
    together = encode(texts)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(encode([text])[0], vector)


def test_an_exported_model_teaches_as_the_network_it_was_made_of(data, backbone, tmp_path):
    text = recipe_text("title", backbone)
    recipe = prepared(tmp_path / "run", data, text)
    train(recipe, tmp_path / "run", stop_at=4)
    export_trained(tmp_path / "run", tmp_path / "model", "taught", "fp32")
    loaded = load_data(recipe, tmp_path / "run")
    item = loaded.items[0]
    lists = lists_of([*item.golds, *item.candidates])
    batch = make_batch([loaded.queries[0]], lists, [set(item.golds)], loaded.texts, chunks=2)
    found = []
    for folder in ("run", "model"):
        config = TeacherConfig(folder=str(tmp_path / folder))
        taught = recipe.model_copy(update={"taught_by": config})
        teacher = find_teacher(taught, loaded.pool, loaded.items, torch.device("cpu"))
        found.append(teacher.scores(batch, [0], lists))
    assert torch.allclose(*found, atol=1e-3)
    assert found[0].std() > 0.01
    nowhere = recipe.model_copy(update={"taught_by": TeacherConfig(folder=str(tmp_path))})
    with pytest.raises(FileNotFoundError, match="neither a training's folder nor a model folder"):
        find_teacher(nowhere, loaded.pool, loaded.items, torch.device("cpu"))


def test_a_network_teaches_what_it_makes_of_the_words_that_its_student_leaves_out(
    data, backbone, tmp_path
):
    plain = prepared(tmp_path / "teacher", data, recipe_text("title", backbone))
    train(plain, tmp_path / "teacher", stop_at=4)
    text = recipe_text("title", backbone).replace("[lists]", '[lists]\nleft_out = ["a", "of"]')
    text += f'\n[taught_by]\nfolder = "{tmp_path / "teacher"}"\n'
    recipe = prepared(tmp_path / "student", data, text)
    loaded = load_data(recipe, tmp_path / "student")
    whole = load_data(plain, tmp_path / "teacher").texts
    lists = [([*item.golds, *item.candidates], [0.0] * len(item.texts)) for item in loaded.items]
    lists = [(texts, scores[: len(texts)]) for texts, scores in lists]
    asked = [loaded.queries[place] for place in range(len(lists))]
    batch = make_batch(asked, lists, [set()] * len(lists), loaded.texts, 3)
    model = load_trained(tmp_path / "teacher")[1]
    with torch.no_grad():
        with_them = list_logits(model, make_batch(asked, lists, [set()] * len(lists), whole, 3))
        without = list_logits(model, batch)
    teacher = find_teacher(recipe, loaded.pool, loaded.items, torch.device("cpu"))
    found = teacher.scores(batch, range(len(lists)), lists)
    assert found is not None
    known = batch.valid
    assert torch.allclose(found[known], with_them[known], atol=1e-4)
    assert bool(found[~known].isnan().all())
    assert not torch.allclose(found[known], without[known], atol=1e-2)
    train(recipe, tmp_path / "student", stop_at=2)


def test_a_network_teaches_in_the_precision_of_the_training(data, backbone, tmp_path):
    recipe = prepared(tmp_path, data, recipe_text("title", backbone))
    train(recipe, tmp_path)
    model = load_trained(tmp_path)[1]
    _, items, texts, queries, *_ = load_data(recipe, tmp_path)
    rows = lists_of(*(items[i].texts[:5] for i in range(3)))
    golds = [set(items[i].golds) for i in range(3)]
    batch = make_batch([queries[i] for i in range(3)], rows, golds, texts, chunks=2)
    exact = NetworkTeacher(model).scores(batch, [0, 1, 2], rows)
    rounded = NetworkTeacher(model, "bf16").scores(batch, [0, 1, 2], rows)
    assert exact is not None
    assert rounded is not None
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.3, equal_nan=True)


@pytest.mark.parametrize("task", ["title", "passage"])
def test_the_teacher_finds_candidates_and_scores_them_all(task, data, backbone, tmp_path):
    text = recipe_text(task, backbone).replace("window = 20", "window = 20\ndense = 9")
    if task == "passage":  # unjudged texts under a gold title are never candidates
        text = text.replace('queries = "all"', 'queries = "all", skip_gold_title = true')
    text += f'[taught_by]\nencoder = "{backbone}"\nscale = 30.0\n'
    text += 'query_prompt = "w1 w2 "\ntext_prompt = "w3 "\n'
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert prepare_once(recipe, data, tmp_path)
    pool, items = load(tmp_path / "train")
    encode = load_bi_encoder(backbone)
    vectors = normalise(encode(["w3 " + text for text in pool]))
    found_some = False
    for item in items[:40]:
        cosines = vectors @ normalise(encode(["w1 w2 " + item.query]))[0]
        near = np.argsort(-cosines, kind="stable")[:9].tolist()
        others = [text for text in near if text not in {*item.golds, *item.candidates}]
        # Two texts as near as each other may change places.
        np.testing.assert_allclose(cosines[item.others], cosines[others], atol=1e-5)
        found_some = found_some or bool(item.others)
        assert item.texts == [*item.golds, *item.candidates, *item.others]
        np.testing.assert_allclose(item.taught, 30 * cosines[item.texts], atol=2e-3)
    assert found_some
    teacher = find_teacher(recipe, pool, items, torch.device("cpu"))
    assert isinstance(teacher, StoredScores)
    train(recipe, tmp_path, stop_at=2)


def test_the_dual_encoder_is_taught_where_it_takes_part(data, backbone, tmp_path):
    changes = {"in_batch": "0.5"}
    text = f"{recipe_text('passage', backbone, **changes)}\n[taught_by]\nweight = 3.0\n"
    recipe = prepared(tmp_path, data, text)
    loaded = load_data(recipe, tmp_path)
    _, model = load_trained(tmp_path, blend=0.0)
    item = loaded.items[0]
    batch = make_batch(
        [loaded.queries[0]], lists_of(item.texts[:4]), [set(item.golds)], loaded.texts, 2
    )
    taught, zero = torch.tensor([[0.0, 5.0, 1.0, float("nan")]]), torch.zeros(())
    added = torch.zeros(1, dtype=torch.bool)
    with torch.no_grad():
        loss = {
            (dual, scores is not None): float(
                batch_loss(recipe, model, batch, zero, added, dual, scores)
            )
            for dual in (False, True)
            for scores in (None, taught)
        }
        known, theirs = taught.isfinite(), taught.nan_to_num()
        reranker = losses.dynamic_distillation(theirs, list_logits(model, batch), known)
        dual = losses.dynamic_distillation(theirs, dual_logits(model, batch), known)  # type: ignore[arg-type]
    learned = {dual: loss[dual, True] - loss[dual, False] for dual in (False, True)}
    assert learned[False] == pytest.approx(3 * float(reranker), rel=1e-4)
    assert learned[True] == pytest.approx(3 * float(reranker + dual), rel=1e-4)
