"""Loading records into an index: every record is indexed, or counted and named.

One thread reads the source and makes chunks of it, several send them, and a ledger knows up to
which position *everything* is done with. That position is what a checkpoint holds, so that a
load that was killed goes on there: what it had sent beyond is sent again, which changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from opensearchpy import OpenSearch

from indexing import verify
from indexing.bulk import (
    KEY_BYTES,
    NO_KEY,
    VERSIONS,
    Action,
    IndexingError,
    Outcome,
    Pace,
    Sender,
    Stopped,
    key_of,
    prepare,
    source_of,
    version_now,
)
from indexing.checkpoint import Checkpoint, State
from indexing.deadletter import DeadLetters
from indexing.records import Document, Failure, Record, Skip

_log = logging.getLogger(__name__)

Encode = Callable[[Sequence[Document]], NDArray[np.float32]]
"""Documents to their vectors, (documents, dimensions); called by several threads."""

_NAMED = 20  # failures that a summary names
_CHUNK_RECORDS = 10_000  # a chunk ends at the latest here, also where none has text
_ENCODED_AT_ONCE = 256
_PROGRESS_SECONDS = 0.2
_STOP_SECONDS = 10.0  # for requests under way when a load is stopped
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Options:
    """How to load; raises `ValueError` where that cannot be.

    Attributes:
        workers: threads that send.
        bulk_bytes: the most that one request may have; how much is right is learned.
        patience: seconds without a document getting through until the load stops.
        request_seconds: until a request counts as unanswered.
        checkpoint_seconds: between two checkpoints.
    """

    workers: int = 4
    bulk_bytes: int = 8 * _MIB
    patience: float = 300.0
    request_seconds: float = 120.0
    checkpoint_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"{self.workers} workers load nothing: give 1 or more")
        if not 1024 <= self.bulk_bytes <= 100 * _MIB:
            raise ValueError(f"{self.bulk_bytes} bytes are no size of a request: 1 KiB to 100 MiB")


class Progress(NamedTuple):
    """How far a load is."""

    position: int  # records done with
    indexed: int
    failed: int
    bytes: int  # of the indexed documents
    waiting: str  # what a request waits for; "" while none does


@dataclass(frozen=True)
class Summary:
    """What a load did, all of its runs together.

    `read == created + replaced + failed + skipped`.
    """

    index: str
    read: int
    created: int
    replaced: int  # one of that id was there before, from the source or from elsewhere
    failed: int
    skipped: int  # without text
    cut: int  # of the failed, those behind which the rest of a file or an index is unread
    distinct: int  # ids among the indexed
    bytes: int
    seconds: float
    documents: int  # in the index afterwards
    differences: tuple[str, ...]  # between the index and what was sent
    sampled: int  # documents that were compared field by field
    failures: tuple[Failure, ...]  # the first of the failed
    dead_letters: str  # the file of the failed; "" where nothing failed

    @property
    def indexed(self) -> int:
        """Records that are now in the index, or are replaced there by a later one."""
        return self.created + self.replaced

    @property
    def duplicates(self) -> int:
        """Records that a later one of the same id replaces."""
        return self.indexed - self.distinct

    @property
    def verified(self) -> bool:
        """The index holds what was sent."""
        return not self.differences


def load(
    client: OpenSearch,
    index: str,
    records: Iterable[Record],
    *,
    checkpoint: Checkpoint | None = None,
    dead_letters: Path | None = None,
    options: Options | None = None,
    encode: Encode | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Load records into an existing index; documents replace those of the same id.

    With a `checkpoint` that has a state of this load, it goes on there; `records` begins at the
    source's beginning all the same. `encode` gives each document its `vector`. `on_progress` may
    be called by any thread, a few times a second.
    Raises `IndexingError` if the cluster stops answering or if the source is not the one of the
    checkpoint, and whatever reading the source raises; the checkpoint then is where to go on.
    """
    with contextlib.ExitStack() as stack:
        if checkpoint is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="titlecast-"))
            checkpoint = stack.enter_context(Checkpoint(Path(folder)))
        resumed = checkpoint.read()
        state = resumed or State(index=index, version=version_now())
        checkpoint.truncate(state.position)
        letters = DeadLetters(
            dead_letters or checkpoint.folder / "dead-letters.jsonl",
            resumed.position if resumed else None,
        )
        stack.callback(letters.close)
        if state.before is None:
            state.before = verify.count(client, index)
            checkpoint.write(state)
        run = _Run(client, checkpoint, state, letters, options or Options(), encode, on_progress)
        if not state.complete:
            run.read(records)
        return _judged(client, checkpoint, state, letters, keep=dead_letters is not None)


