"""Running the exported graphs: token ids in, logits out, on onnxruntime and numpy alone.

Two architectures behind one interface, `ready = model.read(query_ids)` and
`model.score(ready, rows)`: the broadcasting encoder, which reads the query once, and the
pairwise cross-encoder. `rows` are texts as token ids of any length. Short texts are packed
several to a row, long ones sorted into batches of similar length, so that hardly anything is
computed for padding.

A broadcasting model's lower layers see the text alone: what they make of a text can be kept in
a `Cache`: it is what they would make of it again, in the precision they hand it on in any case.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import onnxruntime

from reranker.lru import Cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Row = NDArray[np.int64]

# A batch is closed where the next, longer text would make this share of it padding, ...
_MOST_PADDING = 0.1
# ... but not before it is worth a call into the runtime.
_LEAST_TOKENS = 192
# A batch's states should stay in the cores' caches: one core took a tenth less time for a list in
# batches of 640 than of 2048. Many cores need more tokens to share among them.
_MOST_TOKENS = 768
_MOST_TOKENS_A_THREAD = 384
# Rows in which short texts are packed. A token attends within its own text, but all of a row is
# computed: wider rows have less padding and more attention for nothing.
_PACKED_WIDTHS = (16, 32)


class Model(Protocol):
    """An exported model, ready to score."""

    def read(self, query: Row) -> Any:
        """Prepare a query, ids (Q,)."""
        ...

    def score(self, query: Any, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits (n,) of n texts against a prepared query."""
        ...


