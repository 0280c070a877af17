"""Dense and hybrid candidates in memory: what BM25 misses, beside what it finds.

`DenseIndex` searches the dual encoder's vectors, exactly or through an HNSW graph (usearch);
`Hybrid` fuses any searchers by the ranks they give. Both are searchers as `BM25` is one.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reranker.evaluation.collections import Document
from reranker.evaluation.runs import Ranking, Searcher, highest

RRF_CONSTANT = 60  # Cormack, Clarke and Buettcher 2009, who proposed the method
_BLOCK = 2048  # passages encoded at a time

Queries = Callable[[Sequence[str]], NDArray[np.float32]]  # n texts -> (n, dimensions)


class Encoder(Protocol):
    """What makes vectors, as `reranker.dual.DualEncoder` does."""

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, dimensions) of length 1."""

    def encode_passages(
        self, titles: Sequence[str], passages: Sequence[str]
    ) -> NDArray[np.float32]:
        """Vectors (n, dimensions) of length 1."""


class DenseIndex:
    """The nearest passages by the dot product of vectors (n, dimensions) of length 1.

    "exact" compares the query with all of them; "hnsw" walks a graph of neighbours (Malkov and
    Yashunin 2016, arXiv 1603.09320), which may miss some and needs usearch.

    Raises ValueError when ids and vectors differ in number, ImportError without usearch.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: NDArray[np.float32],
        encode_queries: Queries,
        kind: Literal["exact", "hnsw"] = "exact",
    ) -> None:
        if vectors.ndim != 2 or len(ids) != len(vectors):
            raise ValueError(
                f"{len(ids)} ids for vectors of shape {vectors.shape}; give one for each"
            )
        self._ids = list(ids)
        self._encode = encode_queries
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._graph = _graph(self._vectors) if kind == "hnsw" and len(ids) else None

    @classmethod
    def over(
        cls,
        corpus: Mapping[str, Document],
        encoder: Encoder,
        kind: Literal["exact", "hnsw"] = "exact",
        progress: Callable[[int], None] = lambda done: None,
    ) -> DenseIndex:
        """Encode and index a collection's documents; `progress` gets how many are done."""
        return cls(
            list(corpus), encode_corpus(corpus, encoder, progress), encoder.encode_queries, kind
        )

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, query: str, k: int = 100) -> Ranking:
        """Find the k nearest documents: (id, cosine), best first; equal ones in their order.

        A query without any text finds nothing.
        """
        if not query.strip() or not self._ids or k <= 0:
            return []
        vector = self._encode([query])[0]  # (dimensions,)
        k = min(k, len(self._ids))
        if self._graph is not None:
            near = np.sort(self._graph.search(vector, k).keys.astype(np.int64))
            scores = self._vectors[near] @ vector
        else:
            near = np.arange(len(self._ids))
            scores = self._vectors @ vector
        return [(self._ids[near[i]], float(scores[i])) for i in highest(scores, k)]


class Hybrid:
    """Several searchers as one, their rankings fused by reciprocal ranks."""

    def __init__(self, searchers: Sequence[Searcher], constant: int = RRF_CONSTANT) -> None:
        if not searchers:
            raise ValueError("a hybrid needs searchers: give BM25 and a DenseIndex")
        self._searchers, self._constant = list(searchers), constant

    def search(self, query: str, k: int = 100) -> Ranking:
        """Find the k best documents by the sum of their reciprocal ranks among each k best."""
        return reciprocal_rank_fusion(
            [searcher.search(query, k) for searcher in self._searchers], self._constant
        )[:k]


def reciprocal_rank_fusion(rankings: Sequence[Ranking], constant: int = RRF_CONSTANT) -> Ranking:
    """Order documents by the sum over rankings of 1 / (constant + rank), ranks from 1.

    Scores play no part, so engines of any scale can be fused; equal sums keep the order of
    appearance, the first ranking's first.
    """
    sums: dict[str, float] = {}
    for ranking in rankings:
        for rank, (id, _) in enumerate(ranking, start=1):
            sums[id] = sums.get(id, 0.0) + 1 / (constant + rank)
    return sorted(sums.items(), key=lambda item: -item[1])


def encode_corpus(
    corpus: Mapping[str, Document],
    encoder: Encoder,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Vectors (n, dimensions) of documents in their order."""
    documents = list(corpus.values())
    parts = []
    for start in range(0, len(documents), _BLOCK):
        part = documents[start : start + _BLOCK]
        parts.append(encoder.encode_passages([d.title for d in part], [d.text for d in part]))
        progress(start + len(part))
    return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)


def kept_vectors(
    path: Path | None,
    corpus: Mapping[str, Document],
    encoder: Encoder,
    model: str,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Read the vectors of a corpus from a file, or make them and write it.

    `model` is a hash of the encoder's files. Raises ValueError where the file was made by
    another model or of other documents, or holds something else.
    """
    if path is None:
        return encode_corpus(corpus, encoder, progress)
    documents = _hash(corpus)
    if path.is_file():
        found, *made_of = _read_vectors(path)
        if made_of != [model, documents]:
            raise ValueError(
                f"{path} holds vectors of another model or of other documents or texts; "
                "give another --vectors, or remove the file."
            )
        return found
    vectors = encode_corpus(corpus, encoder, progress)
    part = path.with_name(f"{path.name}.tmp.npz")
    np.savez(part, vectors=vectors, model=np.array(model), documents=np.array(documents))
    part.replace(path)
    return vectors


def _read_vectors(path: Path) -> tuple[NDArray[np.float32], str, str]:
    """The vectors of a file with the hashes of the model and of the documents they are of."""
    try:
        # numpy reads more than its archives: single arrays, and it looks for pickles in the rest.
        if not zipfile.is_zipfile(path):
            raise ValueError
        with np.load(path, allow_pickle=False) as kept:
            return kept["vectors"], str(kept["model"]), str(kept["documents"])
    except (KeyError, ValueError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} holds no vectors that can be read; give another --vectors, or remove the file."
        ) from None


def _hash(corpus: Mapping[str, Document]) -> str:
    """A hash of ids, titles and texts in their order, which is that of the vectors."""
    digest = hashlib.blake2b(digest_size=16)
    for document in corpus.values():
        digest.update(json.dumps(document).encode())
    return digest.hexdigest()


def _graph(vectors: NDArray[np.float32]) -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise ImportError("HNSW needs usearch; `pip install 'titlecast[hnsw]'`.") from None
    graph = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", expansion_search=200)
    # One thread: the graph, and so what is found, is the same each time.
    graph.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=1)
    return graph
