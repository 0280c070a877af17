"""Both stages over one window of hits: every title, then the best passages, then one order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reranker.fusion import Fusion, neutral, squash, standardise
from reranker.records import Hit, RankedHit, RerankResult, StageReport
from reranker.stages import SHIPPED, PassageReranker, TitleReranker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Passages between two looks at the clock, where there is a deadline.
_CHUNK = 4
# What a token is taken to cost before any was measured.
_FIRST_GUESS_MS = 0.05


class Cascade:
    """Hits in the engine's order -> all of them in the new order.

    Safe to use from several threads at once.
    """

    def __init__(self, title: TitleReranker, passage: PassageReranker, fusion: Fusion) -> None:
        self.title = title
        self.passage = passage
        self.fusion = fusion
        self._ms_per_token = _FIRST_GUESS_MS

    @classmethod
    def load(cls, path: str | Path | None = None, threads: int | None = None) -> Cascade:
        """Load a folder with `title/`, `passage/` and `fusion.json`; None is the shipped one."""
        folder = SHIPPED if path is None else Path(path)
        return cls(
            TitleReranker.load(folder / "title", threads),
            PassageReranker.load(folder / "passage", threads),
            Fusion.read(folder / "fusion.json"),
        )

    @property
    def name(self) -> str:
        """The names of both models."""
        return f"{self.title.name}+{self.passage.name}"

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
    ) -> RerankResult:
        """Order all hits by their titles and the best `passage_depth` by their passages as well.

        The title stage always runs; with a deadline the passages follow in the order of promise
        as long as the time allows, judged by the measured cost of a token. A hit with neither
        title nor passage keeps what the first stage says of it. Raises ValueError for an empty
        query or a negative depth.
        """
        started = time.monotonic()
        if passage_depth < 0:
            raise ValueError(f"passage_depth is {passage_depth}; give 0 (titles only) or more")
        if not hits:
            return RerankResult([], [], complete=True)
        first = standardise(np.array([hit.score for hit in hits], dtype=np.float64))

        scored = self.title.score_read(self.title.read(query), [hit.title for hit in hits])
        titled = np.array([bool(hit.title.strip()) for hit in hits])
        logits = neutral(scored.logits, titled)
        fused = self.fusion.title * logits + self.fusion.title_first_stage * first
        stages = [StageReport("title", int(titled.sum()), _ms_since(started), scored.truncated)]

        passage_logits = np.full(len(hits), np.nan)
        if passage_depth > 0:
            order = np.argsort(-fused, kind="stable")
            readable = [
                i for i in order.tolist() if hits[i].title.strip() or hits[i].passage.strip()
            ]
            left = None if deadline_ms is None else deadline_ms - _ms_since(started)
            report = self._passages(query, hits, readable[:passage_depth], passage_logits, left)
            stages.append(report)
        return RerankResult(
            self._ranked(hits, titled, scored.logits, fused, passage_logits, logits, first),
            stages,
            complete=all(not stage.skipped for stage in stages),
        )

    def _passages(
        self,
        query: str,
        hits: Sequence[Hit],
        chosen: Sequence[int],
        logits: NDArray[np.float64],
        left_ms: float | None,
    ) -> StageReport:
        """Fill `logits` (n,) for the chosen hits, best first, until the time is used."""
        started = time.monotonic()
        truncated = done = 0
        skipped = ""
        state = self.passage.read(query) if chosen else None
        # Without a deadline all go in at once, so that they are batched best.
        size = len(chosen) if left_ms is None else _CHUNK
        for start in range(0, len(chosen), max(size, 1)):
            part = chosen[start : start + size]
            titles = [hits[i].title for i in part]
            passages = [hits[i].passage for i in part]
            if left_ms is not None:
                expected = self._ms_per_token * sum(map(self._tokens_of, titles, passages))
                if _ms_since(started) + expected > left_ms:
                    skipped = f"deadline: {len(chosen) - done} passages left unscored"
                    break
            before = time.monotonic()
            scores = self.passage.score_read(state, titles, passages)
            cost = _ms_since(before) / max(scores.tokens, 1)
            self._ms_per_token += 0.2 * (cost - self._ms_per_token)
            logits[list(part)] = scores.logits
            truncated += scores.truncated
            done += len(part)
        return StageReport("passage", done, _ms_since(started), truncated, skipped)

    def _tokens_of(self, title: str, passage: str) -> float:
        """About how many tokens a passage is, without tokenizing it."""
        config = self.passage.config
        most = float(config["max_passage_tokens"] * config["max_windows"])
        return min(most, 2 + (len(title) + len(passage)) / 4)

    def _ranked(
        self,
        hits: Sequence[Hit],
        titled: NDArray[np.bool_],
        title_logits: NDArray[np.float32],
        title_fused: NDArray[np.float64],
        passage_logits: NDArray[np.float64],
        title_neutral: NDArray[np.float64],
        first: NDArray[np.float64],
    ) -> list[RankedHit]:
        """One order: passage-scored hits by all three scores, then the others by two."""
        f = self.fusion
        read = np.isfinite(passage_logits)
        final = title_fused.copy()
        final[read] = (
            f.passage * passage_logits[read]
            + f.passage_title * title_neutral[read]
            + f.passage_first_stage * first[read]
        )
        tier = np.where(read, 2.0, 1.0)  # no other hit passes one whose passage was read
        scores = tier + squash(final)
        order = np.lexsort((np.arange(len(hits)), -final, -tier))
        title_ranks = _ranks(title_fused, titled)
        passage_ranks = _ranks(final, read)
        return [
            RankedHit(
                id=hits[i].id,
                index=i,
                score=float(scores[i]),
                first_stage_score=float(hits[i].score),
                title_score=float(title_logits[i]) if titled[i] else None,
                passage_score=float(passage_logits[i]) if read[i] else None,
                first_stage_rank=i + 1,
                title_rank=title_ranks[i],
                passage_rank=passage_ranks[i],
            )
            for i in order.tolist()
        ]


def _ranks(scores: NDArray[np.float64], known: NDArray[np.bool_]) -> list[int | None]:
    """Ranks from 1 among the known scores; None for the others."""
    ranks: list[int | None] = [None] * len(scores)
    order = np.argsort(-scores, kind="stable").tolist()
    for rank, place in enumerate((i for i in order if known[i]), start=1):
        ranks[place] = rank
    return ranks


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000
