"""The plain records that pass between the stages; nothing here computes anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Hit(NamedTuple):
    """One first-stage hit: what the search engine found, before any reranking.

    `title` and `passage` may be empty. `score` is the engine's own, on whatever scale the
    engine uses; NaN (an engine that sorts by a field reports no score) counts as unknown.
    """

    id: str
    title: str = ""
    passage: str = ""
    score: float = float("nan")


@dataclass(slots=True)  # not frozen, which takes twice as long to make
class RankedHit:
    """One hit in the new order, with what each stage said of it.

    `score` descends over a result and says which stage placed the hit: its integer part is
    2 where the passage stage did and 1 where the title stage did. The passage stage places the
    hits whose passages it read and, where it ended as the rest was settled, the rest by what they
    were expected to score. A stage that did not score the hit leaves None.
    """

    id: str
    index: int  # position in the hits as they were given
    score: float
    first_stage_score: float
    title_score: float | None = None  # the title model's logit
    passage_score: float | None = None  # the passage model's logit
    coverage: float = 0.0  # share of the query's words it holds, 0 to 1; 0 too where nobody looked
    mention: float = 0.0  # what its fused score gained, as passages that were read name its title
    first_stage_rank: int = 0  # ranks count from 1
    title_rank: int | None = None
    passage_rank: int | None = None


class StageReport(NamedTuple):
    """What one stage did for one search."""

    name: str  # "title" or "passage"
    scored: int  # hits it gave a score
    milliseconds: float
    truncated: int = 0  # texts of which not every token was read
    # Why the stage left hits unscored: "settled: …" where reading on was expected to change next
    # to nothing, "deadline: …" where the time was used up; empty if it scored all.
    skipped: str = ""
    tokens: int = 0  # that were computed, padding not counted
    unscored: int = 0  # hits it was asked to score and had no time for


class RerankResult(NamedTuple):
    """All hits in the new order, and how that order came about."""

    hits: list[RankedHit]
    stages: list[StageReport]
    complete: bool  # no stage left anything out for want of time
    query_cut: bool = False  # the query is longer than the models read