class BroadcastModel:
    """The broadcasting encoder: `query.onnx` once a search, `lower` and `upper` once a batch."""

    def __init__(
        self, folder: Path, threads: int | None = None, cache: Cache | None = None
    ) -> None:
        self._query = Graph(folder / "query.onnx", threads)
        self._lower = Graph(folder / "lower.onnx", threads)
        self._upper = Graph(folder / "upper.onnx", threads)
        self._reads = self._query.outputs
        facts = self._lower.facts
        self._after_query = facts["places"] == "query"
        # Without layers below the query, or with positions that follow it, nothing is worth
        # keeping.
        worth = not self._after_query and int(facts["first_query_layer"]) > 0
        self._cache = cache if cache is not None and cache.enabled and worth else None
        self._most = most_tokens(threads)

    def read(self, query: Row) -> dict[str, Any]:
        """All that the texts need of a query, kept where the runtime has it."""
        feed = {"ids": _value(query[None, :])}
        return dict(zip(self._reads, self._query.run(self._reads, feed), strict=True))

    def score(self, query: dict[str, Any], rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits (n,); the query's states are handed to every batch as they are."""
        scores = np.empty(len(rows), dtype=np.float32)
        first = int(query["keys"].shape()[-1]) if self._after_query else 0
        for layout in layouts(_lengths(rows), self._most):
            feed = {
                **query,
                "states": self._states([rows[place] for place in layout.places], layout, first),
                "owner": _value(layout.owner),
                "starts": _value(layout.starts),
            }
            scores[layout.places] = self._upper.run(["scores"], feed)[0].numpy()
        return scores

    def _states(self, rows: Sequence[Row], layout: Layout, first: int) -> Any:
        """The lower layers' states (R*W, H) of the texts of a batch, from the cache or not."""
        if self._cache is None:
            return self._run_lower(rows, layout, first)
        keys = [row.tobytes() for row in rows]
        kept = self._cache.get(keys)
        missing = [place for place, states in enumerate(kept) if states is None]
        if len(missing) == len(rows):
            value = self._run_lower(rows, layout, first)
            self._keep(keys, value.numpy(), layout)
            return value
        for part in layouts(_lengths([rows[place] for place in missing]), self._most):
            places = [missing[place] for place in part.places]
            made = self._run_lower([rows[place] for place in places], part, first).numpy()
            found = self._keep([keys[place] for place in places], made, part)
            for place, states in zip(places, found, strict=True):
                kept[place] = states
        tokens = np.concatenate(kept)  # (T, H)
        states = np.zeros((layout.owner.size, tokens.shape[1]), dtype=tokens.dtype)
        states[layout.flat] = tokens
        return _value(states)

    def _run_lower(self, rows: Sequence[Row], layout: Layout, first: int) -> Any:
        ids = np.zeros(layout.owner.shape, dtype=np.int64)
        ids.flat[layout.flat] = np.concatenate(rows)
        places = np.zeros_like(ids)
        places.flat[layout.flat] = layout.places_in_text + first
        feed = {"ids": _value(ids), "places": _value(places), "owner": _value(layout.owner)}
        return self._lower.run(["states"], feed)[0]

    def _keep(self, keys: Sequence[bytes], states: NDArray[Any], layout: Layout) -> list[Any]:
        """Cut the states (R*W, H) of a batch into texts, keep and return them."""
        ends = layout.starts + layout.lengths
        found = [
            states[start:end].copy()  # not a view, which would keep the whole batch
            for start, end in zip(layout.starts.tolist(), ends.tolist(), strict=True)
        ]
        if self._cache is not None:
            self._cache.put(
                (key, text, len(key) + text.nbytes) for key, text in zip(keys, found, strict=True)
            )
        return found


class PairModel:
    """The pairwise cross-encoder: query and text together, once per text."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._pairs = Graph(folder / "pairs.onnx", threads)
        self._most = most_tokens(threads)

    def read(self, query: Row) -> Row:
        """Nothing of a query can be computed ahead."""
        return query

    def score(self, query: Row, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits (n,) of `[CLS] query [SEP] text [SEP]`."""
        scores = np.empty(len(rows), dtype=np.float32)
        joined = [np.concatenate([query, row[1:]]) for row in rows]
        for places, ids, lengths in batches(joined, self._most):
            types = (np.arange(ids.shape[1]) >= len(query)).astype(np.int64)
            feed = {
                "ids": _value(ids),
                "types": _value(np.broadcast_to(types, ids.shape)),
                "lengths": _value(lengths),
            }
            scores[places] = self._pairs.run(["scores"], feed)[0].numpy()
        return scores


def load_model(
    folder: Path, threads: int | None = None, cache: Cache | None = None
) -> tuple[Model, dict[str, Any]]:
    """The model of a folder and its `config.json`; `cache` may keep what it makes of texts.

    Raises FileNotFoundError where the folder holds no model, ValueError for an architecture
    that this version does not know.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (no config.json); make one with `titlecast export`"
        )
    config = json.loads(path.read_text("utf-8"))
    kind = config.get("architecture")
    if kind == "broadcast":
        return BroadcastModel(folder, threads, cache), config
    if kind == "pair":
        return PairModel(folder, threads), config
    raise ValueError(
        f"{path} names the architecture {kind!r}; this version knows broadcast, pair: update "
        "titlecast or export the model again"
    )


def first_query_layer(folder: Path) -> int:
    """How many layers of a broadcasting model are a graph of their own, without the query."""
    if not (folder / "lower.onnx").is_file():
        return 0
    facts = open_session(folder / "lower.onnx", 1).get_modelmeta().custom_metadata_map
    return int(facts["first_query_layer"])


class Load:
    """How many graphs run at this moment in the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running = 0

    def enter(self) -> bool:
        """Count one more; whether it runs alone."""
        with self._lock:
            self.running += 1
            return self.running == 1

    def leave(self) -> None:
        """Count one less."""
        with self._lock:
            self.running -= 1


LOAD = Load()


class Graph:
    """One exported graph, safe to run from several threads at once.

    A run that has the machine for itself takes all `threads` (None: every core this process may
    use). Where another runs already it takes one: several searches at a time get more done each
    on its own core than sharing all of them.
    """

    def __init__(self, path: Path, threads: int | None = None, load: Load = LOAD) -> None:
        threads = threads or usable_cores()
        self._load = load
        self._alone = open_session(path, threads)
        self._among = open_session(path, 1) if threads > 1 else self._alone

    @property
    def facts(self) -> dict[str, str]:
        """What its export wrote beside it."""
        found: dict[str, str] = self._alone.get_modelmeta().custom_metadata_map
        return found

    @property
    def outputs(self) -> list[str]:
        """The names of what it gives."""
        return [output.name for output in self._alone.get_outputs()]

    def run(self, outputs: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """Values of the runtime in and out; nothing is copied."""
        with self.session() as session:
            found: list[Any] = session.run_with_ort_values(outputs, feed)
        return found

    @contextlib.contextmanager
    def session(self) -> Iterator[onnxruntime.InferenceSession]:
        """The session that fits the load, which it counts for."""
        alone = self._load.enter()
        try:
            yield self._alone if alone else self._among
        finally:
            self._load.leave()


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU with this number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A plan for the memory of every shape seen would be kept for ever, and shapes do not repeat.
    options.enable_mem_pattern = False
    # Waiting threads must not burn the cores of the search engine beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],  # five times slower than its two parts
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Layout(NamedTuple):
    """One batch of n texts with T tokens in all, as R rows of W tokens."""

    places: NDArray[np.int64]  # (n,), which texts
    lengths: NDArray[np.int64]  # (n,)
    starts: NDArray[np.int64]  # (n,), the place of a text's first token among all R*W
    owner: NDArray[np.int64]  # (R, W), which of the n each token belongs to; -1: none
    flat: NDArray[np.int64]  # (T,), the places of all tokens, text after text
    places_in_text: NDArray[np.int64]  # (T,)


def most_tokens(threads: int | None) -> int:
    """How many tokens a batch has at most, with so many threads; None: all cores."""
    return max(_MOST_TOKENS, _MOST_TOKENS_A_THREAD * (threads or usable_cores()))


def layouts(lengths: NDArray[np.int64], most: int = _MOST_TOKENS) -> Iterator[Layout]:
    """Lay texts of the given lengths (n,), each at least 1, into batches of `most` tokens.

    Every text is in exactly one, in one row; a batch of one row may be larger. Of texts of up to
    `_PACKED_WIDTHS[-1]` tokens those of one length are batched where they are enough for a call,
    which leaves nothing to compute for nothing; the others share rows. Longer ones have a row
    each, beside texts of similar length.
    """
    rest: list[int] = []
    for length in np.unique(lengths[lengths <= _PACKED_WIDTHS[-1]]).tolist():
        same = np.flatnonzero(lengths == length)
        if len(same) * length < _LEAST_TOKENS:
            rest += same.tolist()
            continue
        parts = -(-len(same) // max(1, most // length))
        for group in np.array_split(same, parts):
            yield _layout(lengths, [[place] for place in group.tolist()], length)
    if rest:
        left = lengths[rest]
        width = next(width for width in _PACKED_WIDTHS if width >= left.max())
        rows = pack(left, width)
        parts = -(-len(rows) // max(1, most // width))  # of about the same size
        for part in range(parts):
            mine = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
            yield _layout(lengths, [[rest[at] for at in row] for row in mine], width)
    long = np.flatnonzero(lengths > _PACKED_WIDTHS[-1])
    for alike in _similar(lengths[long], most):
        places = long[alike]
        yield _layout(lengths, [[place] for place in places.tolist()], int(lengths[places].max()))


def pack(lengths: NDArray[np.int64], width: int) -> list[list[int]]:
    """Rows of texts, by their places in `lengths`, whose tokens are at most `width` together.

    The longest first, each into the row that it fills best: close to the fewest rows there can
    be (best-fit decreasing).
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by their room
    for place in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[place])
        room = next((room for room in range(length, width + 1) if with_room[room]), None)
        if room is None:
            row, room = len(rows), width
            rows.append([])
        else:
            row = with_room[room].pop()
        rows[row].append(place)
        with_room[room - length].append(row)
    return rows


def _layout(lengths: NDArray[np.int64], rows: list[list[int]], width: int) -> Layout:
    places = np.array([place for row in rows for place in row], dtype=np.int64)
    starts = []
    for at, row in enumerate(rows):
        start = at * width
        for place in row:
            starts.append(start)
            start += int(lengths[place])
    first = np.array(starts, dtype=np.int64)
    mine = lengths[places]
    texts = np.repeat(np.arange(len(places)), mine)  # (T,)
    within = np.arange(len(texts)) - np.repeat(np.cumsum(mine) - mine, mine)
    flat = first[texts] + within
    owner = np.full((len(rows), width), -1, dtype=np.int64)
    owner.flat[flat] = texts
    return Layout(places, mine, first, owner, flat, within)


def batches(
    rows: Sequence[Row], most: int = _MOST_TOKENS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Cut rows into batches of similar length: (places (b,), ids (b, T), lengths (b,)).

    Every row is in exactly one batch; `places` are its positions in `rows`.
    """
    lengths = _lengths(rows)
    for places in _similar(lengths, most):
        ids = np.zeros((len(places), int(lengths[places].max())), dtype=np.int64)
        for at, place in enumerate(places):
            ids[at, : lengths[place]] = rows[place]
        yield places, ids, lengths[places]


def _similar(lengths: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
    """Places of texts of similar lengths, each in exactly one group."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end, tokens = start, 0
        while end < len(order):
            width = int(lengths[order[end]])
            padded = (end - start + 1) * width
            if end > start and padded > most:
                break
            waste = padded - tokens - width
            if tokens >= _LEAST_TOKENS and waste > _MOST_PADDING * padded:
                break
            tokens += width
            end += 1
        yield order[start:end]
        start = end


def _lengths(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))


def _value(array: NDArray[Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
