"""The ordinary pairwise cross-encoder: query and text in one sequence, every token sees every.

`[CLS] query [SEP] text [SEP]` through the same layers as `broadcast`, with token types 0 and 1
and a linear head on the first token. It is what the broadcasting encoder is compared with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reranker.models.broadcast import BroadcastEncoder, Layer


class QueryTokens(NamedTuple):
    """The queries as they are: nothing of them can be computed ahead."""

    ids: Tensor  # (B, Q)
    mask: Tensor  # (B, Q)


class PairEncoder(nn.Module):
    """Scores (query, text) pairs; has the interface of `BroadcastEncoder`."""

    def __init__(self, encoder: BroadcastEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.query_bias.requires_grad_(False)
        encoder.scale.requires_grad_(False)
        nn.init.normal_(encoder.head.weight, std=0.02)

    def encode_query(self, ids: Tensor, mask: Tensor) -> QueryTokens:
        """Keep the queries, ids and mask (B, Q), for `score`."""
        return QueryTokens(ids, mask)

    def score(
        self, query: QueryTokens, ids: Tensor, mask: Tensor, owner: Tensor | None = None
    ) -> Tensor:
        """Logits (N,) of texts, ids and mask (N, T), each against its query."""
        if owner is None:
            owner = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        query_ids, query_mask = query.ids[owner], query.mask[owner]  # (N, Q)
        ids = torch.cat([query_ids, ids[:, 1:]], 1)  # the text's own [CLS] is dropped
        mask = torch.cat([query_mask, mask[:, 1:]], 1)
        width = query_ids.shape[1]
        encoder = self.encoder
        # Padding stands between query and text; positions count the real tokens only.
        places = (mask.cumsum(1) - 1).clamp(min=0)
        kinds = torch.zeros_like(ids)
        kinds[:, width:] = 1
        x = encoder.embedding_norm(
            encoder.words(ids) + encoder.positions(places) + encoder.types(kinds)
        )
        seen = mask[:, None, None, :]
        for module in encoder.layers:
            layer: Layer = module  # type: ignore[assignment]
            q, k = layer.split(layer.query(x)), layer.split(layer.key(x))
            logits = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(
                ~seen, float("-inf")
            )
            x = layer.finish(x, logits.softmax(-1) @ layer.split(layer.value(x)))
        out: Tensor = encoder.head(x[:, 0]).squeeze(-1)
        return out
