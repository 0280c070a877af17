"""Running the exported graphs: token ids in, logits out, on onnxruntime and numpy alone.

Two architectures behind one interface, `ready = model.read(query_ids)` and
`model.score(ready, rows)`: the broadcasting encoder, which reads the query once, and the
pairwise cross-encoder. `rows` are texts as token ids of any length. Short texts are packed
several to a row, long ones sorted into batches of similar length, so that hardly anything is
computed for padding.

A broadcasting model's lower layers see the text alone: what they make of a text can be kept in
a `Cache`. It is what they would make of it again, up to int8's rounding in another batch, and in
the precision they hand it on in any case.

Each run of a graph has one thread. Cores share a search by batches (`Crew`): to share every
product instead, threads would have to be woken hundreds of times a search, which takes as long
as the products of a short list.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar
from weakref import WeakSet

import numpy as np

# Its wheels for Linux (from 1.29 on) report to their makers, and keep a file in the home folder
# for it, unless this is set when they are loaded; `disable_telemetry_events` comes too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

from reranker.cores import usable_cores
from reranker.lru import Cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    Row = NDArray[np.int64]
    # Texts, or what makes their tokens part by part, which one core does while another reads the
    # query or the part before.
    Rows = Sequence[Row] | Iterator[Sequence[Row]]
    Step = Callable[[], "Iterable[Step]"]  # gives what is left to do of it

T = TypeVar("T")

# What a call into the runtime costs beside its tokens, in tokens: a batch that would have more
# padding than this is better two.
_CALL_TOKENS = 10
# Short texts of one length are a batch of their own where packing would waste more than a call.
_LEAST_TOKENS = 192
# A batch's states should stay in a core's cache: in batches of 96 to 768 tokens a token took the
# same time, in batches of 1536 a tenth more.
_MOST_TOKENS = 512
# Less than this is not worth waking another core for.
_SHARED_TOKENS = 16
# Rows in which short texts are packed. A token attends within its own text, but all of a row is
# computed: wider rows have less padding and more attention for nothing.
_PACKED_WIDTHS = (16, 32)
# Up to so many rows for each thread are shared evenly.
_EVEN_ROWS = 2


class Model(Protocol):
    """An exported model, ready to score."""

    def read(self, query: Row) -> Any:
        """Prepare a query, ids (Q,)."""
        ...

    def score(self, query: Any, rows: Rows) -> NDArray[np.float32]:
        """Logits (n,) of n texts against a prepared query."""
        ...


class BroadcastModel:
    """The broadcasting encoder: `query.onnx` once a search, `lower` and `upper` once a batch.

    One core reads the query while another makes the texts' tokens and, as they do not see the
    query, begins with the lower layers.
    """

    def __init__(
        self, folder: Path, threads: int | None = None, cache: Cache | None = None
    ) -> None:
        self._query = Graph(folder / "query.onnx")
        self._lower = Graph(folder / "lower.onnx")
        self._upper = Graph(folder / "upper.onnx")
        self._reads = self._query.outputs
        facts = self._lower.facts
        self._places = facts["places"]
        self._after_query = self._places == "query"
        # Without layers below the query, or with positions that follow it, nothing is worth
        # keeping.
        worth = not self._after_query and int(facts["first_query_layer"]) > 0
        self._cache = cache if cache is not None and cache.enabled and worth else None
        self._crew = Crew(threads)

    def read(self, query: Row) -> Later[dict[str, Any]]:
        """All that the texts need of a query, kept where the runtime has it."""
        feed = {"ids": to_runtime(query[None, :])}
        return Later(
            lambda: dict(zip(self._reads, self._query.run(self._reads, feed), strict=True))
        )

    def score(self, query: Later[dict[str, Any]], rows: Rows) -> NDArray[np.float32]:
        """Logits (n,); the query's states are handed to every batch as they are."""
        parts = _in_parts(rows)
        found: list[NDArray[np.float32]] = []  # the scores of each part

        def prepare() -> list[Step]:
            part = next(parts, None)
            if part is None:
                return []
            scores = np.empty(len(part), dtype=np.float32)
            found.append(scores)
            texts, first = lower_rows(part, self._places)
            if self._after_query:
                first = int(query.get()["keys"].shape()[-1])
            laid = layouts(_lengths(texts), self._crew.threads)
            return [prepare, *(partial(begin, texts, layout, first, scores) for layout in laid)]

        prepared = Later(prepare)

        def read() -> Iterable[Step]:
            query.get()
            prepared.get()  # or else this core would find nothing to do, and be woken again
            return ()

        def begin(
            texts: Sequence[Row], layout: Layout, first: int, scores: NDArray[np.float32]
        ) -> Iterable[Step]:
            states = self._states([texts[place] for place in layout.places], layout, first)
            rest = partial(finish, layout, states, scores)
            return rest() if query.done() else [rest]

        def finish(layout: Layout, states: Any, scores: NDArray[np.float32]) -> Iterable[Step]:
            feed = {
                **query.get(),
                "states": states,
                "owner": to_runtime(layout.owner),
                "starts": to_runtime(layout.starts),
            }
            scores[layout.places] = self._upper.run(["scores"], feed)[0].numpy()
            return ()

        # Reading the query takes longest where there are few texts: it begins at once.
        steps: list[Step] = [prepared.get] if query.done() else [read, prepared.get]
        self._crew.each(lambda step: step(), steps)
        return np.concatenate(found) if found else np.empty(0, dtype=np.float32)

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
        for part in layouts(_lengths([rows[place] for place in missing])) if missing else ():
            places = [missing[place] for place in part.places]
            made = self._run_lower([rows[place] for place in places], part, first).numpy()
            found = self._keep([keys[place] for place in places], made, part)
            for place, states in zip(places, found, strict=True):
                kept[place] = states
        tokens = np.concatenate(kept)  # (T, H)
        states = np.zeros((layout.owner.size, tokens.shape[1]), dtype=tokens.dtype)
        states[layout.flat] = tokens
        return to_runtime(states)

    def _run_lower(self, rows: Sequence[Row], layout: Layout, first: int) -> Any:
        return self._lower.run(["states"], lower_feed(rows, layout, first))[0]

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
        self._pairs = Graph(folder / "pairs.onnx")
        self._crew = Crew(threads)

    def read(self, query: Row) -> Row:
        """Nothing of a query can be computed ahead."""
        return query

    def score(self, query: Row, rows: Rows) -> NDArray[np.float32]:
        """Logits (n,) of `[CLS] query [SEP] text [SEP]`."""
        joined = [np.concatenate([query, row[1:]]) for part in _in_parts(rows) for row in part]
        scores = np.empty(len(joined), dtype=np.float32)

        def run(batch: Batch) -> None:
            places, ids, lengths = batch
            types = (np.arange(ids.shape[1]) >= len(query)).astype(np.int64)
            feed = {
                "ids": to_runtime(ids),
                "types": to_runtime(np.broadcast_to(types, ids.shape)),
                "lengths": to_runtime(lengths),
            }
            scores[places] = self._pairs.run(["scores"], feed)[0].numpy()

        self._crew.each(run, batches(joined, self._crew.threads))
        return scores


