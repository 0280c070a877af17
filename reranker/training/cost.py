"""What a training will cost, before it is run: floating-point operations per step, and time.

Counted are the matrix products of the encoders, which are all but a hundredth of it: a product of
(m, k) with (k, n) is 2mkn operations. Lists and texts are counted at their full length, so the
figure is an upper bound. Checked against torch's own counter in the tests.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from reranker.models.pair import PairEncoder
from reranker.training.draws import passes
from reranker.training.lists import make_batch
from reranker.training.loop import batch_loss, parameter_groups

if TYPE_CHECKING:
    from reranker.models.broadcast import BroadcastConfig
    from reranker.training.config import Recipe
    from reranker.training.start import Model


class Cost(NamedTuple):
    """Floating-point operations."""

    per_step: float
    steps: int

    @property
    def total(self) -> float:
        """Of the whole training, its looks at the dev split not counted."""
        return self.per_step * self.steps

    def hours(self, teraflops: float) -> float:
        """Time at so many 10^12 operations a second, sustained. Raises ValueError below 0."""
        if teraflops <= 0:
            raise ValueError(f"{teraflops} teraflops: give what the machine sustains, above 0")
        return self.total / (teraflops * 1e12) / 3600


def cost_of(recipe: Recipe, model: Model) -> Cost:
    """The cost of a recipe's training of this network."""
    config = model.config if not isinstance(model, PairEncoder) else model.encoder.config
    lists = recipe.queries_per_step
    texts, width, query = (
        lists * recipe.lists.size,
        recipe.lists.max_text_tokens,
        recipe.lists.max_query_tokens,
    )
    pair = isinstance(model, PairEncoder)
    dual = 0.0
    if pair:
        # The query's tokens are read with every text; the text's own first token is left out.
        reading = _passes(config, recipe, texts, width + query - 1, 0)
    else:
        reading = _passes(config, recipe, texts, width, query)
        reading += _passes(config, recipe, lists, query, 0, again=False)
        if recipe.distillation or recipe.in_batch:
            dual = _passes(config, recipe, texts, width, 0) / recipe.dual_every
    return Cost((reading + dual) * recipe.accumulate, recipe.steps)


def measure_speed(recipe: Recipe, model: Model, texts: int = 4) -> float:
    """What this machine's CPU sustains, in 10^12 operations a second: one small step, timed.

    The step is the recipe's with one list of `texts` random texts of full length.
    """
    small = recipe.model_copy(
        update={
            "queries_per_step": 1,
            "accumulate": 1,
            "dual_every": 1,
            "lists": recipe.lists.model_copy(update={"size": texts}),
        }
    )
    rng = np.random.default_rng(0)
    ids = (1, 30)  # any that every vocabulary has
    rows = rng.integers(*ids, (texts, recipe.lists.max_text_tokens))
    query = rng.integers(*ids, recipe.lists.max_query_tokens)
    first_stage = torch.nn.Parameter(torch.tensor(1.0))
    parameter_groups(recipe, model, first_stage)  # freezes what is not trained
    lists = [(list(range(texts)), [0.0] * texts)]
    batch = make_batch([query], lists, [{0}], list(rows), chunks=passes(recipe, lists))
    added = torch.zeros(1, dtype=torch.bool)
    seconds = []
    for _ in range(2):  # the first one warms up
        # Of the processor, not of the clock: what else runs on the machine does not count.
        started = time.process_time()
        batch_loss(small, model, batch, first_stage, added).backward()  # type: ignore[no-untyped-call]
        seconds.append((time.process_time() - started) / torch.get_num_threads())
    return cost_of(small, model).per_step / min(seconds) / 1e12


def _passes(
    config: BroadcastConfig,
    recipe: Recipe,
    rows: int,
    width: int,
    query: int,
    again: bool | None = None,
) -> float:
    """Forward and backward of `rows` sequences, each of whose tokens also sees `query` others."""
    again = recipe.texts_per_pass > 0 if again is None else again
    # Nothing below the lowest trained parameter needs a gradient; the bias on the attention to the
    # query is trained in frozen layers too.
    lowest = 0 if recipe.train_embeddings else recipe.frozen_layers
    first = min(lowest, config.first_query_layer) if query else lowest
    total = 0.0
    for depth in range(config.layers):
        seen = width + (query if depth >= config.first_query_layer else 0)
        maps = 2 * width * 3 * config.hidden**2  # to query, key and value
        linear = maps + 2 * width * (config.hidden**2 + 2 * config.hidden * config.intermediate)
        attention = 2 * 2 * width * seen * config.hidden
        forward = rows * (linear + attention)
        total += forward * (1 + again)
        # Backward is one product for the inputs and one for the weights of a map.
        if depth >= first:
            inputs = linear if depth > first or recipe.train_embeddings else linear - maps
            total += rows * (inputs + 2 * attention)
        if depth >= lowest:
            total += rows * linear
    return total
