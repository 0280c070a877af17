"""Dense and hybrid candidates against their obvious twins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.dual import DualEncoder
from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import Document
from reranker.evaluation.hybrid import DenseIndex, Hybrid, kept_vectors, reciprocal_rank_fusion
from tests.reranker.conftest import WORDS


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Given:
    """An encoder whose query says which vector it is."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.calls = vectors, 0

    def encode_queries(self, queries):
        return self.vectors[[int(query) for query in queries]]

    def encode_passages(self, titles, passages):
        self.calls += 1
        return self.vectors[[int(passage) for passage in passages]]


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 20))
@settings(max_examples=40)
def test_the_exact_index_is_a_sort_of_all(count, k, seed):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.integers(-2, 3, (count, 3)) + 0.01)  # many are equal
    ids = [f"d{i}" for i in range(count)]
    query = unit(rng.normal(size=(1, 3)))
    found = DenseIndex(ids, vectors, lambda texts: query).search("q", k)
    scores = vectors @ query[0]
    expected = sorted(range(count), key=lambda i: (-scores[i], i))[:k]
    assert [id for id, _ in found] == [ids[i] for i in expected]
    assert [score for _, score in found] == pytest.approx([scores[i] for i in expected])


def test_hnsw_finds_what_the_exact_index_finds():
    pytest.importorskip("usearch")
    vectors = unit(np.random.default_rng(0).normal(size=(500, 16)))
    ids = [str(i) for i in range(500)]
    encoder = Given(vectors)
    exact = DenseIndex(ids, vectors, encoder.encode_queries)
    graph = DenseIndex(ids, vectors, encoder.encode_queries, "hnsw")
    same = [
        len({id for id, _ in exact.search(q, 10)} & {id for id, _ in graph.search(q, 10)})
        for q in ids[:50]
    ]
    assert np.mean(same) > 9.5
    assert graph.search("7", 1)[0][0] == "7"
    assert len(graph.search("7", 900)) == 500


def test_nothing_to_find():
    index = DenseIndex([], np.zeros((0, 4), np.float32), lambda texts: np.zeros((1, 4)), "hnsw")
    assert index.search("q") == []
    one = DenseIndex(["a"], unit(np.ones((1, 4))), lambda texts: unit(np.ones((1, 4))))
    assert one.search("  ") == []
    assert one.search("q", 0) == []
    assert [id for id, _ in one.search("q", 5)] == ["a"]
    with pytest.raises(ValueError, match="2 ids for vectors of shape"):
        DenseIndex(["a", "b"], np.ones((1, 4), np.float32), lambda texts: np.ones((1, 4)))
    with pytest.raises(ValueError, match="needs searchers"):
        Hybrid([])


def test_reciprocal_rank_fusion_by_hand():
    one, two = [("a", 9.0), ("b", 8.0)], [("c", 0.1), ("b", 0.0)]
    fused = reciprocal_rank_fusion([one, two])
    assert fused == [("b", 2 / 62), ("a", 1 / 61), ("c", 1 / 61)]
    assert reciprocal_rank_fusion([one]) == [("a", 1 / 61), ("b", 1 / 62)]
    assert reciprocal_rank_fusion([[], []]) == []


@given(st.lists(st.permutations(list("abcdefg")), min_size=1, max_size=4), st.integers(1, 9))
def test_scores_and_the_order_of_rankings_play_no_part(orders, scale):
    rankings = [[(id, float(-at)) for at, id in enumerate(order)] for order in orders]
    scaled = [[(id, scale * score + 3) for id, score in ranking] for ranking in rankings]
    fused = dict(reciprocal_rank_fusion(rankings))
    assert dict(reciprocal_rank_fusion(scaled)) == fused
    assert dict(reciprocal_rank_fusion(rankings[::-1])) == pytest.approx(fused)


def test_hybrid_candidates_through_real_models(small_models: Path):
    rng = np.random.default_rng(1)
    corpus = {
        f"d{i}": Document(f"d{i}", str(rng.choice(WORDS)), " ".join(rng.choice(WORDS, 6)))
        for i in range(40)
    }
    encoder = DualEncoder.load(small_models / "passage", threads=1)
    done: list[int] = []
    dense = DenseIndex.over(corpus, encoder, progress=done.append)
    assert done == [40]
    bm25 = BM25.over(corpus)
    query = "merge sorted files"
    found = [id for id, _ in Hybrid([bm25, dense]).search(query, 10)]
    parts = [[id for id, _ in one.search(query, 10)] for one in (bm25, dense)]
    assert len(found) == len(set(found)) == 10
    assert set(found) <= {*parts[0], *parts[1]}
    assert set(parts[0][:3] + parts[1][:3]) <= set(found)


def test_vectors_are_kept_and_belong_to_texts_and_a_model(tmp_path):
    corpus = {key: Document(key, "", key) for key in ("1", "0")}
    encoder = Given(unit(np.eye(2) + 0.1))
    path = tmp_path / "v.npz"
    made = kept_vectors(path, corpus, encoder, "model")
    assert np.array_equal(made, encoder.vectors[[1, 0]])
    assert np.array_equal(kept_vectors(path, corpus, encoder, "model"), made)
    assert encoder.calls == 1
    reversed_ = dict(reversed(corpus.items()))
    retitled = corpus | {"0": Document("0", "a title", "0")}
    moved = corpus | {"0": Document("0", "0", "")}
    for wrong in ((reversed_, "model"), (retitled, "model"), (moved, "model"), (corpus, "other")):
        with pytest.raises(
            ValueError, match=r"another model or of other .* give another --vectors"
        ):
            kept_vectors(path, wrong[0], encoder, wrong[1])
    assert sorted(tmp_path.iterdir()) == [path]


def test_files_that_hold_no_kept_vectors(tmp_path):
    path = tmp_path / "v.npz"
    corpus = {"0": Document("0", "", "0")}
    encoder = Given(unit(np.eye(1)))
    kept_vectors(path, corpus, encoder, "model")
    cut = path.read_bytes()[:-30]

    def array():
        with path.open("wb") as file:
            np.save(file, np.eye(2))

    for write in (
        lambda: path.write_bytes(b"junk"),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(cut),
        array,
        lambda: np.savez(path, other=np.eye(2)),
        lambda: np.savez(path, vectors=np.array([{}]), model="model", documents=""),
    ):
        write()
        with pytest.raises(ValueError, match="holds no vectors that can be read"):
            kept_vectors(path, corpus, encoder, "model")