def load_model(
    folder: Path, threads: int | None = None, cache: Cache | None = None
) -> tuple[Model, dict[str, Any]]:
    """The model of a folder and its `config.json`; `cache` may keep what it makes of texts.

    Raises FileNotFoundError where the folder holds no model or not all of it, ValueError for one
    that cannot be read and for an architecture that this version does not know.
    """
    path = folder / "config.json"
    config = read_config(folder)
    kind = config.get("architecture")
    if kind == "broadcast":
        return BroadcastModel(folder, threads, cache), config
    if kind == "pair":
        return PairModel(folder, threads), config
    raise ValueError(
        f"{path} names the architecture {kind!r}; this version knows broadcast, pair: update "
        "titlecast or export the model again"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`; raises FileNotFoundError or ValueError without one."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (no config.json); make one with `titlecast export`"
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON; export the model again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object; export the model again")
    return config


def first_query_layer(folder: Path) -> int:
    """How many layers of a broadcasting model are a graph of their own, without the query."""
    if not (folder / "lower.onnx").is_file():
        return 0
    facts = open_session(folder / "lower.onnx").get_modelmeta().custom_metadata_map
    return int(facts["first_query_layer"])


class Load:
    """How many threads of the process compute at this moment."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from none again, with a lock that nobody holds."""
        self._lock = threading.Lock()
        self.running = 0

    def enter(self, most: float = math.inf) -> bool:
        """Count one more, unless `most` run already; whether it was counted."""
        with self._lock:
            if self.running >= most:
                return False
            self.running += 1
            return True

    def leave(self) -> None:
        """Count one less."""
        with self._lock:
            self.running -= 1


LOAD = Load()


class Later(Generic[T]):
    """What the first `get` computes, once; from any thread."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._found: list[T] = []

    def done(self) -> bool:
        """Whether it is there."""
        return bool(self._found)

    def get(self) -> T:
        """Compute it, or wait for the thread that does."""
        with self._lock:
            if not self._found:
                self._found.append(self._compute())
        return self._found[0]


class Crew:
    """Cores that share a search's batches, as far as nothing else of the process computes.

    A search that is alone takes all `threads` (None: every core this process may use). Where
    others run already it keeps to its caller's: several searches at a time get more done each on
    its own core than sharing all of them.
    """

    def __init__(self, threads: int | None = None, load: Load = LOAD) -> None:
        self.threads = threads or usable_cores()
        self._load = load
        self._pool = self._new_pool()
        _CREWS.add(self)

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, "titlecast")  # threads start when first used

    def each(self, run: Callable[[T], Iterable[T] | None], parts: Iterable[T]) -> None:
        """Run all parts, in this thread and in those that are free. Raises what a part raised.

        The first is run in this thread. A part may give others, to be run by whoever is free next.
        """
        left = deque(parts)
        helpers: list[Future[None]] = []
        try:
            while left:
                self._load.enter()
                try:
                    self._take_all(helpers, run, left)
                finally:
                    self._load.leave()
                self._wait_for(helpers)  # those who go when others come may leave a part
        finally:
            left.clear()
            self._wait_for(helpers)
        for helper in helpers:
            if not helper.cancelled():
                helper.result()

    def _take_all(
        self,
        helpers: list[Future[None]],
        run: Callable[[T], Iterable[T] | None],
        left: deque[T],
        most: float = math.inf,
    ) -> None:
        """Run what is left with as many helpers as are free, unless more than `most` run."""
        while left and self._load.running <= most:
            for part in _take(left):
                for _ in range(len(left)):
                    if not self._load.enter(self.threads):
                        break
                    helpers.append(self._pool.submit(self._help, helpers, run, left))
                left.extend(run(part) or ())

    def _help(
        self, helpers: list[Future[None]], run: Callable[[T], Iterable[T] | None], left: deque[T]
    ) -> None:
        try:
            self._take_all(helpers, run, left, self.threads)
        finally:
            self._load.leave()

    def _wait_for(self, helpers: list[Future[None]]) -> None:
        """Wait for the helpers, and for theirs, but forget those who found no thread in time."""
        while pending := [helper for helper in helpers if not helper.done()]:
            begun = []
            for helper in pending:
                if helper.cancel():
                    self._load.leave()
                else:
                    begun.append(helper)
            wait(begun)

    def reset(self) -> None:
        """Begin anew in a child process, to which a fork brings none of its parent's threads."""
        self._load.reset()
        self._pool = self._new_pool()


def _take(left: deque[T]) -> list[T]:
    """The next part; none where another thread has taken the last."""
    try:
        return [left.popleft()]
    except IndexError:
        return []


_CREWS: WeakSet[Crew] = WeakSet()


def _after_fork() -> None:
    for crew in list(_CREWS):
        crew.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Graph:
    """One exported graph, safe to run from several threads at once, each run in its caller's."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)

    @property
    def facts(self) -> dict[str, str]:
        """What its export wrote beside it."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    @property
    def outputs(self) -> list[str]:
        """The names of what it gives."""
        return [output.name for output in self._session.get_outputs()]

    def run(self, outputs: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """Values of the runtime in and out; nothing is copied."""
        found: list[Any] = self._session.run_with_ort_values(outputs, feed)
        return found


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU, without threads of its own.

    Raises FileNotFoundError or ValueError where the file, or the weights beside it, are not right.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the model folder is not complete")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A plan for the memory of every shape seen would be kept for ever, and shapes do not repeat.
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # five times slower than its two parts
        )
    except Exception as error:  # the runtime's have no base of their own
        raise ValueError(
            f"{path} cannot be loaded, or weights.bin beside it: copy the model folder again, or "
            f"export the model again ({error})"
        ) from error


class Layout(NamedTuple):
    """One batch of n texts with T tokens in all, as R rows of W tokens."""

    places: NDArray[np.int64]  # (n,), which texts
    lengths: NDArray[np.int64]  # (n,)
    starts: NDArray[np.int64]  # (n,), the place of a text's first token among all R*W
    owner: NDArray[np.int64]  # (R, W), which of the n each token belongs to; -1: none
    flat: NDArray[np.int64]  # (T,), the places of all tokens, text after text
    places_in_text: NDArray[np.int64]  # (T,)


def layouts(lengths: NDArray[np.int64], threads: int = 1) -> list[Layout]:
    """Lay texts of the given lengths (n,), each at least 1, into batches, the largest first.

    Every text is in exactly one, in one row; there is work for so many threads. Of texts of up to
    `_PACKED_WIDTHS[-1]` tokens those of one length are batched where they are enough for a call,
    which leaves nothing to compute for nothing; the others share rows. Longer ones have a row
    each, beside texts of similar length, and so have the others where few would fit into a row.
    """
    found: list[Layout] = []
    alike: dict[int, list[int]] = {}
    rest: list[int] = []
    long: list[int] = []
    for place, length in enumerate(lengths.tolist()):
        if length <= _PACKED_WIDTHS[-1]:
            alike.setdefault(length, []).append(place)
        else:
            long.append(place)
    for length in sorted(alike):
        same = alike[length]
        if len(same) * length < _LEAST_TOKENS:
            rest += same
        else:
            found += _cut(lengths, [[place] for place in same], length, threads)
    if rest:
        left = lengths[rest]
        width, rows = shared_rows(left, threads)
        rows = [[rest[at] for at in row] for row in rows]
        size = len(rows) * width
        packed = size + _CALL_TOKENS * -(-size // _MOST_TOKENS)
        alone = sum(_CALL_TOKENS + len(g) * int(left[g[-1]]) for g in _similar(left, threads))
        if packed <= alone:
            found += _cut(lengths, rows, width, threads)
        else:
            long = rest + long
    for group in _similar(lengths[long], threads):
        places = [long[at] for at in group]
        found.append(_layout(lengths, [[place] for place in places], int(lengths[places[-1]])))
    return sorted(found, key=lambda layout: -layout.owner.size)


def shared_rows(lengths: NDArray[np.int64], threads: int) -> tuple[int, list[list[int]]]:
    """A width, and rows of that many tokens for short texts of the given lengths (n,).

    `_PACKED_WIDTHS` are good widths for many texts. What fills a row or two for each thread is
    shared evenly instead: rows as narrow as texts allow, and as many for every thread.
    """
    longest, total = int(lengths.max()), int(lengths.sum())
    width = min(total, next(width for width in _PACKED_WIDTHS if width >= longest))
    best = width, pack(lengths, width)
    usual = len(best[1])
    if not threads <= usual <= _EVEN_ROWS * threads:
        return best
    for most in range(threads, usual + threads, threads):
        for width in range(max(longest, -(-total // most)), _PACKED_WIDTHS[-1] + 1):
            rows = pack(lengths, width)
            if len(rows) <= most:
                best = min(best, (width, rows), key=lambda found: found[0] * len(found[1]))
                break
    return best


def _cut(
    lengths: NDArray[np.int64], rows: list[list[int]], width: int, threads: int
) -> Iterator[Layout]:
    """Batches of about the same size, as many for each thread."""
    size = len(rows) * width
    parts = threads * -(-size // (threads * _MOST_TOKENS))
    parts = max(1, min(parts, size // _SHARED_TOKENS, len(rows)))
    for part in range(parts):
        mine = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
        yield _layout(lengths, mine, width)


def pack(lengths: NDArray[np.int64], width: int) -> list[list[int]]:
    """Rows of texts, by their places in `lengths`, whose tokens are at most `width` together.

    The longest first, each into the row that it fills best: close to the fewest rows there can
    be (best-fit decreasing).
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by their room
    sizes = lengths.tolist()
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        length = sizes[place]
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


def lower_rows(rows: Sequence[Row], places: str) -> tuple[Sequence[Row], int]:
    """What the lower layers read of texts without a query, and the position of its first token.

    `places` is that fact of the graph. A network with sinks ("1") reads no special tokens, if
    there are others, and leaves its words at their positions.
    """
    if places == "1":
        return [row[1:-1] if len(row) > 2 else row[-1:] for row in rows], 1
    return rows, 0


def lower_feed(rows: Sequence[Row], layout: Layout, first: int) -> dict[str, Any]:
    """What the graph of the lower layers reads of a batch; positions count from `first`."""
    ids = np.zeros(layout.owner.shape, dtype=np.int64)
    ids.flat[layout.flat] = np.concatenate(rows)
    places = np.zeros_like(ids)
    places.flat[layout.flat] = layout.places_in_text + first
    return {"ids": to_runtime(ids), "places": to_runtime(places), "owner": to_runtime(layout.owner)}


class Batch(NamedTuple):
    """Texts of similar length, padded to the longest."""

    places: NDArray[np.int64]  # (b,), which texts
    ids: NDArray[np.int64]  # (b, T)
    lengths: NDArray[np.int64]  # (b,)


def batches(rows: Sequence[Row], threads: int = 1) -> Iterator[Batch]:
    """Cut rows into batches of similar length, with work for so many threads.

    Every row is in exactly one batch.
    """
    lengths = _lengths(rows)
    for places in _similar(lengths, threads):
        ids = np.zeros((len(places), len(rows[places[-1]])), dtype=np.int64)
        for at, place in enumerate(places):
            ids[at, : len(rows[place])] = rows[place]
        yield Batch(np.array(places), ids, lengths[places])


def _similar(lengths: NDArray[np.int64], threads: int) -> Iterator[list[int]]:
    """Places of texts of similar lengths, the longest last, each in exactly one group."""
    sizes = lengths.tolist()
    most = min(_MOST_TOKENS, max(_SHARED_TOKENS, sum(sizes) // threads))
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    start = 0
    while start < len(order):
        end = start + 1
        waste = 0
        while end < len(order):
            width = sizes[order[end]]
            waste += (end - start) * (width - sizes[order[end - 1]])
            if (end - start + 1) * width > most or waste > _CALL_TOKENS:
                break
            end += 1
        yield order[start:end]
        start = end


def _in_parts(rows: Rows) -> Iterator[Sequence[Row]]:
    """Texts part by part; a sequence is all of them at once."""
    return rows if isinstance(rows, Iterator) else iter([rows])


def _lengths(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))


def to_runtime(array: NDArray[Any]) -> Any:
    """An array as the runtime takes it, without a copy."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
