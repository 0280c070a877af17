"""Training examples: queries, the texts that answer them, and candidates that do not.

A collection becomes a pool of texts (titles, or titles with passages) and examples that name
texts by their position in the pool. Candidates come from an embedded BM25 and, where they are
given, from a bi-encoder's vectors; each carries the first stage's score, standardised within
its window, so that a model can be trained to add to it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from reranker.fusion import standardise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


MADE = "made"  # the source of examples that documents' own sentences gave
UNLABELLED = "unlabelled"  # and of queries that nobody judged: they have no gold text


@dataclass
class Example:
    """One query with its gold texts and its candidates, all as positions in the pool."""

    source: str  # the query set it comes from
    query: str
    golds: list[int]
    candidates: list[int]  # never a gold text
    first_stage: list[float]  # standardised first-stage score of each candidate
    gold_first_stage: list[float]  # and of each gold text
    others: list[int] = field(default_factory=list)  # candidates without a first-stage score
    # A teacher's scores of `texts`, as far as they go; None: not scored.
    taught: list[float | None] = field(default_factory=list)
    # Never to be drawn: likely to be relevant though unjudged.
    skipped: list[int] = field(default_factory=list)

    @property
    def texts(self) -> list[int]:
        """All its texts: the gold ones, the candidates, the others."""
        return [*self.golds, *self.candidates, *self.others]

    @property
    def taught_by_text(self) -> dict[int, float]:
        """The teacher's score of each text that it scored."""
        pairs = zip(self.texts, self.taught, strict=False)
        return {text: score for text, score in pairs if score is not None}


def example(
    source: str,
    query: str,
    golds: Iterable[int],
    window: Sequence[int],
    scores: Sequence[float],
    others: Iterable[int] = (),
    skip: Iterable[int] = (),
) -> Example:
    """Put one example together; `skip` are texts that are likely to be relevant though unjudged.

    A gold text outside the window gets the first-stage score of the window's last hit.
    """
    golds, skip = sorted(set(golds)), set(skip)
    out = skip.union(golds)
    z = standardise(np.asarray(scores, dtype=np.float64))
    at = {text: float(value) for text, value in zip(window, z, strict=True)}
    floor = min(at.values(), default=0.0)
    kept = [text for text in window if text not in out]
    return Example(
        source=source,
        query=query,
        golds=golds,
        candidates=kept,
        first_stage=[round(at[text], 4) for text in kept],
        gold_first_stage=[round(at.get(text, floor), 4) for text in golds],
        others=[text for text in dict.fromkeys(others) if text not in out and text not in at],
        skipped=sorted(skip),
    )


def save(folder: Path, pool: Sequence[str], examples: Sequence[Example]) -> None:
    """Write a pool and its examples into a folder (made if it is not there)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pool.json").write_text(json.dumps(list(pool), ensure_ascii=False), "utf-8")
    lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in examples)
    part = folder / "examples.jsonl.tmp"
    with part.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    part.replace(folder / "examples.jsonl")  # complete, or not there at all


def is_saved(folder: Path) -> bool:
    """Whether `save` was carried out there to its end."""
    return (folder / "examples.jsonl").is_file()


def load(folder: Path, every: int = 1) -> tuple[list[str], list[Example]]:
    """Read what `save` wrote, or one example in `every`.

    Raises FileNotFoundError where the folder was never prepared.
    """
    pool = json.loads((folder / "pool.json").read_text("utf-8"))
    with (folder / "examples.jsonl").open(encoding="utf-8") as file:
        return pool, [Example(**json.loads(line)) for line in islice(file, 0, None, every)]
