"""What every step of a training reads: lists drawn and put together, by other processes if asked.

A draw depends on the recipe's seed, its number and what was mined before it, so that it is the
same whoever puts it together, and when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from reranker.training.augment import mining_step
from reranker.training.examples import MADE
from reranker.training.lists import (
    Batch,
    draw_examples,
    draw_list,
    drop_tokens,
    make_batch,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from accelerate import PartialState
    from torch import Tensor

    from reranker.training.augment import Augmenter
    from reranker.training.config import Recipe
    from reranker.training.examples import Example
    from reranker.training.keep import KeepLists
    from reranker.training.lists import Tokens
    from reranker.training.mining import Miner

_AHEAD = 4  # draws that each process has ready


class Draw(NamedTuple):
    """One draw: B lists, as far as they are this process's share."""

    chosen: list[int]  # the examples, by number
    lists: list[tuple[list[int], list[float]]]  # their texts by place in the pool, and scores
    batch: Batch
    added: Tensor  # (B,), True where the first stage's scores are added
    held: Batch | None = None  # unlabelled lists, on which the network is held to what it knew


class Draws(Dataset[Draw]):
    """The draws of a training, by number: `accumulate` of them make a step."""

    def __init__(
        self,
        recipe: Recipe,
        items: Sequence[Example],
        queries: Tokens,
        texts: Tokens,
        pool: int,
        miner: Miner,
        augmenter: Augmenter | None,
        processes: PartialState,
        keep: KeepLists | None = None,
    ) -> None:
        self._recipe, self._items, self._pool = recipe, items, pool
        self._queries, self._texts = queries, texts
        self._miner, self._augmenter, self._keep = miner, augmenter, keep
        # This process's share of every draw.
        self._mine = slice(processes.process_index, None, processes.num_processes)

    def __getitem__(self, draw: int) -> Draw:
        """Draw it and put it together."""
        recipe, items, augmenter, mine = self._recipe, self._items, self._augmenter, self._mine
        chosen = draw_examples(len(items), recipe.queries_per_step, draw, recipe.seed)
        rng = np.random.default_rng([recipe.seed, 1, draw])
        lists = [
            draw_list(items[i], recipe.lists, self._pool, rng, self._miner.of(i)) for i in chosen
        ]
        asked = [self._queries[i] for i in chosen]
        # What is likely to answer though nobody judged it is no negative of another list's either.
        golds = [{*items[i].golds, *items[i].skipped} for i in chosen]
        if augmenter:
            augmenter.replace(rng, asked, lists, golds)
        asked = [drop_tokens(row, recipe.lists.query_dropout, rng) for row in asked]
        # BM25 says nothing of a sentence without its title: added there, its weight would
        # fall to nothing, and judged lists would not learn what it leaves out.
        judged = np.array([items[i].source != MADE for i in chosen])
        added = torch.from_numpy((rng.random(len(chosen)) < recipe.with_first_stage) & judged)
        batch = make_batch(
            asked[mine],
            lists[mine],
            golds[mine],
            augmenter.texts if augmenter else self._texts,
            chunks=passes(recipe, lists[mine]),
        )
        held = self._keep.of(draw, mine) if self._keep else None
        return Draw(chosen[mine], lists[mine], batch, added[mine], held)

    def of(self, first: int, last: int) -> Iterator[Draw]:
        """The draws from `first` to before `last`, before which nothing is mined anew.

        `workers` processes put them together while those before are trained on.
        """
        numbers, workers = range(first, last), self._recipe.workers
        if not workers:
            return map(self.__getitem__, numbers)
        # Not forked: this process has threads by now, whose locks a fork would leave held.
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=numbers,
                num_workers=workers,
                prefetch_factor=_AHEAD,
                multiprocessing_context="spawn",
            )
        )


def until(recipe: Recipe, step: int, last: int) -> int:
    """The step before `last`, or `last`, at which the next mining is due."""
    due = [last]
    lists, augment = recipe.lists, recipe.augment
    if lists.mined and lists.mined_by == "model":
        due.append(step + lists.remine_every - step % lists.remine_every)
    if augment:
        current = mining_step(augment, step)
        due.append(augment.first if current is None else current + augment.every)
    return min(due)


def passes(recipe: Recipe, lists: Sequence[tuple[list[int], list[float]]]) -> int:
    """In how many chunks a batch's texts are read."""
    texts = sum(len(places) for places, _ in lists)
    return max(4, -(-texts // recipe.texts_per_pass)) if recipe.texts_per_pass else 4
