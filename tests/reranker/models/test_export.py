"""The exported graphs against torch: fp32 equal, int8 close, scores independent of neighbours."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.models.export import export, measure_ranges, smoothing
from reranker.models.pair import PairEncoder
from reranker.runtime import BroadcastModel, PairModel
from tests.reranker.conftest import SMALL, random_encoder, write_model
from tests.reranker.models.test_broadcast import fast, padded

SCRATCH = replace(SMALL, start="scratch", first_query_layer=0)
QUERY = [2, 5, 9, 14, 3]


def some_texts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[2, *rng.integers(4, 64, rng.integers(1, 14)).tolist(), 3] for _ in range(count)]


def rows(texts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(text, dtype=np.int64) for text in texts]


def tau(one: np.ndarray, two: np.ndarray) -> float:
    """Kendall's rank correlation, by its definition."""
    signs = [
        np.sign(one[i] - one[j]) * np.sign(two[i] - two[j])
        for i, j in combinations(range(len(one)), 2)
    ]
    return float(np.mean(signs))


FROM_ALL_LAYERS = replace(SMALL, first_query_layer=0)
FROM_THE_LAST = replace(SMALL, first_query_layer=2)
LATE = replace(SMALL, token_match=7.0)
SINKS = replace(SMALL, sinks=True)
SINKS_FROM_ALL_LAYERS = replace(SINKS, first_query_layer=0, token_match=7.0)


@pytest.mark.parametrize(
    "config",
    [SMALL, FROM_ALL_LAYERS, FROM_THE_LAST, SCRATCH, LATE, SINKS, SINKS_FROM_ALL_LAYERS],
    ids=[
        "bi-encoder",
        "from all layers",
        "from the last",
        "scratch",
        "late",
        "sinks",
        "sinks from all layers",
    ],
)
def test_fp32_equals_torch(config, tmp_path):
    model = random_encoder(config)
    export(model, tmp_path)
    texts = [*some_texts(60), [2, 3]]  # a title without any word is read as well
    runtime = BroadcastModel(tmp_path, threads=1)
    scores = runtime.score(runtime.read(np.array(QUERY)), rows(texts))
    with torch.no_grad():
        expected = fast(model, QUERY, texts).numpy()
    assert np.abs(scores - expected).max() < 1e-4


def test_pairwise_fp32_equals_torch(tmp_path):
    model = PairEncoder(random_encoder(SMALL)).eval()
    export(model, tmp_path)
    texts = some_texts(40)
    scores = PairModel(tmp_path, threads=1).score(np.array(QUERY), rows(texts))
    with torch.no_grad():
        read = model.encode_query(*padded([QUERY]))
        expected = model.score(read, *padded(texts)).numpy()
    assert np.abs(scores - expected).max() < 1e-4


@pytest.mark.parametrize("config", [SMALL, LATE, SINKS], ids=["bi-encoder", "late", "sinks"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_neighbours_order_and_padding_change_no_score(precision, config, tmp_path):
    write_model(tmp_path, "title", random_encoder(config), precision)
    runtime = BroadcastModel(tmp_path, threads=1)
    read = runtime.read(np.array(QUERY))
    texts = rows(some_texts(50))
    together = runtime.score(read, texts)
    alone = np.concatenate([runtime.score(read, [text]) for text in texts])
    turned = runtime.score(read, texts[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-4
    assert np.abs(together - turned).max() < 1e-4


@pytest.mark.parametrize("config", [SMALL, SINKS], ids=["bi-encoder", "sinks"])
def test_int8_keeps_the_ranking(config, tmp_path):
    model = random_encoder(config)
    write_model(tmp_path, "title", model, "int8")
    runtime = BroadcastModel(tmp_path, threads=1)
    taus = []
    for seed in range(8):
        query = some_texts(1, 100 + seed)[0]
        texts = some_texts(60, seed)
        with torch.no_grad():
            exact = fast(model, query, texts).numpy()
        taus.append(tau(exact, runtime.score(runtime.read(np.array(query)), rows(texts))))
    assert np.mean(taus) >= 0.93  # random weights are harder to quantize than trained ones


def test_both_graphs_share_one_copy_of_the_weights(tmp_path):
    model = random_encoder(SMALL)
    export(model, tmp_path)
    parameters = sum(p.numel() for p in model.parameters()) * 4
    padding = 4096 * 100  # every tensor starts on a page of its own
    assert (tmp_path / "weights.bin").stat().st_size < parameters + padding
    names = []
    for graph in ("query", "lower", "upper"):
        loaded = onnx.load(tmp_path / f"{graph}.onnx", load_external_data=False)
        places = {
            tensor.name: next(e.value for e in tensor.external_data if e.key == "offset")
            for tensor in loaded.graph.initializer
            if tensor.external_data
        }
        names.append(places)
    query, lower, upper = names
    for other in (lower, upper):
        shared = query.keys() & other.keys()
        assert len(shared) > 12
        assert all(query[name] == other[name] for name in shared)
    # What one half of the layers has, the other has not.
    assert not any(name.startswith("layers.") for name in lower.keys() & upper.keys())


def test_int8_without_ranges_is_refused(tmp_path):
    with pytest.raises(ValueError, match="measure_ranges"):
        export(random_encoder(SMALL), tmp_path, "int8")


def test_ranges_ignore_padding():
    model = random_encoder(SMALL)
    ids = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 10]])
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    wide = torch.cat([ids, torch.full((2, 20), 63)], 1)
    wider = torch.cat([mask, torch.zeros(2, 20, dtype=torch.bool)], 1)
    query = torch.tensor([[11, 12]])
    narrow, padded_ = (
        measure_ranges(model, [(query, i, m)]) for i, m in ((ids, mask), (wide, wider))
    )
    name = "text.layers.1.up"
    assert np.allclose(narrow[name], padded_[name], atol=1e-5)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_smoothing_leaves_the_product_as_it_is(inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(5, inputs)) * 30, rng.normal(size=(inputs, outputs))
    factors = smoothing(np.stack([x.min(0), x.max(0)]).astype(np.float32), weight)
    assert (factors > 0).all()
    assert np.allclose((x / factors) @ (weight * factors[:, None]), x @ weight)


def test_the_file_of_weights_is_the_one_named(tmp_path):
    folder = write_model(tmp_path / "a", "title", random_encoder(SMALL))
    assert sorted(p.name for p in Path(folder).iterdir()) == [
        "config.json",
        "lower.onnx",
        "query.onnx",
        "tokenizer.json",
        "upper.onnx",
        "weights.bin",
    ]
