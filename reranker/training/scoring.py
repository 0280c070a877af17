"""Scores of a batch's lists, chunk by chunk: by the network, and by its dual encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from reranker.models.broadcast import BroadcastEncoder
    from reranker.training.lists import Batch
    from reranker.training.start import Model


def list_logits(model: Model, batch: Batch) -> Tensor:
    """The model's logits over the lists, (B, N)."""
    read = model.encode_query(batch.query_ids, batch.query_mask)
    return score_lists(model, batch, read)


def dual_logits(model: BroadcastEncoder, batch: Batch) -> Tensor:
    """The dual encoder's logits over the lists, (B, N)."""
    read = model.encode_query(batch.query_ids, batch.query_mask)
    return own_lists(score_all(model, batch, read), batch)


def own_lists(scores: Tensor, batch: Batch) -> Tensor:
    """Of scores against all lists' texts, (B, B * N), those of each query's own, (B, N)."""
    rows = torch.arange(len(scores))
    return scores.view(len(scores), *batch.valid.shape)[rows, rows]


def score_lists(model: Model, batch: Batch, read: Any, again: bool = False) -> Tensor:
    """The model's logits over the lists, (B, N), of queries that were read; see `_run`."""
    parts = [_run(again, model.score, read, c.ids, c.mask, c.owner) for c in batch.chunks]
    return _at_their_places(batch, parts).view(batch.valid.shape)


def score_all(model: BroadcastEncoder, batch: Batch, read: Any, again: bool = False) -> Tensor:
    """The dual encoder's logits of every query (B) against every list's texts, (B, B * N)."""
    parts = [_run(again, model.dual_scores, read, c.ids, c.mask) for c in batch.chunks]
    return _at_their_places(batch, parts).T


def _run(again: bool, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Call a function; `again`: compute its states a second time for the gradients.

    Only the scores of a chunk are kept until then, as in gradient caching (Gao et al. 2021,
    arXiv 2101.06983): the loss over whole lists and batches is exact, and no more than one
    chunk's states are in memory at a time.
    """
    if not again:
        return function(*inputs)
    scores: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return scores


def _at_their_places(batch: Batch, parts: Sequence[Tensor]) -> Tensor:
    """The chunks' rows in the order of the flattened lists; zeros where there is no text."""
    order = torch.cat([chunk.place for chunk in batch.chunks])
    rows = torch.cat(list(parts))
    return rows.new_zeros(batch.valid.numel(), *rows.shape[1:]).index_put((order,), rows)
