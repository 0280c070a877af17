"""Holding a network to the bi-encoder it started as, on text that nobody judged.

Training on one domain's titles destroys what the backbone knew about others. On lists made of
unlabelled documents, the start's own scores (cosines, as a bi-encoder gives them) are the target.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from reranker.evaluation.collections import Document, read_corpus
from reranker.models.broadcast import BroadcastEncoder
from reranker.training import examples
from reranker.training.lists import Batch, Tokens, draw_examples, draw_list, make_batch
from reranker.training.pairs import against_titles, make_queries
from reranker.training.start import new_model, text_tokens, tokenizer_of

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import PartialState
    from torch import Tensor

    from reranker.training.config import KeepConfig, Recipe

log = logging.getLogger(__name__)

FOLDER = "keep"


def prepare_keep(config: KeepConfig, seed: int, data: Path, out: Path) -> None:
    """Write unlabelled examples of the corpora below `data` into `out`."""
    pool: list[str] = []
    items: list[examples.Example] = []
    for number, path in enumerate(config.corpora):
        corpus: dict[str, Document] = {}
        for document in read_corpus(data / path):
            corpus.setdefault(document.id, document)
        rng = np.random.default_rng([seed, 4, number])
        ids = list(corpus)
        chosen = [corpus[ids[i]] for i in rng.permutation(len(ids))[: 2 * config.queries].tolist()]
        made = make_queries(chosen, rng, most=1)[: config.queries]
        titles, found = against_titles(path, made, corpus, rng)
        for item in found:
            for places in (item.golds, item.candidates, item.others):
                places[:] = [place + len(pool) for place in places]
        pool += titles
        items += found
        log.info("%s: %d queries to keep", path, len(found))
    examples.save(out / FOLDER, pool, items)


class Keeper:
    """Draws unlabelled lists, and scores them as the bi-encoder does that the training began as."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device) -> None:
        if recipe.keep is None:
            raise ValueError("the recipe has no [keep]")
        self._config, self._recipe, self._device = recipe.keep, recipe, device
        pool, self._items = examples.load(folder / FOLDER)
        if not self._items:
            raise ValueError(f"{folder / FOLDER} holds no examples: [keep] corpora need texts")
        self._pool = len(pool)
        tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
        self._texts = text_tokens(recipe, tokenizer, pool)
        queries = [item.query for item in self._items]
        self._queries = Tokens(tokenizer, queries, recipe.lists.max_query_tokens)
        start = new_model(recipe)
        if not isinstance(start, BroadcastEncoder) or start.config.start != "bi-encoder":
            raise ValueError("[keep] needs a network that starts as a bi-encoder")
        self._start = start.to(device).requires_grad_(False).eval()
        self._lists = recipe.lists.model_copy(update={"size": self._config.size, "golds": 1})

    @torch.no_grad()
    def draw(self, draw: int, processes: PartialState) -> tuple[Batch, Tensor]:
        """This process's lists of a draw, and the bi-encoder's scores of them, (B, N)."""
        number = self._config.queries_per_step
        chosen = draw_examples(len(self._items), number, draw, self._recipe.seed)
        rng = np.random.default_rng([self._recipe.seed, 3, draw])
        lists = [draw_list(self._items[i], self._lists, self._pool, rng) for i in chosen]
        mine = slice(processes.process_index, None, processes.num_processes)
        batch = make_batch(
            [self._queries[i] for i in chosen[mine]],
            lists[mine],
            [set(self._items[i].golds) for i in chosen[mine]],
            self._texts,
            chunks=2,
        ).to(self._device)
        read = self._start.encode_query(batch.query_ids, batch.query_mask)
        scores = torch.zeros(batch.valid.numel(), device=self._device)
        for chunk in batch.chunks:
            found = self._start.dual_score(read, chunk.ids, chunk.mask, chunk.owner)
            scores[chunk.place] = found.float()  # of bf16 products they are bf16
        return batch, scores.view(batch.valid.shape)
