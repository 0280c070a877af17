"""The broadcasting encoder against its slow twin: one block-masked pass over everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reranker.models.broadcast import BroadcastEncoder, from_bert, mean_state
from tests.reranker.conftest import SMALL, random_encoder

SCRATCH = replace(SMALL, start="scratch", first_query_layer=0, token_types=2)
LATE = replace(SMALL, token_match=7.0)
SINKS = replace(SMALL, sinks=True)


def twin(model: BroadcastEncoder, query: list[int], texts: list[list[int]]) -> Tensor:
    """Score by an ordinary encoder over [query, text, text, ...] and one block mask.

    Nothing here is shared with the fast path but the weights: one long sequence, attention
    written with loops over heads, and a mask that says who sees whom.
    """
    config = model.config
    scratch = config.start == "scratch"
    if config.sinks:
        texts = [text[1:-1] or text[-1:] for text in texts]
    ids, places, kinds, owner = list(query), list(range(len(query))), [0] * len(query), []
    owner = [-1] * len(query)
    for number, text in enumerate(texts):
        first = len(query) if scratch else 1 if config.sinks else 0
        ids += text
        places += range(first, first + len(text))
        kinds += [1 if scratch else 0] * len(text)
        owner += [number] * len(text)
    who = torch.tensor(owner)
    own = who[:, None] == who[None, :]
    to_query = (who[:, None] >= 0) & (who[None, :] < 0)
    x = model.embedding_norm(
        model.words(torch.tensor(ids))
        + model.positions(torch.tensor(places))
        + model.types(torch.tensor(kinds))
    )
    size = config.hidden // config.heads
    for depth, layer in enumerate(model.layers):
        q, k, v = layer.query(x), layer.key(x), layer.value(x)
        heads = []
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            logits = q[:, part] @ k[:, part].T / size**0.5
            logits = logits + model.query_bias[depth, head] * to_query
            allowed = own if depth < config.first_query_layer else own | to_query
            logits, values = logits.masked_fill(~allowed, float("-inf")), v[:, part]
            if config.sinks:
                sinks = q[:, part] @ model.sink_keys[depth, head].T / size**0.5
                sinks = sinks.masked_fill((who < 0)[:, None], float("-inf"))  # of texts only
                logits = torch.cat([logits, sinks], -1)
                values = torch.cat([values, model.sink_values[depth, head]])
            heads.append(logits.softmax(-1) @ values)
        x = layer.attention_norm(x + layer.output(torch.cat(heads, -1)))
        x = layer.norm(x + layer.down(F.gelu(layer.up(x))))
    scores = []
    for number in range(len(texts)):
        states = x[who == number]
        if scratch:
            scores.append(model.head(states[0])[0])
        else:
            pooled, against = states.mean(0), x[who < 0].mean(0)
            cosine = pooled @ against / (pooled.norm() * against.norm())
            late = config.token_match is not None
            scale = model.mean_match if late else model.scale
            score = scale * cosine + model.head(pooled)[0]
            if late:
                weights = (x[who < 0] @ model.token_weight).softmax(0)
                for weight, state in zip(weights, x[who < 0], strict=True):
                    nearest = max(F.cosine_similarity(state, mine, dim=0) for mine in states)
                    score = score + model.token_match * weight * nearest
            scores.append(score)
    return torch.stack(scores)


def fast(model: BroadcastEncoder, query: list[int], texts: list[list[int]]) -> Tensor:
    ids, mask = padded(texts)
    read = model.encode_query(torch.tensor([query]), torch.ones(1, len(query), dtype=torch.bool))
    return model.score(read, ids, mask)


def padded(rows: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + extra
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = True
    return ids, mask


token = st.integers(4, 63)
text = st.lists(token, min_size=1, max_size=9)


@pytest.mark.parametrize(
    "config", [SMALL, SCRATCH, LATE, SINKS], ids=["bi-encoder", "scratch", "late", "sinks"]
)
@given(query=text, texts=st.lists(text, min_size=1, max_size=6), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_broadcast_equals_the_block_masked_twin(config, query, texts, seed):
    model = random_encoder(config, seed)
    with torch.no_grad():
        difference = (fast(model, query, texts) - twin(model, query, texts)).abs().max()
    assert difference < 1e-4


@pytest.mark.parametrize("config", [SMALL, SINKS], ids=["bi-encoder", "sinks"])
@given(texts=st.lists(text, min_size=2, max_size=6), extra=st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_neighbours_order_and_padding_change_no_score(config, texts, extra):
    model = random_encoder(config)
    query = [5, 6, 7]
    with torch.no_grad():
        together = fast(model, query, texts)
        alone = torch.cat([fast(model, query, [t]) for t in texts])
        turned = fast(model, query, texts[::-1]).flip(0)
        ids, mask = padded(texts, extra)
        read = model.encode_query(torch.tensor([query]), torch.ones(1, 3, dtype=torch.bool))
        wider = model.score(read, ids, mask)
    for other in (alone, turned, wider):
        assert torch.allclose(together, other, atol=1e-5)


def test_several_queries_score_as_each_alone():
    model = random_encoder(SMALL)
    queries, texts, owner = [[5, 6], [7, 8, 9, 10]], [[11, 12], [13], [14, 15, 16]], [1, 0, 1]
    query_ids, query_mask = padded(queries)
    ids, mask = padded(texts)
    with torch.no_grad():
        read = model.encode_query(query_ids, query_mask)
        together = model.score(read, ids, mask, torch.tensor(owner))
        alone = torch.cat([fast(model, queries[o], [t]) for o, t in zip(owner, texts, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_several_queries_of_different_lengths_from_scratch():
    model = random_encoder(SCRATCH)
    queries, texts, owner = [[5, 6], [7, 8, 9, 10]], [[11, 12], [13], [14, 15, 16]], [1, 0, 1]
    query_ids, query_mask = padded(queries)
    ids, mask = padded(texts)
    with torch.no_grad():
        together = model.score(
            model.encode_query(query_ids, query_mask), ids, mask, torch.tensor(owner)
        )
        alone = torch.cat([fast(model, queries[o], [t]) for o, t in zip(owner, texts, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_query_changes_the_states_of_a_text():
    # With attention to the query switched off the scores are those of the dual encoder.
    model = random_encoder(SMALL)
    texts = [[5, 9, 8], [6]]
    ids, mask = padded(texts)
    with torch.no_grad():
        read = model.encode_query(torch.tensor([[7, 8]]), torch.ones(1, 2, dtype=torch.bool))
        on = model.encode_text(read, ids, mask)
        off = model.encode_text(None, ids, mask)
        assert not torch.allclose(on, off, atol=1e-3)
        model.query_bias.fill_(-1e4)
        assert torch.allclose(model.encode_text(read, ids, mask), off, atol=1e-5)


def test_it_starts_as_the_bi_encoder():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=96,
        )
    ).eval()
    model = from_bert(bert.state_dict(), bert.config.to_dict(), query_bias=-1e4, scale=1.0).eval()
    texts = [[5, 6, 7], [8, 9]]
    ids, mask = padded(texts)
    query = torch.tensor([[10, 11, 12]])
    with torch.no_grad():
        states = bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        vectors = mean_state(states, mask)
        against = bert(input_ids=query).last_hidden_state.mean(1)
        expected = F.cosine_similarity(vectors, against)
        assert torch.allclose(fast(model, query[0].tolist(), texts), expected, atol=1e-5)


def test_another_architecture_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="BERT family"):
        from_bert({}, {"model_type": "t5"})


def test_a_missing_weight_is_named():
    with pytest.raises(ValueError, match="word_embeddings"):
        from_bert(
            {},
            {
                "model_type": "bert",
                "num_hidden_layers": 1,
                "hidden_size": 8,
                "num_attention_heads": 2,
                "intermediate_size": 8,
                "vocab_size": 8,
                "max_position_embeddings": 8,
                "type_vocab_size": 2,
                "layer_norm_eps": 1e-12,
            },
        )


def test_the_dual_encoder_scores_every_text_against_every_query():
    model = random_encoder(SMALL)
    ids, mask = padded([[5, 9, 8], [6], [7, 7]])
    query_ids, query_mask = padded([[7, 8], [9, 5, 6]])
    owner = torch.tensor([0, 1, 1])
    with torch.no_grad():
        read = model.encode_query(query_ids, query_mask)
        every = model.dual_scores(read, ids, mask)
        assert every.shape == (3, 2)
        for text in range(3):
            for query in range(2):
                vector = model.encode_text(None, ids, mask)[text]
                cosine = torch.cosine_similarity(vector, read.pooled[query], dim=0)
                assert torch.allclose(every[text, query], model.scale * cosine, atol=1e-4)
        own = model.dual_score(read, ids, mask, owner)
        assert torch.allclose(own, every[torch.arange(3), owner], atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, SCRATCH, LATE, SINKS])
@pytest.mark.parametrize("several", [True, False])
def test_fused_attention_equals_the_plain_one(config, several, monkeypatch):
    model = random_encoder(config)
    query_ids = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])[: 2 if several else 1]
    query_mask = query_ids != 0
    ids = torch.tensor([[1, 9, 8, 7, 2], [1, 4, 2, 0, 0], [1, 3, 3, 2, 0]])
    owner = torch.tensor([1, 0, 1]) if several else None

    def scored() -> tuple[Tensor, Tensor, list[Tensor]]:
        model.zero_grad()
        read = model.encode_query(query_ids, query_mask)
        scores = model.score(read, ids, ids != 0, owner)
        dual = model.dual_scores(read, ids, ids != 0)
        (scores.square().sum() + dual.sum()).backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return scores.detach(), dual.detach(), found

    plain = scored()
    calls = []

    def fused(*given):
        calls.append(given)
        return model.attend_fused(*given)

    monkeypatch.setattr(model, "attend", fused)
    again = scored()
    assert calls
    assert torch.allclose(plain[0], again[0], atol=1e-4)
    assert torch.allclose(plain[1], again[1], atol=1e-4)
    for one, two in zip(plain[2], again[2], strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-3)
