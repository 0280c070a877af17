"""How much of a query the hits hold: BM25 forgets it where one rare word outweighs the others.

Lucene's classic similarity had a factor for it, "coord"; BM25 has none, and a model that reads
titles does not see the passages. So what is read next, and the final order, count it besides.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# Words are compared by their first letters, which forgives most endings in any language.
_STEM = 5
# A single letter or digit says too little.
_WORD = re.compile(r"\w\w+")
_START = re.compile(rf"\b\w{{2,{_STEM}}}")
# Words up to about this rank are everybody's.
_COMMON = 100


class Coverage:
    """Safe to use from several threads at once."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        """`vocabulary`, of the passage model: token -> id, the most frequent words first."""
        known = [word for word in vocabulary if len(word) > 1 and word.isalnum()]
        known.sort(key=vocabulary.__getitem__)
        self._ranks = {word: rank for rank, word in enumerate(known, start=1)}

    def weights(self, query: str) -> dict[str, float]:
        """The query's words by their first letters, and what each weighs: rare ones more."""
        weights: dict[str, float] = {}
        for word in _WORD.findall(query.lower()):
            weight = math.log1p(self._ranks.get(word, len(self._ranks)) / _COMMON)
            weights[word[:_STEM]] = max(weight, weights.get(word[:_STEM], 0.0))
        return weights

    def of(self, query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """Which share (n,) of the query's words, by weight, each text holds: 0 to 1.

        Words that no text holds do not count. Takes time in proportion to the texts' length.
        """
        weights = self.weights(query)
        held = [weights.keys() & set(_START.findall(text.lower())) for text in texts]
        total = sum(weights[word] for word in sorted(set().union(*held)))
        if total == 0:
            return np.zeros(len(texts))
        return np.array([sum(weights[word] for word in sorted(words)) / total for words in held])
