from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.evaluation.bm25 import BM25, text_of
from reranker.evaluation.collections import Collection, Document

TEXTS = ["heap sort", "a heap of sand and a heap of gravel", "sand", ""]


def found(bm25: BM25, query: str, k: int = 100) -> list[str]:
    return [document for document, _ in bm25.search(query, k)]


def lucene_score(tf: int, length: int, mean: float, documents: int, having: int) -> float:
    idf = math.log(1 + (documents - having + 0.5) / (having + 0.5))
    return idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * length / mean))


def test_scores_are_lucenes() -> None:
    bm25 = BM25("abcd", TEXTS)
    # Without stop words: heap sort / heap sand heap gravel / sand / nothing.
    scores = dict(bm25.search("the heap"))
    assert scores == {
        "a": pytest.approx(lucene_score(1, 2, 7 / 4, 4, 2), rel=1e-5),
        "b": pytest.approx(lucene_score(2, 4, 7 / 4, 4, 2), rel=1e-5),
    }


def test_only_documents_that_match_are_found() -> None:
    bm25 = BM25("abcd", TEXTS)
    assert found(bm25, "sand") == ["c", "b"]
    assert found(bm25, "Sand!", k=1) == ["c"]
    assert found(bm25, "sand", k=0) == []
    assert found(bm25, "zebra") == []
    assert found(bm25, "") == []
    assert found(bm25, "of the") == []
    assert found(BM25("abcd", TEXTS, stop_words=False), "of the") == ["b"]


def test_single_letters_and_digits_are_words() -> None:
    assert found(BM25("ab", ["vitamin C", "plan 9"]), "9 c") == ["a", "b"]


def test_where_words_are_not_those_of_the_standard_analyzer() -> None:
    texts = ["don't", "3.5", "東京都", "cafe\u0301"]
    bm25 = BM25("abcd", texts)
    assert [found(bm25, word) for word in ("don", "5", "東京都")] == [["a"], ["b"], ["c"]]
    assert [found(bm25, word) for word in ("東京", "café")] == [[], []]
    assert found(bm25, "cafe") == ["d"]


@pytest.mark.parametrize("texts", [[], ["", ""], ["the of", "and"]])
def test_a_corpus_without_words_finds_nothing(texts: list[str]) -> None:
    bm25 = BM25([str(i) for i in range(len(texts))], texts)
    assert len(bm25) == len(texts)
    assert bm25.search("anything") == []


def test_ids_and_texts_must_match() -> None:
    with pytest.raises(ValueError, match="2 ids for 1 texts"):
        BM25("ab", ["one"])


@given(st.lists(st.sampled_from(["x", "y", "x y"]), min_size=1, max_size=30), st.integers(1, 30))
def test_equal_scores_keep_the_documents_order(texts: list[str], k: int) -> None:
    bm25 = BM25([f"{i:02}" for i in range(len(texts))], texts)
    everything = bm25.search("x y", 100)
    assert everything == sorted(everything, key=lambda hit: (-hit[1], hit[0]))
    assert bm25.search("x y", k) == everything[:k]  # a smaller k only cuts


def test_fields_of_a_corpus(collection: Collection) -> None:
    assert found(BM25.over(collection.corpus, "title"), "heap filmmaker heapsort") == ["d4"]
    assert set(found(BM25.over(collection.corpus, "passage"), "ed filmmaker")) == {"d1"}
    assert set(found(BM25.over(collection.corpus), "ed filmmaker")) == {"d1", "d2"}


def test_text_of_joins_what_there_is() -> None:
    assert text_of(Document("i", "Title", "Text")) == "Title. Text"
    assert text_of(Document("i", "", "Text")) == "Text"
    assert text_of(Document("i", "Title", "")) == "Title"


def test_stemming() -> None:
    pytest.importorskip("Stemmer", reason="PyStemmer is optional")
    assert found(BM25("a", ["sorted heaps"], stem=True), "sorting a heap") == ["a"]
    assert found(BM25("a", ["sorted heaps"]), "sorting a heap") == []


def test_stemming_without_pystemmer_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(ImportError, match="pip install PyStemmer"):
        BM25("a", ["text"], stem=True)


def test_evaluation_imports_without_torch_and_stays_silent() -> None:
    program = """
import sys
from pathlib import Path
for name in ("torch", "transformers", "sentence_transformers", "ir_measures", "matplotlib"):
    sys.modules[name] = None
from reranker.evaluation import baselines, bm25, collections, measures, plots, reports, runs, trec
assert bm25.BM25("a", ["a heap"]).search("heap")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_jax_is_not_started_by_the_command_or_the_training(tmp_path: Path) -> None:
    """It would take most of a GPU's memory; who uses it besides still can."""
    package = tmp_path / "jax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "lax.py").write_text("def top_k(scores, k): raise SystemError('started')")
    program = (
        "import plugin.cli.main, reranker.training.loop, reranker.evaluation.bm25, sys\n"
        "assert 'bm25s' in sys.modules and 'jax' not in sys.modules\n"
        "import jax.lax"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
