"""The pairwise cross-encoder against a sequence without padding."""

from __future__ import annotations

import torch

from reranker.models.pair import PairEncoder
from tests.reranker.conftest import SMALL, random_encoder
from tests.reranker.models.test_broadcast import padded


def test_padding_and_neighbours_change_no_score():
    model = PairEncoder(random_encoder(SMALL)).eval()
    queries = [[2, 5, 6, 3], [2, 7, 3]]
    texts = [[2, 11, 12, 3], [2, 13, 3], [2, 14, 15, 16, 3]]
    owner = torch.tensor([1, 0, 1])
    with torch.no_grad():
        read = model.encode_query(*padded(queries))
        together = model.score(read, *padded(texts), owner)
        alone = torch.cat(
            [
                model.score(model.encode_query(*padded([queries[o]])), *padded([text]))
                for o, text in zip(owner.tolist(), texts, strict=True)
            ]
        )
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_query_reads_the_text():
    # Unlike in the broadcasting encoder, one changed token of the text moves the query's states.
    model = PairEncoder(random_encoder(SMALL)).eval()
    with torch.no_grad():
        read = model.encode_query(*padded([[2, 5, 6, 3]]))
        one, two = model.score(read, *padded([[2, 11, 12, 3], [2, 11, 13, 3]])).tolist()
    assert abs(one - two) > 1e-4
