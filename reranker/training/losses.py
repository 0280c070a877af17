"""Losses over lists of scores, as pure functions of tensors.

`logits` is (B, N): B lists of N texts. `gold` is (B, N), True where the text answers the query.
`valid` is (B, N), False where the list is shorter than N. Every gold text is compared with the
list's negatives only: one gold text is never another's negative. Lists without a gold text or
without a negative count nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor

_OUT = float("-inf")


def listwise_softmax(logits: Tensor, gold: Tensor, valid: Tensor) -> Tensor:
    """Mean over the gold texts of -log softmax(gold against all negatives); a scalar."""
    margin, counted = _margins(logits, gold, valid)
    return _mean(F.softplus(margin), counted)


def sigmoid_trick(
    logits: Tensor,
    gold: Tensor,
    valid: Tensor,
    margin: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Our reading of ETR's Sigmoid Trick (arXiv 2312.12430); a scalar.

    sigmoid((logsumexp(negatives) - gold - margin) / temperature): the gradient is largest at the
    decision boundary and fades at both ends, for the texts already right and for those so wrong
    that they look like noise.
    """
    distance, counted = _margins(logits, gold, valid)
    return _mean(torch.sigmoid((distance - margin) / temperature), counted)


def pairwise_logistic(logits: Tensor, gold: Tensor, valid: Tensor) -> Tensor:
    """Mean over all pairs of gold and negative of log(1 + exp(negative - gold)); a scalar."""
    pairs = (gold & valid)[:, :, None] & (~gold & valid)[:, None, :]  # (B, gold, negative)
    return _mean(F.softplus(logits[:, None, :] - logits[:, :, None]), pairs)


def dynamic_distillation(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """KL(softmax(student) || softmax(teacher)) over each list, gradients through both; a scalar.

    RocketQAv2 (arXiv 2110.07367), dynamic listwise distillation: `student` are the dual
    encoder's scores and `teacher` the reranker's, and neither is frozen. For the static form
    give `teacher.detach()`.
    """
    floor = torch.finfo(student.dtype).min
    ours = student.masked_fill(~valid, floor).log_softmax(-1)
    theirs = teacher.masked_fill(~valid, floor).log_softmax(-1)
    terms = torch.where(valid, ours.exp() * (ours - theirs), 0.0)
    return terms.sum(-1).mean()


def in_batch_softmax(scores: Tensor, gold: Tensor, valid: Tensor, elsewhere: Tensor) -> Tensor:
    """Mean over the gold texts of -log softmax(gold against its list's and others' texts).

    `scores` (B, B * N) holds each query's scores of all B lists' texts, its own at
    [b, b * N : (b + 1) * N]; `elsewhere` (B, B * N) names the others that may stand against it.
    The usual way to train a dual encoder (DPR, arXiv 2004.04906, section 3.2); a scalar.
    """
    rows = torch.arange(len(gold), device=gold.device)
    spread = torch.zeros(len(gold), *gold.shape, dtype=torch.bool, device=gold.device)
    spread[rows, rows] = valid & ~gold
    own = spread.flatten(1) | elsewhere  # (B, B * N), every text that counts as a negative
    against = torch.logsumexp(scores.masked_fill(~own, _OUT), -1, keepdim=True)  # (B, 1)
    golds = scores.view(len(gold), *gold.shape)[rows, rows]  # (B, N)
    usable = own.any(-1, keepdim=True)
    return _mean(F.softplus(torch.where(usable, against, 0.0) - golds), gold & valid & usable)


def _margins(logits: Tensor, gold: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp(negatives) - gold for every text (B, N), and which of them count."""
    negative = valid & ~gold
    usable = negative.any(-1, keepdim=True)  # (B, 1)
    # A list without negatives would give -inf and NaN gradients: stand in for it, then drop it.
    masked = torch.where(negative, logits, _OUT)
    masked = torch.where(usable, masked, 0.0)
    against = torch.logsumexp(masked, -1, keepdim=True)  # (B, 1)
    return against - logits, gold & valid & usable


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
