"""Running the exported graphs: token ids in, logits out, on onnxruntime and numpy alone.

Two architectures behind one interface, `ready = model.read(query_ids)` and
`model.score(ready, rows)`: the broadcasting encoder, which reads the query once, and the
pairwise cross-encoder. `rows` are texts as token ids of any length; they are sorted by length
into batches, so that hardly anything is computed for padding.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Row = NDArray[np.int64]

# A batch is closed where the next, longer text would make this share of it padding, ...
_MOST_PADDING = 0.1
# ... but not before it is worth a call into the runtime, and not later than its states fit
# into the processor's cache.
_LEAST_TOKENS = 192
_MOST_TOKENS = 2048


class Model(Protocol):
    """An exported model, ready to score."""

    def read(self, query: Row) -> Any:
        """Prepare a query, ids (Q,)."""
        ...

    def score(self, query: Any, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits (n,) of n texts against a prepared query."""
        ...


class BroadcastModel:
    """The broadcasting encoder: `query.onnx` once a search, `texts.onnx` once a batch."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._query = open_session(folder / "query.onnx", threads)
        self._texts = open_session(folder / "texts.onnx", threads)

    def read(self, query: Row) -> dict[str, Any]:
        """The query's keys, values and pooled state, kept where the runtime has them."""
        names = ["keys", "values", "pooled"]
        feed = {"ids": _value(query[None, :])}
        return dict(zip(names, self._query.run_with_ort_values(names, feed), strict=True))

    def score(self, query: dict[str, Any], rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits (n,); the query's states are handed to every batch as they are."""
        scores = np.empty(len(rows), dtype=np.float32)
        for places, ids, lengths in batches(rows):
            feed = {**query, "ids": _value(ids), "lengths": _value(lengths)}
            scores[places] = self._texts.run_with_ort_values(["scores"], feed)[0].numpy()
        return scores


class PairModel:
    """The pairwise cross-encoder: query and text together, once per text."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._pairs = open_session(folder / "pairs.onnx", threads)

    def read(self, query: Row) -> Row:
        """Nothing of a query can be computed ahead."""
        return query

    def score(self, query: Row, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits (n,) of `[CLS] query [SEP] text [SEP]`."""
        scores = np.empty(len(rows), dtype=np.float32)
        joined = [np.concatenate([query, row[1:]]) for row in rows]
        for places, ids, lengths in batches(joined):
            types = (np.arange(ids.shape[1]) >= len(query)).astype(np.int64)
            feed = {
                "ids": ids,
                "types": np.ascontiguousarray(np.broadcast_to(types, ids.shape)),
                "lengths": lengths,
            }
            scores[places] = self._pairs.run(["scores"], feed)[0]
        return scores


def load_model(folder: Path, threads: int | None = None) -> tuple[Model, dict[str, Any]]:
    """The model of a folder and its `config.json`.

    Raises FileNotFoundError where the folder holds no model, ValueError for an architecture
    that this version does not know.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (no config.json); make one with `titlecast export`"
        )
    config = json.loads(path.read_text("utf-8"))
    kinds: dict[str, type[BroadcastModel] | type[PairModel]] = {
        "broadcast": BroadcastModel,
        "pair": PairModel,
    }
    kind = kinds.get(config.get("architecture"))
    if kind is None:
        raise ValueError(
            f"{path} names the architecture {config.get('architecture')!r}; this version knows "
            f"{', '.join(kinds)}: update titlecast or export the model again"
        )
    return kind(folder, threads), config


def open_session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session on the CPU; `threads` None takes every core this process may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Waiting threads must not burn the cores of the search engine beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batches(
    rows: Sequence[Row],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Cut rows into batches of similar length: (places (b,), ids (b, T), lengths (b,)).

    Every row is in exactly one batch; `places` are its positions in `rows`.
    """
    if not rows:
        return
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end, tokens = start, 0
        while end < len(order):
            width = int(lengths[order[end]])
            padded = (end - start + 1) * width
            if end > start and padded > _MOST_TOKENS:
                break
            waste = padded - tokens - width
            if tokens >= _LEAST_TOKENS and waste > _MOST_PADDING * padded:
                break
            tokens += width
            end += 1
        places = order[start:end]
        width = int(lengths[places[-1]])
        ids = np.zeros((len(places), width), dtype=np.int64)
        for at, place in enumerate(places):
            ids[at, : lengths[place]] = rows[place]
        yield places, ids, lengths[places]
        start = end


def _value(array: NDArray[np.int64]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
