"""The models that answer, and how others take their place without a search being lost."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from reranker import Cascade
from reranker.lru import CacheUse
from reranker.records import Hit, RerankResult
from reranker.stages import SHIPPED

_log = logging.getLogger(__name__)

_PASSAGE = (
    "Merge multiple sorted inputs into a single sorted output, for example timestamped entries "
    "of several log files. Similar to sorted(chain(*inputs)), but it returns an iterator and "
    "does not hold all of the data in memory. "
)
# As long as real ones, so that the cost of a token is known before the first search.
_WARM_UP = [
    Hit(str(n), f"heapq.merge {n}: Merge multiple sorted inputs", f"{n} {_PASSAGE * 2}", 20 - n)
    for n in range(16)
]


class Reranker(Protocol):
    """What answers searches: `reranker.Cascade`, or a stand-in of a test."""

    @property
    def name(self) -> str:
        """The name of the models."""

    def cut(self, hits: Sequence[Hit], most_tokens: int) -> tuple[list[Hit], int]:
        """Leave of each hit the first so many tokens; tell how many hits were cut."""

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        """Order the hits; called from several threads at once."""


class Loaded(NamedTuple):
    """Models, and a hash of their files by which two sidecars can be compared."""

    reranker: Reranker
    hash: str = ""
    caches: Callable[[], dict[str, CacheUse]] = dict  # by stage, how they were used so far


class Models:
    """The models that answer now; None before the first are loaded and warm."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self.current: Loaded | None = None

    async def reload(self) -> Loaded:
        """Load and warm models aside, then let them answer; whatever fails, those before stay.

        Searches that are under way are finished by the models that they began with.
        """
        begun = time.monotonic()
        loaded = await asyncio.to_thread(self._load_warm)
        self.current = loaded
        _log.info(
            "%s is warm after %.0f ms",
            loaded.reranker.name,
            (time.monotonic() - begun) * 1000,
            extra={"model": loaded.reranker.name, "hash": loaded.hash},
        )
        return loaded

    def _load_warm(self) -> Loaded:
        loaded = self._load()
        loaded.reranker.rerank("merge sorted lists", _WARM_UP, len(_WARM_UP))
        return loaded


def folder_models(
    folder: Path | None,
    threads: int | None,
    cache_mb: float = 64.0,
    passage_cache_mb: float = 0.0,
) -> Models:
    """The models of a folder, read anew by every `reload`; None is the shipped ones.

    The megabytes are of what is kept of titles and passages that were read before.
    """

    def load() -> Loaded:
        # Hashed first: a folder that changes meanwhile is then not passed off as the new one.
        found = hash_models(folder or SHIPPED)
        cascade = Cascade.load(folder, threads, cache_mb, passage_cache_mb)
        stages = {"title": cascade.title, "passage": cascade.passage}
        return Loaded(
            cascade, found, lambda: {name: stage.cache_use for name, stage in stages.items()}
        )

    return Models(load)


def hash_models(folder: Path) -> str:
    """SHA-256 over the files that serving reads, with their names; the first 16 hex digits."""
    digest = hashlib.sha256()
    # A stage's folder may be a link, which a pattern does not follow.
    linked = [path for path in folder.glob("*") if path.is_symlink() and path.is_dir()]
    paths = {path for root in (folder, *linked) for path in root.glob("**/*")}
    for path in sorted(paths):
        if path.suffix in (".json", ".onnx", ".bin") and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]
