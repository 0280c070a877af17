"""Fitting when the passage stage may stop, and what that would have saved and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reranker.stopping import EVERY, Stopping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from reranker.fusion import Fusion
    from reranker.training.fusing import Window

    Windows = Mapping[str, Sequence[Window]]  # by query set, which all count the same

_PAGE = 10


class Trial(NamedTuple):
    """A rule tried on windows, against reading all `depth` passages; means over query sets."""

    read: float  # passages of a search
    lost: float  # nDCG@10, by the judgements
    error: float  # the standard error of `lost`
    lost_by_score: float  # nDCG@10 of the final scores' own opinion: far less noisy


def fit_stopping(windows: Windows, fusion: Fusion, share: float, depth: int = 20) -> Stopping:
    """Fit slope and spread on the first `depth` hits of each window, every set counting the same.

    Least squares within windows. Raises ValueError where no window has two passages that were
    read.
    """
    pairs = [
        (1 / len(items), promise[:depth], final[:depth])
        for items in _scored(windows, fusion)
        for promise, final, _ in items
    ]
    if not pairs:
        raise ValueError("no window has passages: give a recipe with a source that has some")
    weights = np.concatenate([np.full(len(promise), weight) for weight, promise, _ in pairs])
    x = np.concatenate([promise - promise.mean() for _, promise, _ in pairs])
    y = np.concatenate([final - final.mean() for _, _, final in pairs])
    squares = float((weights * x * x).sum())
    slope = max(float((weights * x * y).sum()) / squares, 0.0) if squares > 0 else 0.0
    # One degree of freedom a window goes to its height.
    free = sum(weight * (len(promise) - 1) for weight, promise, _ in pairs)
    spread = float(np.sqrt((weights * (y - slope * x) ** 2).sum() / free))
    return Stopping(round(slope, 4), round(spread, 4), share)


def try_stopping(windows: Windows, fusion: Fusion, rule: Stopping, depth: int = 20) -> Trial:
    """Apply a rule to windows as the cascade would."""
    sets = []
    for items in _scored(windows, fusion):
        rows = []
        for promise, final, gold in items:
            reach = min(depth, len(promise))
            read = stops_at(rule, promise[:reach], final[:reach])
            likely = np.exp(final - final[:reach].max())
            likely[reach:] = 0  # the stage would not have read them in any case
            whole, part = (_order(rule, promise, final, at, reach) for at in (reach, read))
            lost = [ndcg(by, whole) - ndcg(by, part) for by in (gold.astype(float), likely)]
            rows.append([read, *lost])
        sets.append(np.array(rows))
    means = np.mean([rows.mean(0) for rows in sets], axis=0)
    errors = [rows[:, 1].std() / np.sqrt(len(rows)) for rows in sets]
    error = float(np.sqrt(np.square(errors).sum()) / len(sets))
    return Trial(float(means[0]), float(means[1]), error, float(means[2]))


def stops_at(rule: Stopping, promise: NDArray[np.float64], final: NDArray[np.float64]) -> int:
    """After how many of these hits (n,), in the order of promise, the passage stage would stop."""
    for read in range(EVERY, len(promise), EVERY):
        if rule.settled(final[:read], promise[:read], promise[read:]):
            return read
    return len(promise)


Scored = tuple["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.bool_]"]


def _scored(windows: Windows, fusion: Fusion) -> Iterator[list[Scored]]:
    """Each set's windows as fused scores of both stages and gold, the most promising hit first.

    Only hits whose passages were read, and only windows and sets that have some.
    """
    for items in windows.values():
        found = []
        for window in items:
            read = np.isfinite(window.passage)
            if read.sum() < 2:
                continue
            first = window.trusted(fusion.most_trust)
            title, passage, first, coverage = (
                values[read] for values in (window.title, window.passage, first, window.coverage)
            )
            promise = fusion.titles(title, first, coverage, alone=False)
            final = fusion.passages(passage, title, first, coverage)
            order = np.argsort(-promise, kind="stable")
            found.append((promise[order], final[order], window.gold[read][order]))
        if found:
            yield found


def _order(
    rule: Stopping,
    promise: NDArray[np.float64],
    final: NDArray[np.float64],
    read: int,
    reach: int,
) -> NDArray[np.int64]:
    """The order where the first `read` hits were read, of `reach` that might have been."""
    if read == reach:  # the others follow by promise
        head = np.argsort(-final[:read], kind="stable")
        return np.concatenate([head, np.arange(read, len(final))])
    expected = rule.expected(final[:read], promise[:read], promise[read:])
    return np.argsort(-np.concatenate([final[:read], expected]), kind="stable")


def ndcg(relevance: NDArray[np.float64], order: NDArray[np.int64]) -> float:
    """nDCG@10 with linear gains; 0 where nothing is relevant."""
    discounts = 1 / np.log2(np.arange(2, _PAGE + 2))
    best, found = np.sort(relevance)[::-1][:_PAGE], relevance[order][:_PAGE]
    ideal = float((best * discounts[: len(best)]).sum())
    return float((found * discounts[: len(found)]).sum()) / ideal if ideal > 0 else 0.0
