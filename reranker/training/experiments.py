"""Experiments that compare trainings: the same data, steps and seeds, one thing different.

Every training is an *arm*, a folder of its own below the experiment's, and leaves `result.json`
there: a finished arm is not trained again, so an interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reranker.training.config import as_toml
from reranker.training.inputs import check_inputs, keep_inputs
from reranker.training.loop import load_data, reciprocal_ranks, train
from reranker.training.start import load_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from reranker.training.config import Recipe
    from reranker.training.examples import Example
    from reranker.training.loop import Data

    Measuring = Callable[[Recipe, Path, Data, Sequence[int]], dict[str, Any]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One training of an experiment."""

    name: str  # what is compared
    noise: float  # share of the positives that a random candidate stands in for
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.name}-noise{round(100 * self.noise):02d}-seed{self.seed}"


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def run_arms(
    arms: Sequence[Arm],
    prepared: Path,
    out: Path,
    every: int = 1,
    choosing: bool = False,
    measuring: Measuring | None = None,
) -> None:
    """Train every arm that is not finished yet; `prepared` holds `train` and `dev` examples.

    Half of the dev sample is for `choosing` settings, the other half for what is reported. The
    arms' recipes may differ in anything but lengths of texts and the dev sample's size.
    `measuring` is what is done with a trained arm (`measure`).
    Raises ValueError where an arm was made by another recipe, or any with other examples.
    """
    inputs = {"--prepared": str(prepared.resolve()), "--every": every, "--choosing": choosing}
    if any(out.glob("*/arm.json")):
        check_inputs(out, inputs)
    else:
        keep_inputs(out, inputs)
    data: Data | None = None
    dev: Sequence[int] = ()
    for number, arm in enumerate(arms, start=1):
        folder = out / arm.folder
        made_by = {"recipe": as_toml(arm.recipe), "noise": arm.noise}
        kept = folder / "arm.json"
        if kept.exists() and json.loads(kept.read_text("utf-8")) != made_by:
            raise ValueError(f"{folder} was made with other settings; give another --out")
        if (folder / "result.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(made_by, indent=2) + "\n", "utf-8")
        if data is None:
            # The dev sample of seed 0 for all, so that their values can be paired by query.
            double = {"seed": 0, "check_queries": 2 * arm.recipe.check_queries}
            shared = arm.recipe.model_copy(update=double)
            data = load_data(shared, prepared, every)
            dev = range(int(choosing), len(data.dev), 2)
        started = time.process_time()
        items = list(with_noise(data.items, arm.noise, arm.seed))
        train(arm.recipe, folder, data=data._replace(items=items, dev=data.dev[:1]))
        named = {"name": arm.name, "noise": arm.noise, "seed": arm.seed}
        result = {**named, **(measuring or measure)(arm.recipe, folder, data, dev)}
        result["cpu_seconds"] = round(time.process_time() - started, 1)
        write_json(folder / "result.json", result)
        for name in ("checkpoint.pt", "best.pt"):  # 240 MB an arm, and nothing needs them again
            (folder / name).unlink(missing_ok=True)
        log.info("%d of %d: %s: %s", number, len(arms), arm.folder, np.mean(result["alone"]))


def with_noise(items: Sequence[Example], share: float, seed: int) -> Iterator[Example]:
    """In a share of the examples, make a random candidate the only positive.

    The true positives leave the example: they are in the list neither as such nor as negatives.
    """
    rng = np.random.default_rng([seed, 2])
    for item in items:
        spoilt, place = rng.random() < share, int(rng.integers(len(item.candidates)))
        if not spoilt or len(item.candidates) < 2:
            yield item
            continue
        wrong = item.candidates[place]
        noisy = replace(
            item,
            golds=[wrong],
            gold_first_stage=[item.first_stage[place]],
            candidates=item.candidates[:place] + item.candidates[place + 1 :],
            first_stage=item.first_stage[:place] + item.first_stage[place + 1 :],
            skipped=sorted({*item.skipped, *item.golds}),
        )
        if item.taught:  # by the places of the texts, which are others now
            known = item.taught_by_text
            noisy.taught = [known.get(text) for text in noisy.texts]
        yield noisy


def measure(recipe: Recipe, folder: Path, data: Data, dev: Sequence[int]) -> dict[str, Any]:
    """Reciprocal ranks `first`, `alone` and `fused` after the last step, of the sample's `dev`."""
    model, first_stage = load_last(recipe, folder)
    items, queries = [data.dev[i] for i in dev], [data.dev_queries[i] for i in dev]
    values = reciprocal_ranks(recipe, model, first_stage, items, queries, data.texts, depth=20)
    losses = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    skipped = [line["step"] for line in losses if not np.isfinite(line["loss"])]
    return {
        **{name: [round(float(v), 4) for v in each] for name, each in values.items()},
        "sources": [item.source for item in items],
        "largest_norm": max(line["norm"] for line in losses),
        "not_finite": len(skipped),
    }


def read_results(out: Path) -> list[dict[str, Any]]:
    """The results of all finished arms below a folder."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*/result.json"))]


def paired_interval(
    one: NDArray[np.float64], two: NDArray[np.float64], resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of one - two, both (seeds, queries), and its 95 % bootstrap interval.

    Seeds and queries are both drawn with replacement (Owen 2007, the pigeonhole bootstrap), so
    the interval covers other seeds as well as other queries.
    """
    difference = one - two
    seeds, queries = difference.shape
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)  # (resamples, seeds)
    columns = rng.multinomial(queries, np.full(queries, 1 / queries), resamples)
    means = np.einsum("rs,sq,rq->r", rows, difference, columns) / (seeds * queries)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))


def compare(
    results: Sequence[Mapping[str, Any]], first: str, second: str, measure: str = "alone"
) -> list[dict[str, Any]]:
    """One row per noise level: both arms' means and second - first with its interval.

    Only seeds count that both have finished.
    """
    rows = []
    for noise in sorted({result["noise"] for result in results}):
        arms = {(r["name"], r["seed"]): r for r in results if r["noise"] == noise}
        seeds = sorted(s for name, s in arms if name == first and (second, s) in arms)
        if not seeds:
            continue
        one, two = (np.array([arms[n, s][measure] for s in seeds]) for n in (first, second))
        before = np.array([arms[first, s]["first"] for s in seeds])
        rows.append(
            {
                "noise": noise,
                "seeds": seeds,
                "queries": one.shape[1],
                "first_stage": float(before.mean()),
                first: float(one.mean()),
                second: float(two.mean()),
                "difference": paired_interval(two, one)._asdict(),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], first: str, second: str) -> str:
    """The rows of `compare` as a Markdown table, values x 100."""
    lines = [
        f"| noise | seeds | {first} | {second} | difference (95 % interval) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gap = row["difference"]
        lines.append(
            f"| {row['noise']:.0%} | {len(row['seeds'])} | {100 * row[first]:.1f} "
            f"| {100 * row[second]:.1f} | {100 * gap['mean']:+.1f} "
            f"({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}) |"
        )
    return "\n".join(lines)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON: complete, or not there at all."""
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    part.replace(path)
