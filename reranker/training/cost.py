"""What a training will cost, before it is run: floating-point operations per step, and time.

Counted are the matrix products of the encoders, of a network that teaches and of the one that is
held to what it knew too, which are all but a hundredth of it: a product of (m, k) with (k, n) is
2mkn operations. Lists and texts are counted at their full length, so the figure is an upper bound.
Checked against torch's own counter in the tests.
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


def cost_of(recipe: Recipe, model: Model, teacher: Model | None = None) -> Cost:
    """The cost of a recipe's training of this network, taught by a network, if any."""
    own = (recipe.queries_per_step, recipe.lists.size)
    read = _read(recipe, model, *own)
    total = sum(_learning(recipe, model, one) for one in read)
    texts = read[0]
    if recipe.texts_per_pass:
        total += _reading(model, texts)
    if recipe.distillation or recipe.in_batch:
        alone = texts._replace(query=0)
        dual = _learning(recipe, model, alone)
        if recipe.texts_per_pass:
            dual += _reading(model, alone)
        total += dual / recipe.dual_every
    if teacher is not None:
        total += sum(_reading(teacher, one) for one in _read(recipe, teacher, *own))
    keep = recipe.keep
    if keep is not None:
        # What was known before has the shape of the teacher or else the student's own.
        known = teacher if teacher is not None and keep.held_to == "teacher" else model
        held = (keep.queries_per_step, keep.size)
        total += sum(_learning(recipe, model, one) for one in _read(recipe, model, *held))
        total += sum(_reading(known, one) for one in _read(recipe, known, *held))
    return Cost(total * recipe.accumulate, recipe.steps)


class _Sequences(NamedTuple):
    """Sequences that a network reads, each of whose tokens also sees `query` others."""

    rows: int
    width: int
    query: int


def _read(recipe: Recipe, model: Model, lists: int, size: int) -> list[_Sequences]:
    """What a network reads of lists of `size` texts: the texts, and their queries apart, if any."""
    rows, width, query = lists * size, recipe.lists.max_text_tokens, recipe.lists.max_query_tokens
    if isinstance(model, PairEncoder):
        # The query's tokens are read with every text; the text's own first token is left out.
        return [_Sequences(rows, width + query - 1, 0)]
    return [_Sequences(rows, width, query), _Sequences(lists, query, 0)]


def measure_speed(recipe: Recipe, model: Model, texts: int = 4) -> float:
    """What this machine's CPU sustains, in 10^12 operations a second: one small step, timed.

    The step is the recipe's with one list of `texts` random texts of full length.
    """
    small = recipe.model_copy(
        update={
            "queries_per_step": 1,
            "accumulate": 1,
            "dual_every": 1,
            "keep": None,
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


def _learning(recipe: Recipe, model: Model, read: _Sequences) -> float:
    """Forward and backward."""
    config = _config(model)
    # Nothing below the lowest trained parameter needs a gradient; the bias on the attention to the
    # query is trained in frozen layers too.
    lowest = 0 if recipe.train_embeddings else recipe.frozen_layers
    first = min(lowest, config.first_query_layer) if read.query else lowest
    maps, linear = (read.rows * each for each in _maps(config, read.width))
    total = 0.0
    for depth, forward in enumerate(_forward(config, read)):
        total += forward
        # Backward is one product for the inputs and one for the weights of a map; attention's two
        # products are of inputs alone, and have two each.
        if depth >= first:
            inputs = linear if depth > first or recipe.train_embeddings else linear - maps
            total += inputs + 2 * (forward - linear)
        if depth >= lowest:
            total += linear
    return total


def _reading(model: Model, read: _Sequences) -> float:
    """Forward alone."""
    return sum(_forward(_config(model), read))


def _forward(config: BroadcastConfig, read: _Sequences) -> list[float]:
    """Forward, by layer."""
    rows, width, query = read
    _, linear = _maps(config, width)
    seen = [width + query * (depth >= config.first_query_layer) for depth in range(config.layers)]
    return [rows * (linear + 2 * 2 * width * each * config.hidden) for each in seen]


def _maps(config: BroadcastConfig, width: int) -> tuple[float, float]:
    """A sequence's maps to query, key and value in one layer, and all its maps there."""
    maps = 2 * width * 3 * config.hidden**2
    return maps, maps + 2 * width * (config.hidden**2 + 2 * config.hidden * config.intermediate)


def _config(model: Model) -> BroadcastConfig:
    return model.encoder.config if isinstance(model, PairEncoder) else model.config
