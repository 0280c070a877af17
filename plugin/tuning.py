"""What a machine can do with given texts, and the settings that follow from it.

Measuring and choosing are apart: what is chosen is a pure function of what was measured.
"""

from __future__ import annotations

import re
import shlex
import statistics
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from reranker import Cascade

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reranker import Hit

DEPTHS = (0, 5, 10, 20, 50, 100)
# More threads are worth having where they save more than this share of the time.
_WORTH = 0.05
MOST_CACHE_MB = 1024
_MEGABYTE = 1_000_000
_SETTING = re.compile(r"^[ \t]*(?:export[ \t]+)?(\w+)[ \t]*=", re.M)
_WRITTEN = [f"TITLECAST_{name}" for name in ("MODEL", "THREADS", "MAX_CONCURRENT", "CACHE_MB")]


class Window(NamedTuple):
    """What one search gives the reranker."""

    query: str
    hits: list[Hit]


class ThreadPoint(NamedTuple):
    """One number of threads."""

    threads: int
    alone_ms: float  # median of a search that has the machine for itself
    per_second: float  # searches, where as many as there are cores run at once


class DepthTime(NamedTuple):
    """One passage depth."""

    depth: int
    milliseconds: float  # median of a search
    quality: float | None = None  # mean over judged queries, where there are any


class Tuned(NamedTuple):
    """The settings that fit."""

    threads: int
    max_concurrent: int
    cache_mb: int
    passage_depth: int
    within_budget: bool  # whether even the titles alone fit it


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4 … and all of them."""
    counts = [1]
    while counts[-1] * 2 < cores:
        counts.append(counts[-1] * 2)
    return counts if cores == 1 else [*counts, cores]


def measure_threads(
    model: Path | None, windows: Sequence[Window], cores: int, depth: int, rounds: int
) -> list[ThreadPoint]:
    """Measure every number of threads, without what is kept of texts read before."""
    found = []
    for threads in thread_counts(cores):
        cascade = Cascade.load(model, threads, cache_mb=0)
        alone = measure_depth(cascade, windows, depth, rounds)
        found.append(ThreadPoint(threads, alone, measure_rate(cascade, windows, depth, cores)))
    return found


def measure_depth(
    cascade: Cascade, windows: Sequence[Window], depth: int, rounds: int = 1
) -> float:
    """Median milliseconds of one search at a time, after one to warm up."""
    cascade.rerank(windows[0].query, windows[0].hits, depth)
    times = []
    for _ in range(rounds):
        for window in windows:
            started = time.perf_counter()
            cascade.rerank(window.query, window.hits, depth)
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def measure_rate(cascade: Cascade, windows: Sequence[Window], depth: int, callers: int) -> float:
    """Searches a second where `callers` search at once, each through all windows.

    Raises what a search raised.
    """
    failed: list[BaseException] = []

    def search_all(first: int) -> None:
        try:
            for at in range(len(windows)):
                window = windows[(first + at) % len(windows)]
                cascade.rerank(window.query, window.hits, depth)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=search_all, args=[first]) for first in range(callers)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise failed[0]
    return callers * len(windows) / (time.perf_counter() - started)


def bytes_per_title(cascade: Cascade, windows: Sequence[Window]) -> float:
    """What the cascade keeps of one title, tokens and states; 0 if it keeps nothing.

    Its cache must have room for all titles of the windows.
    """
    titles = {hit.title for window in windows for hit in window.hits}
    cascade.title.score(windows[0].query, sorted(titles))
    return cascade.title.cache_use.bytes / len(titles)


def fewest_threads(points: Sequence[ThreadPoint]) -> int:
    """The fewest threads that are about the fastest."""
    fastest = min(point.alone_ms for point in points)
    return min(p.threads for p in points if p.alone_ms <= fastest * (1 + _WORTH))


def choose(
    threads: int,
    depths: Sequence[DepthTime],
    title_bytes: float,
    titles: int,
    cores: int,
    budget_ms: float,
) -> Tuned:
    """With so many threads, with which `depths` were measured, the depth that the budget allows.

    Where quality was measured it is the best within the budget, the smaller of equal ones; else
    the deepest. The cache has room for all `titles`, up to a gigabyte.
    """
    fitting = [point for point in depths if point.milliseconds <= budget_ms]
    if not fitting:
        depth = 0
    elif any(point.quality is not None for point in fitting):
        depth = max(fitting, key=lambda p: (p.quality or 0.0, -p.depth)).depth
    else:
        depth = max(point.depth for point in fitting)
    cache = min(MOST_CACHE_MB, -(-int(1.1 * title_bytes * titles) // _MEGABYTE))
    return Tuned(threads, cores, cache, depth, bool(fitting))


def best(choices: Sequence[tuple[Tuned, DepthTime]]) -> int:
    """Which of several models' settings, each with the depth chosen for it, to take.

    Of those within the budget the one of the best quality, else the first; where none is within
    it, the fastest.
    """

    def worth(at: int) -> tuple[bool, float, int]:
        tuned, time = choices[at]
        within = tuned.within_budget
        return within, (time.quality or 0.0) if within else -time.milliseconds, -at

    return max(range(len(choices)), key=worth)


def others(file: Path) -> list[str]:
    """Names of what a file of settings holds besides those that `environment` writes."""
    if not file.is_file():
        return []
    found = _SETTING.findall(file.read_text("utf-8", errors="replace"))
    return [name for name in dict.fromkeys(found) if name not in _WRITTEN]


def environment(tuned: Tuned, told: Sequence[str], model: Path | None = None) -> str:
    """The settings as a file that `titlecast serve --config` and shells read."""
    lines = [f"# {line}" for line in told]
    if model is not None:
        lines.append(f"TITLECAST_MODEL={_quoted(str(model.absolute()))}")
    lines += [
        f"TITLECAST_THREADS={tuned.threads}",
        f"TITLECAST_MAX_CONCURRENT={tuned.max_concurrent}",
        f"TITLECAST_CACHE_MB={tuned.cache_mb}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    # The settings' reader knows both kinds of quotes, but not one kind after the other.
    return f'"{value}"' if "'" in value else shlex.quote(value)
