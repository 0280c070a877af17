"""The exported dual encoder against torch's, and what it promises of its vectors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from reranker.dual import DualEncoder
from reranker.models.broadcast import BroadcastEncoder
from reranker.models.export import export
from reranker.models.pair import PairEncoder
from tests.reranker.conftest import SMALL, WORDS, random_encoder, small_tokenizer, write_model

QUERIES = ["merge sorted lists", "open a file", "title"]


def some_passages(count: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, rng.integers(0, 3))) for _ in range(count)]
    return titles, [" ".join(rng.choice(WORDS, rng.integers(0, 15))) for _ in range(count)]


def in_torch(model: BroadcastEncoder, texts: list[str], queries: bool = False) -> np.ndarray:
    """One text at a time through the network, each as a query or without one."""
    tokenizer = Tokenizer.from_str(small_tokenizer())
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            if queries:
                pooled = model.encode_query(ids, mask).pooled
            else:
                pooled = model.encode_text(None, ids, mask)
        rows.append(torch.nn.functional.normalize(pooled, dim=-1)[0].numpy())
    return np.stack(rows)


def joined(titles: list[str], passages: list[str]) -> list[str]:
    return [f"{t}. {p}" if t and p else t or p for t, p in zip(titles, passages, strict=True)]


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("first_query_layer", [0, 1])
def test_fp32_equals_torch(tmp_path, first_query_layer, sinks):
    model = random_encoder(replace(SMALL, first_query_layer=first_query_layer, sinks=sinks))
    write_model(tmp_path, "passage", model)
    encoder = DualEncoder.load(tmp_path, threads=1)
    titles, passages = some_passages(60)
    vectors = encoder.encode_passages(titles, passages)
    assert vectors.shape == (60, encoder.dimensions) == (60, SMALL.hidden)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - in_torch(model, joined(titles, passages))).max() < 1e-5
    queries = encoder.encode_queries(QUERIES)
    assert queries.dtype == np.float32
    assert np.abs(queries - in_torch(model, QUERIES, queries=True)).max() < 1e-5
    # The score that the network was trained with, but for its scale.
    with torch.no_grad():
        ids = torch.tensor([Tokenizer.from_str(small_tokenizer()).encode(QUERIES[0]).ids])
        read = model.encode_query(ids, torch.ones_like(ids, dtype=torch.bool))
        text = torch.tensor([Tokenizer.from_str(small_tokenizer()).encode("read a list").ids])
        exact = model.dual_score(read, text, torch.ones_like(text, dtype=torch.bool)) / model.scale
    assert queries[0] @ encoder.encode_passages([""], ["read a list"])[0] == pytest.approx(
        float(exact), abs=1e-5
    )


def test_int8_is_close_and_needs_no_neighbours(tmp_path):
    model = random_encoder(SMALL)
    write_model(tmp_path, "passage", model, "int8")
    encoder = DualEncoder.load(tmp_path, threads=1)
    titles, passages = some_passages(40)
    vectors = encoder.encode_passages(titles, passages)
    exact = in_torch(model, joined(titles, passages))
    assert (vectors * exact).sum(1).mean() > 0.97  # cosines
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = [encoder.encode_passages([t], [p])[0] for t, p in zip(titles, passages, strict=True)]
    assert np.abs(vectors - np.stack(alone)).max() < 1e-4
    turned = encoder.encode_passages(titles[::-1], passages[::-1])[::-1]
    assert np.abs(vectors - turned).max() < 1e-4


def test_the_weights_are_not_stored_twice(tmp_path):
    model = random_encoder(SMALL)
    sizes = []
    for dual in (False, True):
        export(model, tmp_path / str(dual), dual=dual)
        sizes.append((tmp_path / str(dual) / "weights.bin").stat().st_size)
    assert sizes[0] == sizes[1]


def test_nothing_and_too_much(tmp_path, caplog):
    encoder = DualEncoder(write_model(tmp_path, "passage", random_encoder(SMALL)), threads=1)
    assert encoder.encode_queries([]).shape == (0, SMALL.hidden)
    assert encoder.encode_passages([], []).shape == (0, SMALL.hidden)
    caplog.set_level("INFO")
    long = encoder.encode_passages(["", ""], ["heap " * 30, "heap " * 22])
    assert np.array_equal(long[0], long[1])  # 22 tokens and the two around them are all it reads
    assert "of 1 of 2 passages only the beginning" in caplog.text
    for empty in (" ", "\u200b"):
        with pytest.raises(ValueError, match="query 1 is empty"):
            encoder.encode_queries(["a", empty])
    with pytest.raises(ValueError, match="2 titles for 1 passages"):
        encoder.encode_passages(["a", "b"], ["c"])


def test_a_folder_without_a_dual_encoder_says_what_to_do(tmp_path):
    folder = write_model(tmp_path / "new", "passage", random_encoder(SMALL))
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    (older / "dual.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no dual\.onnx.*export it again"):
        DualEncoder.load(older)
    pair = PairEncoder(random_encoder(SMALL))
    with pytest.raises(FileNotFoundError, match="broadcast architecture"):
        DualEncoder.load(write_model(tmp_path / "pair", "passage", pair))
    with pytest.raises(ValueError, match="only a broadcasting model"):
        export(pair, tmp_path / "refused", dual=True)


def test_it_runs_where_torch_cannot_be_imported(tmp_path):
    folder = write_model(tmp_path, "passage", random_encoder(SMALL))
    code = """
import sys
for name in ("torch", "transformers", "onnx", "sentence_transformers"):
    sys.modules[name] = None
from reranker import DualEncoder
print(DualEncoder.load(sys.argv[1], threads=1).encode_queries(["a list"]).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"(1, {SMALL.hidden})", done.stderr
