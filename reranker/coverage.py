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

    def of(self, query: str, texts: Sequence[str]) -> Covered:
        """What each text holds of the query. Takes time in proportion to the texts' length."""
        weights = self.weights(query)
        held = [weights.keys() & set(_START.findall(text.lower())) for text in texts]
        words = sorted(set().union(*held))
        shares = np.array([weights[word] for word in words], dtype=np.float64)
        if shares.size:
            shares /= shares.sum()
        holds = np.array([[word in ours for word in words] for ours in held], dtype=bool)
        return Covered(holds.reshape(len(texts), len(words)), shares)


class Covered:
    """What the texts of one window hold of its query; words that none holds do not count."""

    def __init__(self, holds: NDArray[np.bool_], shares: NDArray[np.float64]) -> None:
        """`holds` (n, w): which text holds which word; `shares` (w,) of the words, their sum 1."""
        self._holds = holds
        self._words = shares
        self.shares: NDArray[np.float64] = (holds * shares).sum(axis=1)  # (n,) of texts, 0 to 1

    @classmethod
    def nothing(cls, texts: int) -> Covered:
        """Of so many texts, none of which holds a word of the query."""
        return cls(np.zeros((texts, 0), dtype=bool), np.zeros(0))

    def added_to(self, text: int) -> NDArray[np.float64]:
        """Which share (n,) of the query each text holds that this one does not: 0 to 1."""
        added: NDArray[np.float64] = ((self._holds & ~self._holds[text]) * self._words).sum(axis=1)
        return added

    def lacked_by(self, text: int) -> float:
        """Which share of the query this text does not hold: 0 to 1."""
        return float((~self._holds[text] * self._words).sum())
