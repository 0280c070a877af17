"""`titlecast experiment …`: comparisons of trainings that anyone can run again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markdown import Markdown

from plugin.cli.options import CommandError
from plugin.cli.train import needs_torch

if TYPE_CHECKING:
    from reranker.training.config import Recipe

Out = Annotated[Path, typer.Option(help="The experiment's folder; an earlier one is resumed.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder that the recipe's paths start from; or --prepared.")
]
Prepared = Annotated[
    Path | None, typer.Option(help="A training's folder whose prepared examples are used.")
]
Config = Annotated[Path | None, typer.Option(help="The recipe. Without: the experiment's own.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds.")]
Every = Annotated[int, typer.Option(min=1, help="Use one training example in so many.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads. Without: all cores.")]

Choosing = Annotated[
    bool, typer.Option("--choosing", help="Measure on other dev queries, to choose settings by.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    experiments = typer.Typer(help="Compare ways to train.", no_args_is_help=True)
    experiments.command("sigmoid-trick")(sigmoid_trick)
    experiments.command("pairwise")(pairwise)
    experiments.command("joint")(joint)
    app.add_typer(experiments, name="experiment")


def sigmoid_trick(
    out: Out,
    data: Data = None,
    prepared: Prepared = None,
    config: Config = None,
    seeds: Seeds = 3,
    first_seed: Annotated[int, typer.Option(help="The lowest seed.")] = 0,
    noise: Annotated[
        list[float] | None,
        typer.Option(min=0.0, max=1.0, help="Shares of wrong positives (0, 0.1, 0.2, 0.4)."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the Sigmoid Trick.")] = 4.0,
    margin: Annotated[float, typer.Option(help="Of the Sigmoid Trick.")] = 0.0,
    every: Every = 1,
    choosing: Choosing = False,
    only: Annotated[
        Literal["softmax", "sigmoid-trick"] | None,
        typer.Option(help="Train this loss's arms alone."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Compare softmax cross-entropy with the Sigmoid Trick, on clean and on noisy labels."""
    needs_torch()
    from reranker.training.config import changed
    from reranker.training.experiments import Arm, run_arms

    recipe, folder = start(config, "sigmoid-trick", data, prepared, out, threads)
    losses: dict[str, dict[str, Any]] = {
        "softmax": {"loss": "softmax"},
        "sigmoid-trick": {"loss": "sigmoid-trick", "temperature": temperature, "margin": margin},
    }
    arms = [
        Arm(name, share, seed, changed(recipe, **changes, seed=seed))
        for seed in range(first_seed, first_seed + seeds)
        for share in noise or (0.0, 0.4, 0.2, 0.1)
        for name, changes in losses.items()
        if only in (None, name)
    ]
    run_arms(arms, folder, out, every, choosing)
    show(out, "softmax", "sigmoid-trick")


def pairwise(
    out: Out,
    data: Data = None,
    prepared: Prepared = None,
    config: Config = None,
    seeds: Seeds = 1,
    every: Every = 1,
    titles: Annotated[int, typer.Option(min=1, help="Titles that are scored and timed.")] = 100,
    threads: Threads = None,
) -> None:
    """Compare ETR with an ordinary pairwise cross-encoder on titles, in quality and time."""
    needs_torch()
    from reranker.training import experiments, pairwise

    recipe, folder = start(config, "pairwise", data, prepared, out, threads)
    arms = pairwise.pairwise_arms(recipe, range(seeds))
    experiments.run_arms(arms, folder, out, every, measuring=pairwise.measure_and_export(folder))
    show(out, pairwise.PAIR, pairwise.BROADCAST)
    exported = {arm.name: out / arm.folder / "model" for arm in arms[:2]}
    times = pairwise.time_models(exported, folder, recipe, titles)
    experiments.write_json(out / "times.json", {"titles": titles, "milliseconds": times})
    ratio = times[pairwise.PAIR] / times[pairwise.BROADCAST]
    Console(soft_wrap=True, highlight=False).print(
        f"{titles} titles, int8, one thread, CPU time: pairwise {times[pairwise.PAIR]:.1f} ms, "
        f"broadcast {times[pairwise.BROADCAST]:.1f} ms, {ratio:.1f} times less"
    )


def joint(
    out: Out,
    data: Data = None,
    prepared: Prepared = None,
    config: Config = None,
    seeds: Seeds = 1,
    every: Every = 1,
    threads: Threads = None,
) -> None:
    """Compare the passage reranker alone with its joint trainings, and with the pairwise form."""
    needs_torch()
    from reranker.training import experiments
    from reranker.training import joint as ablation

    recipe, folder = start(config, "joint", data, prepared, out, threads)
    arms = ablation.joint_arms(recipe, seeds)
    experiments.run_arms(arms, folder, out, every, measuring=ablation.measure_both)
    rows = ablation.summarise(experiments.read_results(out))
    keep(out, rows, ablation.joint_table(rows))


def start(
    config: Path | None,
    name: str,
    data: Path | None,
    prepared: Path | None,
    out: Path,
    threads: int | None,
) -> tuple[Recipe, Path]:
    """The experiment's recipe, and the folder of its examples, which are made if need be."""
    import torch

    from reranker.training import config as configs
    from reranker.training.prepare import prepare_once

    logging.getLogger("reranker").setLevel(logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    recipe = configs.read_recipe(config or configs.RECIPES / "experiments" / f"{name}.toml")
    if prepared is not None:
        return recipe, prepared
    if data is None:
        raise CommandError("give --data, the folder that the recipe's paths start from")
    folder = out / "prepared"
    prepare_once(recipe, data, folder)
    return recipe, folder


def show(out: Path, first: str, second: str) -> None:
    """Compare the finished arms below `out`."""
    from reranker.training import experiments

    rows = experiments.compare(experiments.read_results(out), first, second)
    keep(out, rows, experiments.table(rows, first, second))


def keep(out: Path, rows: Any, table: str) -> None:
    """Print a result's Markdown table, and keep both forms of it below `out`."""
    from reranker.training.experiments import write_json

    (out / "table.md").write_text(table + "\n", "utf-8")
    write_json(out / "table.json", rows)
    Console().print(Markdown(table))
