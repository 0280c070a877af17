"""Hard negatives: from the model's own ranking, found anew every so many steps, or a teacher's.

For its own ranking, only the queries that the next steps will draw are ranked, each over its own
candidates. What is found depends on the weights at that step alone, and travels in the checkpoint,
so that a resumed training goes on bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from reranker.training.lists import Tokens, draw_examples, make_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import PartialState

    from reranker.training.config import Recipe
    from reranker.training.examples import Example
    from reranker.training.start import Model


class Miner:
    """The hardest candidates of every example that is coming next."""

    def __init__(
        self, recipe: Recipe, items: list[Example], texts: Tokens, queries: Tokens
    ) -> None:
        self._recipe, self._items, self._texts, self._queries = recipe, items, texts, queries
        lists = recipe.lists
        self._by_teacher = lists.mined > 0 and lists.mined_by == "teacher"
        if self._by_teacher and not any(item.taught for item in items):
            raise ValueError(
                "the examples carry no teacher's scores to mine by: give taught_by an encoder and "
                'data.dense, and prepare them anew, or leave out mined_by = "teacher"'
            )
        self.hardest: dict[int, list[int]] = {}  # example -> candidates, the hardest first

    def advance(self, step: int, model: Model, processes: PartialState) -> None:
        """Rank what the steps from `step` on will draw, where that is due."""
        every = self._recipe.lists.remine_every
        if self._recipe.lists.mined == 0 or self._by_teacher or step % every:
            return
        coming = sorted(set(self._coming(step, min(step + every, self._recipe.steps))))
        model.eval()
        mine = coming[processes.process_index :: processes.num_processes]
        found = [(place, self.rank(place, model)) for place in mine]
        model.train()
        self.hardest = dict(gather_object(found))

    def of(self, place: int) -> Sequence[int]:
        """The hardest candidates of an example, the hardest first; none where none are known."""
        if not self._by_teacher:
            return self.hardest.get(place, ())
        item = self._items[place]
        known = item.taught_by_text
        scored = [text for text in (*item.candidates, *item.others) if text in known]
        return sorted(scored, key=lambda text: -known[text])[: self._recipe.lists.head]

    def _coming(self, first: int, last: int) -> list[int]:
        recipe = self._recipe
        draws = range(first * recipe.accumulate, last * recipe.accumulate)
        size, count = recipe.queries_per_step, len(self._items)
        return [i for draw in draws for i in draw_examples(count, size, draw, recipe.seed)]

    @torch.no_grad()
    def rank(self, place: int, model: Model) -> list[int]:
        """The candidates that the model takes for the best answers, as many as a list's head."""
        item = self._items[place]
        texts = [*item.candidates, *item.others]
        zeros = [0.0] * len(texts)
        query = [self._queries[place]]
        batch = make_batch(query, [(texts, zeros)], [set()], self._texts, chunks=4)
        batch = batch.to(next(model.parameters()).device)
        read = model.encode_query(batch.query_ids, batch.query_mask)
        scores = torch.empty(len(texts))
        for chunk in batch.chunks:
            scores[chunk.place.cpu()] = model.score(read, chunk.ids, chunk.mask).float().cpu()  # type: ignore[arg-type]
        order = scores.argsort(descending=True, stable=True)[: self._recipe.lists.head]
        return [texts[i] for i in order.tolist()]
