"""The ablation of joint training: what distillation and mined lists do for both models.

Five trainings of the same steps, batches and seed: the reranker alone, with the distillation's
gradient stopped at the reranker (static), with gradients through both (dynamic), dynamic with
mined lists, and an ordinary pairwise cross-encoder. Reranker and dual encoder are measured on the
same dev windows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reranker.evaluation.measures import bootstrap_interval
from reranker.models.broadcast import BroadcastEncoder
from reranker.training.experiments import Arm, Interval, paired_interval
from reranker.training.lists import make_batch
from reranker.training.loop import reciprocal_rank
from reranker.training.scoring import dual_logits, list_logits
from reranker.training.start import load_last

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from reranker.training.config import Recipe
    from reranker.training.loop import Data

ALONE, STATIC, DYNAMIC, AUGMENTED, PAIR, START = (
    "reranker alone",
    "static",
    "dynamic",
    "dynamic + mined",
    "pairwise",
    "untrained",
)
MEASURES = {
    "alone": "reranker",
    "fused": "reranker + BM25",
    "dual": "dual encoder",
    "dual_fused": "dual + BM25",
}


def joint_arms(recipe: Recipe, seeds: int = 1) -> list[Arm]:
    """The arms, each with everything of the recipe but what is compared.

    Raises ValueError for a recipe without [augment], which one of them is about.
    """
    if recipe.augment is None:
        raise ValueError("one arm trains on mined lists: give the recipe an [augment]")
    plain = {"distillation": 0.0, "in_batch": 0.0, "augment": None, "architecture": "broadcast"}
    weight = recipe.distillation or 1.0
    still = dict.fromkeys(("learning_rate", "head_learning_rate", "bias_learning_rate"), 1e-12)
    changes: dict[str, dict[str, Any]] = {
        START: {"steps": 1, **still},  # measured as all others are
        ALONE: {},
        STATIC: {"distillation": weight, "teacher": "static"},
        DYNAMIC: {"distillation": weight, "teacher": "dynamic"},
        AUGMENTED: {"distillation": weight, "teacher": "dynamic", "augment": recipe.augment},
        # From pretrained weights that no query's bias belongs to; its head starts at random.
        PAIR: {"architecture": "pair"},
    }
    return [
        Arm(name, 0.0, seed, recipe.model_copy(update={**plain, **change, "seed": seed}))
        for seed in range(seeds)
        for name, change in changes.items()
    ]


def measure_both(recipe: Recipe, folder: Path, data: Data, dev: Sequence[int]) -> dict[str, Any]:
    """Reciprocal ranks of both models after the last step, and the time of a search."""
    return ranks_of(*load_last(recipe, folder), data, dev)


@torch.no_grad()
def ranks_of(
    model: torch.nn.Module, first_stage: float, data: Data, dev: Sequence[int], depth: int = 20
) -> dict[str, Any]:
    """1 / rank of the first gold text among the window's head, by both models.

    `first` is BM25, `alone` and `fused` the reranker, `dual` and `dual_fused` the dual encoder
    (missing where the architecture has none); fused: with the first stage's standardised scores,
    the dual encoder's standardised too. `search_seconds` is the CPU time of reading one window.
    """
    model.eval()
    found: dict[str, list[float]] = {}
    seconds = 0.0
    for at in dev:
        item = data.dev[at]
        pairs = zip(item.candidates[:depth], item.first_stage[:depth], strict=True)
        window = [*zip(item.golds, item.gold_first_stage, strict=True), *pairs]
        lists = [([text for text, _ in window], [score for _, score in window])]
        rows = [data.dev_queries[at]]
        batch = make_batch(rows, lists, [set(item.golds)], data.texts, chunks=3)
        started = time.process_time()
        logits = list_logits(model, batch)[0]  # type: ignore[arg-type]
        seconds += time.process_time() - started
        first = batch.first_stage[0]
        scores = {"first": first, "alone": logits, "fused": logits + first_stage * first}
        if isinstance(model, BroadcastEncoder):
            dual = dual_logits(model, batch)[0]
            spread = dual.std().clamp(min=1e-6)
            scores |= {"dual": dual, "dual_fused": (dual - dual.mean()) / spread + first}
        for name, values in scores.items():
            found.setdefault(name, []).append(round(reciprocal_rank(values, batch.gold[0]), 4))
    return {
        **found,
        "sources": [data.dev[at].source for at in dev],
        "search_seconds": round(seconds / max(1, len(dev)), 4),
    }


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm and measure: mean and interval, and the difference to `ALONE`."""
    rows = []
    by_arm = {(r["name"], r["seed"]): r for r in results}
    for name in (START, ALONE, STATIC, DYNAMIC, AUGMENTED, PAIR):
        seeds = sorted(seed for arm, seed in by_arm if arm == name)
        shared = [seed for seed in seeds if (ALONE, seed) in by_arm]
        for measure in MEASURES:
            if not seeds or measure not in by_arm[name, seeds[0]]:
                continue
            values = np.array([by_arm[name, seed][measure] for seed in seeds])
            row: dict[str, Any] = {
                "arm": name,
                "measure": measure,
                "seeds": len(seeds),
                "queries": values.shape[1],
                "mean": float(values.mean()),
                "interval": bootstrap_interval(values.mean(0)),
                "search_seconds": by_arm[name, seeds[0]]["search_seconds"],
            }
            if shared and name != ALONE:
                one = np.array([by_arm[name, seed][measure] for seed in shared])
                two = np.array([by_arm[ALONE, seed][measure] for seed in shared])
                row["difference"] = paired_interval(one, two)
            rows.append(row)
    return rows


def joint_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `summarise` as a Markdown table, values x 100."""
    lines = [
        "| arm | " + " | ".join(MEASURES.values()) + " | time of a search |",
        "| --- |" + " --- |" * (len(MEASURES) + 1),
    ]
    times = {row["arm"]: row["search_seconds"] for row in rows}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = {row["measure"]: row for row in rows if row["arm"] == arm}
        cells = [_cell(mine[name]) if name in mine else "" for name in MEASURES]
        ratio = times[arm] / times[ALONE] if times.get(ALONE) else float("nan")
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {ratio:.2f} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    text = f"{100 * row['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    gap: Interval | None = row.get("difference")
    if gap is None:
        return text
    return f"{text}; {100 * gap.mean:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
