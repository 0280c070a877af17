"""Losses: values and gradients by hand, and sane at the extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.training.losses import (
    dynamic_distillation,
    in_batch_softmax,
    listwise_softmax,
    pairwise_logistic,
    sigmoid_trick,
)

ALL = torch.ones(1, 3, dtype=torch.bool)
FIRST = torch.tensor([[True, False, False]])


def test_listwise_softmax_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    loss = listwise_softmax(logits, FIRST, ALL)
    total = math.exp(2) + math.exp(1) + 1
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / total), abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    expected = [math.exp(2) / total - 1, math.exp(1) / total, 1 / total]
    assert logits.grad[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_sigmoid_trick_by_hand():
    logits = torch.tensor([[1.0, 0.5, -0.5]], requires_grad=True)
    loss = sigmoid_trick(logits, FIRST, ALL, margin=0.2, temperature=2.0)
    against = math.log(math.exp(0.5) + math.exp(-0.5))
    value = 1 / (1 + math.exp(-(against - 1.0 - 0.2) / 2.0))
    assert loss.item() == pytest.approx(value, abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(-value * (1 - value) / 2.0, abs=1e-6)


def test_pairwise_logistic_by_hand():
    loss = pairwise_logistic(torch.tensor([[1.0, 0.0, 3.0]]), FIRST, ALL)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_dynamic_distillation_by_hand_moves_both_models():
    student = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)  # 3/4, 1/4
    teacher = torch.zeros(1, 2, requires_grad=True)  # 1/2, 1/2
    loss = dynamic_distillation(student, teacher, torch.ones(1, 2, dtype=torch.bool))
    value = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is not None
    # d KL(p || q) / d teacher logits = q - p; / d student logits = p (log(p / q) - KL).
    assert teacher.grad[0].tolist() == pytest.approx([-0.25, 0.25], abs=1e-6)
    first = 0.75 * (math.log(1.5) - value)
    assert student.grad[0].tolist() == pytest.approx([first, -first], abs=1e-6)


@pytest.mark.parametrize("loss", [listwise_softmax, sigmoid_trick, pairwise_logistic])
def test_one_gold_text_is_not_another_s_negative(loss):
    gold = torch.tensor([[True, True, False]])
    both = torch.tensor([[1.0, 5.0, 0.0]])
    alone = [
        loss(both[:, [place, 2]], gold[:, [place, 2]], torch.ones(1, 2, dtype=torch.bool))
        for place in (0, 1)
    ]
    assert loss(both, gold, ALL).item() == pytest.approx(sum(alone).item() / 2, abs=1e-6)


@pytest.mark.parametrize("loss", [listwise_softmax, sigmoid_trick, pairwise_logistic])
def test_what_is_not_valid_does_not_count(loss):
    logits = torch.tensor([[1.0, 0.5, 99.0]])
    valid = torch.tensor([[True, True, False]])
    short = loss(logits[:, :2], FIRST[:, :2], valid[:, :2])
    assert loss(logits, FIRST, valid).item() == pytest.approx(short.item(), abs=1e-6)


@pytest.mark.parametrize("loss", [listwise_softmax, sigmoid_trick, pairwise_logistic])
@pytest.mark.parametrize(
    "gold", [[[False] * 3, [True, False, False]], [[True] * 3, [True, False, False]]]
)
def test_lists_without_gold_or_negatives_give_finite_gradients(loss, gold):
    logits = torch.randn(2, 3, requires_grad=True)
    loss(logits, torch.tensor(gold), torch.ones(2, 3, dtype=torch.bool)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def gradient(loss, gold_logit: float) -> float:
    logits = torch.tensor([[gold_logit, 0.0, 0.0]], requires_grad=True)
    loss(logits, FIRST, ALL).backward()
    assert logits.grad is not None
    return abs(float(logits.grad[0, 0]))


def test_the_sigmoid_trick_fades_at_both_ends_where_softmax_keeps_pushing():
    for far in (-30.0, 30.0):
        assert gradient(sigmoid_trick, far) < 1e-6
    assert gradient(sigmoid_trick, math.log(2)) == pytest.approx(0.25, abs=1e-3)  # the boundary
    assert gradient(listwise_softmax, -30.0) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("loss", [listwise_softmax, sigmoid_trick, pairwise_logistic])
@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_extreme_logits_in_bfloat16_are_finite(loss, size):
    logits = torch.tensor([[size, -size, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    value = loss(logits, FIRST, ALL)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_distillation_of_equal_and_extreme_scores_is_finite(size):
    student = torch.tensor([[size, -size, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-size, size, 0.0]], requires_grad=True)
    value = dynamic_distillation(student, teacher, torch.tensor([[True, True, False]]))
    value.backward()
    for scores in (student, teacher):
        assert scores.grad is not None
        assert torch.isfinite(scores.grad).all()


@given(seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_in_batch_softmax_is_the_loop_over_golds_and_negatives(seed):
    rng = np.random.default_rng(seed)
    lists, size = 3, 4
    scores = torch.from_numpy(rng.normal(size=(lists, lists * size)) * 5)
    valid = torch.from_numpy(rng.random((lists, size)) < 0.8)
    gold = torch.from_numpy(rng.random((lists, size)) < 0.4) & valid
    elsewhere = torch.from_numpy(rng.random((lists, lists * size)) < 0.5)
    for b in range(lists):
        elsewhere[b, b * size : (b + 1) * size] = False  # its own list counts by gold and valid
    terms = []
    for b in range(lists):
        own = scores[b, b * size : (b + 1) * size]
        negatives = [float(s) for s in own[valid[b] & ~gold[b]]]
        negatives += [float(s) for s in scores[b][elsewhere[b]]]
        for g in range(size):
            if gold[b, g] and negatives:
                every = [float(own[g]), *negatives]
                terms.append(math.log(sum(math.exp(s - float(own[g])) for s in every)))
    wanted = sum(terms) / max(len(terms), 1)
    got = in_batch_softmax(scores, gold, valid, elsewhere)
    assert float(got) == pytest.approx(wanted, abs=1e-9)


def test_losses_are_made_where_their_tensors_are():
    """On a device that holds no values: whatever is made elsewhere does not go with them."""
    scores = torch.zeros(2, 6, device="meta", requires_grad=True)
    gold = torch.zeros(2, 3, dtype=torch.bool, device="meta")
    elsewhere = torch.zeros(2, 6, dtype=torch.bool, device="meta")
    for loss in (
        *(one(scores[:, :3], gold, gold) for one in (listwise_softmax, sigmoid_trick)),
        pairwise_logistic(scores[:, :3], gold, gold),
        dynamic_distillation(scores[:, :3], scores[:, 3:], gold),
        in_batch_softmax(scores, gold, gold, elsewhere),
    ):
        assert loss.device.type == "meta"
        loss.backward()


def test_in_batch_softmax_has_finite_gradients_at_the_extremes():
    for spread in (0.0, 1e4):
        scores = (torch.arange(8.0) * spread).view(2, 4).requires_grad_()
        gold = torch.tensor([[True, False], [False, False]])
        valid = torch.tensor([[True, False], [False, False]])
        in_batch_softmax(scores, gold, valid, torch.zeros(2, 4, dtype=torch.bool)).backward()
        assert scores.grad is not None
        assert bool(torch.isfinite(scores.grad).all())
