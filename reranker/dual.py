"""The dual encoder: queries and passages as vectors whose dot product is their similarity.

It is the passage model with the query's attention switched off, trained together with it, and
its graphs lie in the same folder and share its weights. Like all of serving it needs onnxruntime,
tokenizers and numpy only.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reranker.runtime import Crew, Graph, layouts, lower_feed, lower_rows, read_config, to_runtime
from reranker.stages import SHIPPED, EmptyQueryError
from reranker.tokens import Tokenizer, head_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from reranker.runtime import Layout, Row

log = logging.getLogger(__name__)


class DualEncoder:
    """Vectors (n, `dimensions`) in float32, all of length 1, as they were trained."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        if not (folder / "dual.onnx").is_file():
            raise FileNotFoundError(
                f"{folder} holds no dual encoder (no dual.onnx): give the folder of a passage "
                "model of the broadcast architecture, and export it again if it is older"
            )
        self.config = read_config(folder)
        self.name = str(self.config["name"])
        self._query = Graph(folder / "query.onnx")
        self._lower = Graph(folder / "lower.onnx")
        self._places = self._lower.facts["places"]
        self._dual = Graph(folder / "dual.onnx")
        self._crew = Crew(threads)
        self._tokenizer = Tokenizer.of(folder, self.config)
        self.dimensions = len(self._pooled(self._tokenizer.encode(["a"], 3)[0].ids))

    @classmethod
    def load(cls, path: str | Path | None = None, threads: int | None = None) -> DualEncoder:
        """Load a passage model's folder; None is the shipped one, `threads` None all cores.

        Raises FileNotFoundError where the folder holds no dual encoder.
        """
        return cls(SHIPPED / "passage" if path is None else Path(path), threads)

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, dimensions) of queries.

        Raises EmptyQueryError, a ValueError, for one of which the tokenizer leaves nothing.
        """
        encoded = self._tokenizer.encode_queries(queries, self.config["max_query_tokens"])
        for place, item in enumerate(encoded):
            if item.empty:
                raise EmptyQueryError(
                    f"query {place} is empty: give the words that the user searched for"
                )
        _say_cut("queries", sum(item.truncated for item in encoded), len(encoded))
        vectors = np.empty((len(encoded), self.dimensions), dtype=np.float32)
        for place, item in enumerate(encoded):
            pooled = self._pooled(item.ids)
            vectors[place] = pooled / max(float(np.linalg.norm(pooled)), 1e-12)
        return vectors

    def encode_passages(
        self, titles: Sequence[str], passages: Sequence[str]
    ) -> NDArray[np.float32]:
        """Vectors (n, dimensions) of passages, each with its title; either may be empty.

        Of a passage longer than the model reads at once, the beginning counts. Raises ValueError
        for lists of different lengths.
        """
        if len(titles) != len(passages):
            raise ValueError(
                f"{len(titles)} titles for {len(passages)} passages: give one title, "
                "which may be empty, for each passage"
            )
        windowed = self._tokenizer.windows(
            list(map(head_of, titles, passages)),
            passages,
            limit=self.config["max_passage_tokens"],
            stride=self.config["stride"],
            most=1,
        )
        _say_cut("passages", sum(item.truncated for item in windowed), len(windowed))
        rows, first = lower_rows([item.windows[0] for item in windowed], self._places)
        vectors = np.empty((len(rows), self.dimensions), dtype=np.float32)
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))

        def encode(layout: Layout) -> None:
            vectors[layout.places] = self._run([rows[i] for i in layout.places], layout, first)

        self._crew.each(encode, layouts(lengths, self._crew.threads))
        return vectors

    def _run(self, rows: Sequence[Row], layout: Layout, first: int) -> NDArray[np.float32]:
        """Vectors (n, H) of one batch."""
        lower = lower_feed(rows, layout, first)
        states = self._lower.run(["states"], lower)[0]
        upper = {"states": states, "owner": lower["owner"], "starts": to_runtime(layout.starts)}
        found: NDArray[np.float32] = self._dual.run(["vectors"], upper)[0].numpy()
        return found

    def _pooled(self, ids: Row) -> NDArray[np.float32]:
        """The mean state (H,) of one query."""
        pooled = self._query.run(["pooled"], {"ids": to_runtime(ids[None, :])})[0]
        found: NDArray[np.float32] = pooled.numpy()[0]
        return found


def _say_cut(what: str, cut: int, number: int) -> None:
    if cut:
        log.info("of %d of %d %s only the beginning was read", cut, number, what)