class _Chunk:
    """Some consecutive records, and their documents ready to be sent."""

    def __init__(self, number: int, first: int) -> None:
        self.number, self.first = number, first
        self.records = self.failed = self.skipped = self.cut = self.size = 0
        self.actions: list[Action] = []


class _Run:
    """One run of a load: from a state to the end of the source."""

    def __init__(
        self,
        client: OpenSearch,
        checkpoint: Checkpoint,
        state: State,
        letters: DeadLetters,
        options: Options,
        encode: Encode | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._checkpoint, self._state, self._letters = checkpoint, state, letters
        self._options, self._encode = options, encode
        self._pace = Pace(most=options.bulk_bytes, least=min(64 * 1024, options.bulk_bytes))
        self._stop = threading.Event()
        self._queue: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._vector_bytes = 0  # of a document's vector in a request, once one is known
        self._progress = _Reporter(on_progress)
        self._ledger = _Ledger(checkpoint, state, letters, self._stop, options, self._progress)
        self._sender = Sender(
            client,
            state.index,
            version=state.version,
            pace=self._pace,
            stop=self._stop,
            patience=options.patience,
            request_seconds=options.request_seconds,
            rejected=self._rejected,
            waiting=self._progress.wait,
        )

    def read(self, records: Iterable[Record]) -> None:
        """Read the source from the state's position on, and see that all of it is done with."""
        threads = [
            threading.Thread(target=self._work, name=f"load-{number}", daemon=True)
            for number in range(self._options.workers)
        ]
        started = time.monotonic() - self._state.seconds
        self._ledger.started = started
        ended = False
        try:
            rest = self._go_on(iter(records))
            for thread in threads:
                thread.start()
            for chunk in self._chunks(rest):
                if not self._ledger.admit(chunk, 2 * len(threads) * self._pace.target):
                    break  # a worker has stopped the load
                # One without documents as well: only workers may settle, as an interrupt can
                # come in the middle of whatever this thread does.
                self._queue.put(chunk)
            self._end_of_queue(len(threads))
            while any(thread.is_alive() for thread in threads) and not self._stop.is_set():
                for thread in threads:
                    thread.join(0.1)
            ended = not self._stop.is_set()
        finally:
            if not ended:
                self._stop.set()
                until = time.monotonic() + _STOP_SECONDS
                self._end_of_queue(len(threads))
                for thread in threads:
                    if thread.ident is not None:
                        thread.join(max(0.0, until - time.monotonic()))
            self._ledger.close(complete=ended)
        if self._error is not None:
            raise self._error

    def _end_of_queue(self, workers: int) -> None:
        for _ in range(workers):
            self._queue.put(None)

    def _go_on(self, records: Iterator[Record]) -> Iterator[tuple[int, Record]]:
        """Leave out what is done with, and see that it is what it was; number the rest."""
        position = self._state.position
        if position:
            self._progress.wait(f"finding record {position:,} again")
            with self._checkpoint.keys.open("rb") as keys:
                found = 0
                for found, record in enumerate(itertools.islice(records, position), 1):  # noqa: B007
                    key = keys.read(KEY_BYTES)
                    if key != NO_KEY and not (
                        isinstance(record, Document) and key == _key(record.id)
                    ):
                        break
                else:
                    if found == position:
                        self._progress.wait("")
                        return enumerate(records, position)
            raise IndexingError(
                f"the source has changed since its load was interrupted (at record {found:,}):"
                " begin anew with --discard"
            )
        return enumerate(records)

    def _chunks(self, records: Iterable[tuple[int, Record]]) -> Iterator[_Chunk]:
        version, keep = self._state.version, self._encode is not None
        chunk = _Chunk(0, self._state.position)
        for position, record in records:
            if position >= VERSIONS:
                raise IndexingError(f"a source has at most {VERSIONS} records: load it in parts")
            prepared: Action | Failure | Skip
            if isinstance(record, Document):
                prepared = prepare(record, position, version, keep=keep)
            else:
                prepared = record
            chunk.records += 1
            if isinstance(prepared, Action):
                chunk.actions.append(prepared)
                chunk.size += len(prepared.lines) + self._vector_bytes
            elif isinstance(prepared, Failure):
                chunk.failed += 1
                chunk.cut += prepared.cut
                self._failed(position, prepared, record)
            else:
                chunk.skipped += 1
                _log.debug("skipped %s: %s", prepared.location, prepared.reason)
            if chunk.size >= self._pace.target or chunk.records >= _CHUNK_RECORDS:
                yield chunk
                chunk = _Chunk(chunk.number + 1, position + 1)
        if chunk.records:
            yield chunk

    def _work(self) -> None:
        try:
            while (chunk := self._queue.get()) is not None and not self._stop.is_set():
                if self._encode is not None:
                    chunk.actions = self._encoded(chunk.actions, self._encode)
                self._ledger.settle(chunk, self._sender.send(chunk.actions))
                del chunk  # while waiting for the next one, it must not keep this one
        except Stopped:
            pass
        except BaseException as error:  # the reading thread raises it
            self._error = self._error or error
            self._stop.set()
            self._ledger.wake()

    def _encoded(self, actions: Sequence[Action], encode: Encode) -> list[Action]:
        done: list[Action] = []
        for start in range(0, len(actions), _ENCODED_AT_ONCE):
            part = actions[start : start + _ENCODED_AT_ONCE]
            vectors = np.asarray(encode([action.document for action in part if action.document]))
            if vectors.ndim != 2 or len(vectors) != len(part) or not np.isfinite(vectors).all():
                raise IndexingError(
                    f"the encoder gave an array of shape {vectors.shape} for {len(part)}"
                    " documents: a row of finite numbers for each is needed"
                )
            for action, row in zip(part, vectors.tolist(), strict=True):
                # Nine digits are what a float32 needs to come back as itself.
                vector = ",".join([format(value, ".9g") for value in row]).encode()
                lines = b'%b,"vector":[%b]}\n' % (action.lines[:-2], vector)
                self._vector_bytes = len(lines) - len(action.lines)
                done.append(action._replace(lines=lines, document=None))
        return done

    def _failed(self, position: int, failure: Failure, record: Record) -> None:
        _log.info("failed %s: %s", failure.location, failure.reason)
        if isinstance(record, Document):
            self._letters.add(position, failure, id_=record.id, document=record.fields())
        else:
            self._letters.add(position, failure)

    def _rejected(self, action: Action, why: str) -> None:
        failure = Failure(f"document {action.id[:80]!r}", why)
        _log.info("failed %s: %s", failure.location, failure.reason)
        self._letters.add(action.position, failure, id_=action.id, document=source_of(action))


class _Settled(NamedTuple):
    """What became of a chunk: what the state grows by."""

    records: int
    created: int
    replaced: int
    failed: int
    skipped: int
    cut: int
    size: int
    keys: bytes


class _Ledger:
    """Which chunks are done with; the state grows by them in the order of the source."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        state: State,
        letters: DeadLetters,
        stop: threading.Event,
        options: Options,
        progress: _Reporter,
    ) -> None:
        self.started = 0.0
        self._checkpoint, self._state, self._letters = checkpoint, state, letters
        self._stop, self._progress = stop, progress
        self._samples = verify.Samples(verify.Sample(**one) for one in state.samples)
        self._changed = threading.Condition()
        self._settled: dict[int, _Settled] = {}
        self._next = 0  # the number of the first chunk that is not done with
        self._bytes = 0  # of admitted chunks that are not done with
        # One slow request must not let the others run far ahead of it: all that is beyond it is
        # sent again after a kill.
        self._window = 16 * options.workers
        self._keys = bytearray()
        self._saving = threading.Lock()
        self._seconds = options.checkpoint_seconds
        self._saved = time.monotonic()
        self._closed = False

    def admit(self, chunk: _Chunk, limit: int) -> bool:
        """Wait until there is room for a chunk; False where the load has been stopped."""
        with self._changed:
            while not self._stop.is_set() and (
                (self._bytes and self._bytes + chunk.size > limit)
                or chunk.number - self._next >= self._window
            ):
                self._changed.wait()
            self._bytes += chunk.size
        return not self._stop.is_set()

    def wake(self) -> None:
        """Let a waiting `admit` see that the load has been stopped."""
        with self._changed:
            self._changed.notify_all()

    def settle(self, chunk: _Chunk, outcome: Outcome) -> None:
        """Note that a chunk is done with."""
        keys = bytearray(KEY_BYTES * chunk.records)
        for action in itertools.chain(outcome.created, outcome.replaced):
            start = (action.position - chunk.first) * KEY_BYTES
            keys[start : start + KEY_BYTES] = action.key
        sent = sum(len(action.lines) for action in outcome.created)
        sent += sum(len(action.lines) for action in outcome.replaced)
        settled = _Settled(
            chunk.records,
            len(outcome.created),
            len(outcome.replaced),
            chunk.failed + len(outcome.failed),
            chunk.skipped,
            chunk.cut,
            sent,
            bytes(keys),
        )
        state = self._state
        with self._changed:
            if self._closed:
                return
            self._samples.add(outcome.created)
            self._samples.add(outcome.replaced)
            self._bytes -= chunk.size
            self._settled[chunk.number] = settled
            while (one := self._settled.pop(self._next, None)) is not None:
                self._next += 1
                state.position += one.records
                state.created += one.created
                state.replaced += one.replaced
                state.failed += one.failed
                state.skipped += one.skipped
                state.cut += one.cut
                state.bytes += one.size
                self._keys += one.keys
            self._changed.notify_all()
            now = Progress(
                state.position, state.created + state.replaced, state.failed, state.bytes, ""
            )
        self._progress.report(now)
        if time.monotonic() - self._saved >= self._seconds and self._saving.acquire(blocking=False):
            try:
                self._save()
            finally:
                self._saving.release()

    def close(self, *, complete: bool) -> None:
        """Save a last time; nothing counts from now on."""
        with self._saving, self._changed:
            self._closed = True
            self._state.complete = complete
        with self._saving:
            self._save()

    def _save(self) -> None:
        with self._changed:
            self._state.seconds = time.monotonic() - self.started
            self._state.samples = [sample._asdict() for sample in self._samples]
            state, keys = dataclasses.replace(self._state), bytes(self._keys)
        # The letters of all that the state counts are written; the state may not outlive them.
        self._letters.sync()
        self._checkpoint.write(state, keys)
        with self._changed:
            del self._keys[: len(keys)]
        self._saved = time.monotonic()


class _Reporter:
    """Tells of progress, a few times a second."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self._on_progress = on_progress
        self._last = Progress(0, 0, 0, 0, "")
        self._told = 0.0
        self._lock = threading.Lock()

    def report(self, progress: Progress) -> None:
        """Tell how far the load is, unless that was told just now."""
        with self._lock:
            self._last = progress._replace(waiting=self._last.waiting)
            if time.monotonic() - self._told >= _PROGRESS_SECONDS:
                self._tell()

    def wait(self, reason: str) -> None:
        """Tell what is waited for, or that nothing is any more."""
        with self._lock:
            self._last = self._last._replace(waiting=reason)
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._on_progress is not None:
            self._on_progress(self._last)


def _judged(
    client: OpenSearch, checkpoint: Checkpoint, state: State, letters: DeadLetters, *, keep: bool
) -> Summary:
    """Compare the index with what was sent to it, and sum up."""
    documents = verify.count(client, state.index)
    distinct = verify.distinct(checkpoint.keys)
    before = state.before or 0
    # Of the documents that were there before, those of the same id were replaced. Where an
    # answer was lost, what its request created counts as replaced the second time.
    least = max(before + state.created, distinct)
    most = before + min(distinct, state.created + state.replaced)
    found = []
    if not least <= documents <= most:
        expected = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        found.append(f"the index holds {documents:,} documents, not {expected}")
    samples = [verify.Sample(**one) for one in state.samples]
    found += verify.compare(client, state.index, samples)
    return Summary(
        index=state.index,
        read=state.position,
        created=state.created,
        replaced=state.replaced,
        failed=state.failed,
        skipped=state.skipped,
        cut=state.cut,
        distinct=distinct,
        bytes=state.bytes,
        seconds=state.seconds,
        documents=documents,
        differences=tuple(found),
        sampled=len(samples),
        failures=letters.first(_NAMED),
        dead_letters=str(letters.path) if state.failed and keep else "",
    )


def _key(id_: str) -> bytes:
    return key_of(id_.encode("utf-8", "surrogatepass"))
