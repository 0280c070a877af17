"""An embedded first stage: BM25 in memory, for evaluation and demos without a search engine.

Scoring is bm25s's (numpy only); words are lower-cased runs of letters and digits, by default
without Lucene's 33 English stop words. That is nearly what OpenSearch's standard analyzer finds in
English. It differs in keeping `don't` and `3.5` in one piece, and elsewhere: a run of Chinese or
Japanese characters is a single word here, and a combining mark ends one. For such texts give
candidates of an engine (`titlecast evaluate --run`).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reranker.evaluation.collections import Document
from reranker.evaluation.runs import highest


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let nobody import a module meanwhile."""
    known = {module: sys.modules[module]} if module in sys.modules else {}
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        sys.modules.update(known)


# Where JAX is installed bm25s starts it when it is imported, and JAX takes most of a GPU's memory.
with _without("jax"):
    import bm25s
    from bm25s.stopwords import STOPWORDS_EN

# It sets its own level to DEBUG when it is imported.
logging.getLogger("bm25s").setLevel(logging.WARNING)

STOP_WORDS = frozenset(STOPWORDS_EN)  # Lucene's 33

Field = Literal["both", "title", "passage"]

_WORD = re.compile(r"\w+")


class BM25:
    """BM25 over texts held in memory (k1 = 1.2, b = 0.75: Lucene's defaults).

    `texts` are in the order of `ids`. With `stop_words`, Lucene's English ones are left out of
    texts and queries. `stem` applies the English Snowball stemmer and needs PyStemmer.

    Raises ValueError when ids and texts differ in number, ImportError when PyStemmer is missing.
    """

    def __init__(
        self,
        ids: Sequence[str],
        texts: Iterable[str],
        *,
        k1: float = 1.2,
        b: float = 0.75,
        stop_words: bool = True,
        stem: bool = False,
    ) -> None:
        self._ids = list(ids)
        self._stop_words = STOP_WORDS if stop_words else frozenset[str]()
        self._stem = _stemmer() if stem else None
        words = [self._words(text) for text in texts]
        if len(words) != len(self._ids):
            raise ValueError(
                f"{len(self._ids)} ids for {len(words)} texts; give one id for each text."
            )
        # bm25s cannot index a corpus without a single word; such an index finds nothing.
        self._index: Any = None
        if any(words):
            self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
            self._index.index(words, show_progress=False)

    @classmethod
    def over(cls, corpus: Mapping[str, Document], field: Field = "both", **options: Any) -> BM25:
        """Index a collection's documents by title, by passage, or by "title. passage".

        One field of both texts stands in for a `multi_match` over two. `options` go to `BM25`.
        """
        return cls(
            list(corpus), (text_of(document, field) for document in corpus.values()), **options
        )

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, query: str, k: int = 100) -> list[tuple[str, float]]:
        """Find the at most k best documents: (id, score), best first.

        Documents that share no word with the query are never returned, so there may be fewer
        than k. Equal scores keep the documents' order.
        """
        words = self._words(query)
        known = self._index.get_tokens_ids(words) if self._index is not None else []
        if not known or k <= 0:
            return []
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(known)
        found = np.flatnonzero(scores > 0)
        best = found[highest(scores[found], k)]
        return [(self._ids[i], float(scores[i])) for i in best.tolist()]

    def _words(self, text: str) -> list[str]:
        words = [word for word in _WORD.findall(text.lower()) if word not in self._stop_words]
        return self._stem(words) if self._stem else words


def text_of(document: Document, field: Field = "both") -> str:
    """Give the text of one field, or "title. passage" with whichever of the two there is."""
    if field == "title":
        return document.title
    if field == "passage":
        return document.text
    return ". ".join(text for text in (document.title, document.text) if text)


def _stemmer() -> Callable[[list[str]], list[str]]:
    try:
        import Stemmer
    except ImportError:
        raise ImportError("Stemming needs PyStemmer; `pip install PyStemmer`.") from None
    stem: Callable[[list[str]], list[str]] = Stemmer.Stemmer("english").stemWords
    return stem
