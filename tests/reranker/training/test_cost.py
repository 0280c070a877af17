"""The cost formula against torch's own counter of operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reranker.models.pair import PairEncoder
from reranker.training.config import Recipe
from reranker.training.cost import Cost, cost_of
from reranker.training.draws import passes
from reranker.training.lists import Batch, make_batch
from reranker.training.loop import batch_loss, parameter_groups
from reranker.training.scoring import list_logits
from reranker.training.teachers import NetworkTeacher
from tests.reranker.conftest import SMALL, random_encoder


class Rows:
    """Texts that all have the greatest length."""

    def __getitem__(self, place: int) -> np.ndarray:
        return np.full(24, 5 + place % 50, dtype=np.int32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"distillation": 1.0},
        {"distillation": 1.0, "in_batch": 0.5, "texts_per_pass": 8},
        {"frozen_layers": 2, "distillation": 1.0},
        {"train_embeddings": True},
        {"architecture": "pair"},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_the_formula_is_what_torch_counts(changes):
    recipe = Recipe.model_validate(
        {
            "task": "passage",
            "data": {"sources": [{"path": "x"}]},
            "lists": {"size": 10, "max_text_tokens": 24, "max_query_tokens": 9},
            "queries_per_step": 3,
            "steps": 7,
            **changes,
        }
    )
    model = random_encoder(replace(SMALL, layers=4))
    if recipe.architecture == "pair":
        model = PairEncoder(model)
    first_stage = torch.nn.Parameter(torch.tensor(1.0))
    parameter_groups(recipe, model, first_stage)  # freezes what is not trained
    lists = [(list(range(10 * i, 10 * i + 10)), [0.0] * 10) for i in range(3)]
    queries = [np.full(9, 7, dtype=np.int32)] * 3
    golds = [{10 * i} for i in range(3)]
    batch = make_batch(queries, lists, golds, Rows(), chunks=passes(recipe, lists))
    counter = FlopCounterMode(display=False)
    with counter:
        batch_loss(recipe, model, batch, first_stage, torch.zeros(3, dtype=torch.bool)).backward()
    cost = cost_of(recipe, model)
    assert cost.per_step == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert cost.total == 7 * cost.per_step


@pytest.mark.parametrize("held_to", ["teacher", "start"])
def test_teaching_and_keeping_are_counted(held_to):
    lists = {"size": 10, "max_text_tokens": 24, "max_query_tokens": 9}
    keep = {"words": 5, "queries_per_step": 2, "size": 6, "held_to": held_to}
    recipe = Recipe.model_validate(
        {
            "task": "passage",
            "start": "model",
            "data": {"sources": [{"path": "x"}]},
            "lists": lists,
            "queries_per_step": 3,
            "keep": keep,
        }
    )
    model = random_encoder(replace(SMALL, layers=3))
    teacher = random_encoder(replace(SMALL, layers=6)).requires_grad_(False)
    known = teacher if held_to == "teacher" else random_encoder(model.config).requires_grad_(False)
    first_stage = torch.nn.Parameter(torch.tensor(1.0))
    parameter_groups(recipe, model, first_stage)
    query = np.full(9, 7, dtype=np.int32)

    def batch(number: int, size: int) -> Batch:
        drawn = [(list(range(size * i, size * i + size)), [0.0] * size) for i in range(number)]
        return make_batch([query] * number, drawn, [{size * i} for i in range(number)], Rows(), 4)

    own, held = batch(3, 10), batch(2, 6)
    counter = FlopCounterMode(display=False)
    with counter:
        NetworkTeacher(teacher).logits(own)
        loss = batch_loss(recipe, model, own, first_stage, torch.zeros(3, dtype=torch.bool))
        before = NetworkTeacher(known).logits(held)
        (loss + (list_logits(model, held) - before).square().sum()).backward()
    cost = cost_of(recipe, model, teacher)
    assert cost.per_step == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_time_by_hand():
    assert Cost(3.6e15, 1000).hours(100) == pytest.approx(10)
    with pytest.raises(ValueError, match="above 0"):
        Cost(1.0, 1).hours(0)
