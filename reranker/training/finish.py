"""From a finished training to a model folder that serving loads."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer

from reranker.evaluation.contamination import FILE
from reranker.models.export import Precision, export, has_dual, measure_ranges
from reranker.runtime import load_model
from reranker.training.examples import load
from reranker.training.start import as_lists, left_out_of, load_trained, seen_by, tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from reranker.models.broadcast import List
    from reranker.training.config import Recipe
    from reranker.training.start import Model

log = logging.getLogger(__name__)

# What a served model reads at most; training lists are shorter, for their cost. A query may be a
# dialogue, whose last words say what is asked.
_LIMITS: dict[str, dict[str, int]] = {
    "title": {"max_query_tokens": 256, "max_text_tokens": 48},
    "passage": {
        "max_query_tokens": 256,
        "max_passage_tokens": 256,
        "stride": 32,
        "max_windows": 4,
    },
}


def export_trained(
    folder: Path,
    out: Path,
    name: str,
    precision: Precision = "int8",
    blend: float = 1.0,
    average: bool = False,
) -> None:
    """Write a training's result as a model folder for serving; see `load_trained`."""
    recipe, model = load_trained(folder, blend, average)
    export_model(recipe, model, folder, out, name, precision, blend)
    np.save(out / FILE, seen_by(folder))


def export_model(
    recipe: Recipe,
    model: Model,
    prepared: Path,
    out: Path,
    name: str,
    precision: Precision = "int8",
    blend: float = 1.0,
) -> None:
    """Write a network as a model folder; `prepared` holds `dev` examples to measure it on."""
    tokenizer = tokenizer_of(recipe)
    lists = dev_lists(recipe, prepared, tokenizer)
    cut = -(-3 * len(lists) // 5)
    measured, checked = lists[:cut], lists[cut:] or lists
    dual = recipe.task == "passage" and has_dual(model)
    ranges = measure_ranges(model, measured, dual) if precision == "int8" else None
    export(model, out, precision, ranges, dual)
    (out / "tokenizer.json").write_text(_compact(tokenizer), "utf-8")
    config = {
        "name": name,
        "task": recipe.task,
        "architecture": recipe.architecture,
        "precision": precision,
        "backbone": recipe.backbone,
        "blend": blend,
        **_LIMITS[recipe.task],
        "left_out": left_out_of(recipe),
    }
    path = out / "config.json"
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    config["kendall_tau"] = round(agreement(model, out, checked), 4)
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


@torch.no_grad()
def agreement(model: Model, folder: Path, lists: Sequence[List]) -> float:
    """Mean over lists of Kendall's tau between the exported folder's order and torch's in fp32."""
    exported, _ = load_model(folder)
    taus = []
    for query, ids, mask in lists:
        read = model.encode_query(query, torch.ones_like(query, dtype=torch.bool))
        exact = model.score(read, ids, mask).numpy()  # type: ignore[arg-type]
        rows = [row[seen].numpy() for row, seen in zip(ids, mask, strict=True)]
        taus.append(kendall_tau(exact, exported.score(exported.read(query[0].numpy()), rows)))
    return float(np.mean(taus))


def kendall_tau(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """Kendall's tau-a of two scorings (n,) of the same things, by its definition."""
    upper = np.triu_indices(len(one), 1)
    signs = np.sign(one[:, None] - one[None, :]) * np.sign(two[:, None] - two[None, :])
    return float(signs[upper].mean())


def dev_lists(
    recipe: Recipe, folder: Path, tokenizer_json: str, queries: int = 80, depth: int = 24
) -> list[List]:
    """Lists of the dev split, of all sources."""
    pool, items = load(folder / "dev")
    chosen = np.random.default_rng(0).permutation(len(items))[:queries].tolist()
    places = [(items[i].golds + items[i].candidates)[:depth] for i in chosen]
    tokenizer = Tokenizer.from_str(tokenizer_json)
    asked = [items[i].query for i in chosen]
    return as_lists(recipe, tokenizer, asked, [[pool[i] for i in texts] for texts in places])


def _compact(text: str) -> str:
    """A tokenizer's JSON without its own padding and truncation, which serving decides."""
    tokenizer = json.loads(text)
    tokenizer["padding"] = tokenizer["truncation"] = None
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
