"""ETR against an ordinary pairwise cross-encoder on titles: what the broadcasting costs and saves.

Both start from the same backbone, see the same lists for as many steps, and are exported in the
same precision to the same runtime.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from reranker.runtime import load_model
from reranker.training.config import changed
from reranker.training.examples import load
from reranker.training.experiments import Arm, measure
from reranker.training.finish import export_model
from reranker.training.lists import Tokens
from reranker.training.start import load_last, text_tokens, tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from reranker.training.config import Recipe
    from reranker.training.loop import Data

BROADCAST, PAIR = "broadcast", "pairwise"


def pairwise_arms(recipe: Recipe, seeds: Sequence[int]) -> list[Arm]:
    """Both architectures, every other setting the same.

    Raises ValueError for a recipe that trains a dual encoder, which one of them lacks.
    """
    kinds = {BROADCAST: "broadcast", PAIR: "pair"}
    return [
        Arm(name, 0.0, seed, changed(recipe, architecture=kind, seed=seed))
        for seed in seeds
        for name, kind in kinds.items()
    ]


def measure_and_export(prepared: Path) -> Callable[..., dict[str, Any]]:
    """What is done with a trained arm: measure it, and export it to its folder's `model`."""

    def after(recipe: Recipe, folder: Path, data: Data, dev: Sequence[int]) -> dict[str, Any]:
        model, _ = load_last(recipe, folder)
        export_model(recipe, model, prepared, folder / "model", recipe.architecture)
        return measure(recipe, folder, data, dev)

    return after


def time_models(
    folders: Mapping[str, Path],
    prepared: Path,
    recipe: Recipe,
    titles: int = 100,
    queries: int = 8,
    rounds: int = 5,
) -> dict[str, float]:
    """Milliseconds of CPU time in which each model scores `titles` titles against a query.

    One thread, the same titles for all, the models in turn; the median over rounds of the mean
    over queries. CPU time, so that other work on the machine hardly counts.
    """
    pool, items = load(prepared / "dev")
    items = [item for item in items if len(item.golds) + len(item.candidates) >= titles]
    if not items:
        raise ValueError(f"{prepared} has no dev query with {titles} candidates")
    places = np.random.default_rng(0).permutation(len(items))[:queries].tolist()
    tokenizer = Tokenizer.from_str(tokenizer_of(recipe))
    asked = Tokens(tokenizer, [items[i].query for i in places], recipe.lists.max_query_tokens)
    windows = []
    for i in places:
        texts = [pool[place] for place in (items[i].golds + items[i].candidates)[:titles]]
        tokens = text_tokens(recipe, tokenizer, texts)
        windows.append([tokens[place].astype(np.int64) for place in range(titles)])
    models = {name: load_model(folder, 1)[0] for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            started = time.process_time()
            for place, rows in enumerate(windows):
                model.score(model.read(asked[place].astype(np.int64)), rows)
            if number:  # the first round warms up
                times[name].append((time.process_time() - started) / len(windows) * 1000)
    return {name: float(np.median(values)) for name, values in times.items()}
