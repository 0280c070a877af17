"""What the sidecar counts, for Prometheus.

One process keeps its numbers in memory. Several workers keep them in files of the folder that
PROMETHEUS_MULTIPROC_DIR names, and whichever of them is asked adds all of them up. A worker goes by
the number of its place, not by its process id: who takes that place next counts on in its files.

The files are mapped into memory, and the system kills a process that writes into a mapping whose
block the disk has no room for (SIGBUS). So all their blocks are allocated before a worker starts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from reranker.records import StageReport

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
PLACE = "TITLECAST_WORKER_PLACE"
# The client library's names for what `Metrics` has; the last two count only while a worker lives.
_READY = "titlecast_ready"
_ENDS = "ends"  # in place of a number, in the name of the file that `WorkerEnds` counts in
_COUNTING, _LIVE = ("counter", "histogram"), ("gauge_livesum", "gauge_livemax")
# Labels are few, so that a file stays below a tenth of this; only the models' names and hashes
# add to it, some 250 bytes with each reload of new ones.
_FILE_BYTES = 256 * 1024
CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10)

_OUTCOMES = {
    200: "answered",
    400: "invalid",
    401: "unauthorized",
    404: "not_found",
    405: "not_found",
    408: "slow_caller",
    413: "too_large",
    422: "invalid",
    429: "refused",
    499: "caller_gone",
    500: "failed",
    503: "unavailable",
}


# Both, or the folder is another program's: an environment may be meant for several.
_ONE_OF_SEVERAL = MULTIPROCESS in os.environ and PLACE in os.environ
# Before the first number is made (https://prometheus.github.io/client_python/multiprocess/).
if _ONE_OF_SEVERAL:
    _place = int(os.environ[PLACE])
    values.ValueClass = values.MultiProcessValue(lambda: _place)  # type: ignore[no-untyped-call]
else:
    values.ValueClass = values.MutexValue


def make_files(folder: Path, places: int) -> None:
    """Make the files of so many workers and of their ends, with all of their blocks.

    Raises `OSError`, which names the remedy, where the disk has no room for them.
    """
    kinds = (*_COUNTING, *_LIVE)
    files = [_file(folder, kind, place) for place in range(places) for kind in kinds]
    files.append(_file(folder, "counter", _ENDS))
    try:
        for path in files:
            with path.open("xb", buffering=0) as file:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
                else:
                    file.write(bytes(_FILE_BYTES))
    except OSError as error:
        size = len(files) * _FILE_BYTES // 1024
        raise OSError(
            f"{folder.parent} has no room for the numbers of {places} workers, {size} KiB "
            f"({error.strerror}): make some, or name another folder with TMPDIR"
        ) from error


def forget_dead(folder: Path, place: int) -> None:
    """Forget what counted only while the worker of a place was alive."""
    for kind in _LIVE:
        # In place, as a new file might find no room: the first bytes say how much of it is used.
        with _file(folder, kind, place).open("r+b") as file:
            file.write(bytes(8))


def any_ready(folder: Path) -> bool:
    """Whether a worker answers searches."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return bool(registry.get_sample_value(_READY))


class WorkerEnds:
    """What the process that starts the workers counts: those that have ended."""

    def __init__(self, folder: Path) -> None:
        self._values = MmapedDict(str(_file(folder, "counter", _ENDS)))  # type: ignore[no-untyped-call]

    def count(self, status: int) -> None:
        """Count one, by its exit status; less than 0 is the signal that ended it."""
        words = "Workers that ended and are replaced, by exit status"
        name = "titlecast_worker_ends"
        key = mmap_key(name, f"{name}_total", ["status"], [str(status)], words)
        value, _ = self._values.read_value(key)  # type: ignore[no-untyped-call]
        self._values.write_value(key, value + 1, 0.0)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file; what was counted stays in it."""
        self._values.close()  # type: ignore[no-untyped-call]


def _file(folder: Path, kind: str, place: int | str) -> Path:
    return folder / f"{kind}_{place}.db"


class Metrics:
    """The numbers of one application."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "titlecast_requests", "Requests by what came of them", ["path", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "titlecast_request_seconds", "From a request's head to its answer's end", ["path"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.unread = Counter(
            "titlecast_unread_refusals", "Searches refused without a look at their bodies",
            registry=registry,
        )  # fmt: skip
        self.waited_seconds = Histogram(
            "titlecast_waited_seconds", "Time in line of searches that had their turn",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "titlecast_stage_seconds", "Time of a stage in one search", ["stage"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.scored = Counter(
            "titlecast_scored_hits", "Hits that a stage scored", ["stage"], registry=registry
        )
        self.tokens = Counter(
            "titlecast_tokens", "Tokens that a stage computed", ["stage"], registry=registry
        )
        self.truncated = Counter(
            "titlecast_truncated_texts", "Texts of which not every token was read", ["stage"],
            registry=registry,
        )  # fmt: skip
        self.cache_hits = Counter(
            "titlecast_cache_hits", "Texts found among those that were read before", ["stage"],
            registry=registry,
        )  # fmt: skip
        self.cache_misses = Counter(
            "titlecast_cache_misses", "Texts that were not among those", ["stage"],
            registry=registry,
        )  # fmt: skip
        self.skipped = Counter(
            "titlecast_deadline_skipped_passages", "Passages left unread, as the time was used up",
            registry=registry,
        )  # fmt: skip
        self.partial = Counter(
            "titlecast_partial_answers", "Answers for which not every stage did all it was asked",
            registry=registry,
        )  # fmt: skip
        self.reloads = Counter(
            "titlecast_model_reloads", "Reloads of the models by outcome", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.lost_log_lines = Counter(
            "titlecast_lost_log_lines", "Log lines that could not be written", registry=registry
        )
        self.waiting = _gauge("titlecast_waiting_requests", "Searches in line", registry)
        self.waiting_tokens = _gauge(
            "titlecast_waiting_tokens", "Estimated tokens of the searches in line", registry
        )
        self.computed = _gauge(
            "titlecast_computed_requests", "Searches that are being computed", registry
        )
        self.ready = _gauge(_READY, "Processes that answer searches", registry)
        self.model = Gauge(
            "titlecast_model_info", "1 for the models that answer, 0 for those before",
            ["name", "hash", "version"], multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        if not _ONE_OF_SEVERAL:
            ProcessCollector(registry=registry)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or is not waited for any more."""
        self.requests.labels(path, _OUTCOMES.get(status, "other")).inc()
        if status == 200:
            self.request_seconds.labels(path).observe(seconds)

    def count_search(self, stages: Sequence[StageReport], complete: bool) -> None:
        """Count what the stages did for one search."""
        for stage in stages:
            self.stage_seconds.labels(stage.name).observe(stage.milliseconds / 1000)
            self.scored.labels(stage.name).inc(stage.scored)
            self.tokens.labels(stage.name).inc(stage.tokens)
            self.truncated.labels(stage.name).inc(stage.truncated)
            self.skipped.inc(stage.unscored)
        if not complete:
            self.partial.inc()

    def write(self) -> bytes:
        """All numbers in Prometheus' text format, of all workers where there are several."""
        registry = self._registry
        if _ONE_OF_SEVERAL:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _gauge(name: str, words: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(name, words, registry=registry, multiprocess_mode="livesum")
