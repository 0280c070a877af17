"""`titlecast train`, `titlecast export` and `titlecast fuse`: how the shipped weights are made."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from plugin.cli.options import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reranker.training.config import Recipe

# "joint" is the passage stage's model together with its dual encoder.
Task = Literal["title", "passage", "joint"]
Precision = Literal["int8", "fp32"]
Exclude = Annotated[
    list[Path] | None,
    typer.Option(help="JSON Lines of queries never to be used, by id and by text (repeatable)."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command()(export)
    app.command()(fuse)


def train(
    task: Annotated[Task, typer.Argument(help="Which stage's model.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder that the recipe's paths start from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The training's folder; an earlier one is resumed.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A recipe (TOML). Without: the shipped model's.")
    ] = None,
    exclude: Exclude = None,
    threads: Annotated[int | None, typer.Option(help="Threads. Without: all cores.")] = None,
    stop_at: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step; resume later.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost, and do nothing.")
    ] = False,
    teraflops: Annotated[
        list[float] | None,
        typer.Option(help="What a machine sustains, for the time in --dry-run (repeatable)."),
    ] = None,
) -> None:
    """Train a model: prepare candidates once, then train, resuming where a training stopped."""
    needs_torch()
    import torch

    from reranker.training import config as configs
    from reranker.training.loop import train as run
    from reranker.training.prepare import prepare_once, sources_of
    from reranker.training.processes import find_processes

    logging.getLogger("reranker").setLevel(logging.INFO)
    recipe_path = config or configs.RECIPES / f"{task}.toml"
    recipe = configs.read_recipe(recipe_path)
    wanted = "passage" if task == "joint" else task
    if recipe.task != wanted:
        raise CommandError(f"{recipe_path} is a recipe for {recipe.task}s; give one for {wanted}s")
    if task == "joint" and not recipe.distillation:
        raise CommandError(
            f"{recipe_path} trains no dual encoder: give it `distillation = 1.0`, "
            "or use `titlecast train passage`"
        )
    if threads:
        torch.set_num_threads(threads)
    if dry_run:
        _say_cost(recipe, teraflops or [])
        return
    if data is None or out is None:
        raise CommandError("give --data, the folder that the recipe's paths start from, and --out")
    kept = out / "recipe.toml"
    if kept.exists() and kept.read_text("utf-8") != recipe_path.read_text("utf-8"):
        raise CommandError(
            f"{out} holds a training of another recipe; give another --out, or its {kept.name}"
        )
    with find_processes().main_process_first():  # of several, the first prepares for all
        prepare_once(recipe, data, out, sources_of(exclude or []))
        if not kept.exists():  # also where another training's examples were copied here
            kept.write_text(recipe_path.read_text("utf-8"), "utf-8")
    best = run(recipe, out, stop_at)
    Console().print(f"best weights so far: {best}")


def _say_cost(recipe: Recipe, teraflops: Sequence[float]) -> None:
    """Print what a training would cost, and its time here and at given speeds."""
    from reranker.training.cost import cost_of, measure_speed
    from reranker.training.start import load_any, new_model

    model = new_model(recipe)
    folder = recipe.taught_by.folder if recipe.taught_by else None
    teacher = load_any(Path(folder)) if folder and Path(folder).is_dir() else None
    cost, here = cost_of(recipe, model, teacher), measure_speed(recipe, model)
    texts = recipe.queries_per_step * recipe.accumulate * recipe.lists.size
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{cost.steps:,} steps of {texts:,} texts of {recipe.lists.max_text_tokens} tokens: "
        f"at most {cost.per_step / 1e12:.3g} TFLOP a step, {cost.total / 1e15:.3g} PFLOP in all"
    )
    if folder and teacher is None:
        console.print(f"not counted: what {folder} takes to teach, which is not there yet")
    console.print(
        f"measured on this machine's CPU: {here:.3g} TFLOP/s, so {cost.hours(here):,.0f} hours"
    )
    for speed in teraflops:
        console.print(f"at {speed:g} TFLOP/s sustained: {cost.hours(speed):,.2g} hours")


def export(
    training: Annotated[Path, typer.Argument(help="A training's folder.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    name: Annotated[str, typer.Option(help="The name that answers and reports show.")],
    precision: Annotated[Precision, typer.Option()] = "int8",
    blend: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the trained weights; the rest is the start."),
    ] = 1.0,
    average: Annotated[
        bool, typer.Option("--average", help="Take the mean of the best and the last weights.")
    ] = False,
) -> None:
    """Export a training's best weights as a model folder for serving."""
    needs_torch()
    from reranker.training.finish import export_trained

    export_trained(training, out, name, precision, blend, average)
    config = json.loads((out / "config.json").read_text("utf-8"))
    Console().print(
        f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.1f} MB; its order of dev "
        f"lists against the training's, in fp32: Kendall tau {config['kendall_tau']:.3f}",
        soft_wrap=True,
    )


def fuse(
    model: Annotated[Path, typer.Argument(help="Folder with title/ and passage/.")],
    data: Annotated[Path, typer.Option(help="Folder that the recipe's paths start from.")],
    config: Annotated[
        Path | None,
        typer.Option(help="The recipe whose dev queries are used. Without: title.toml."),
    ] = None,
    queries: Annotated[int, typer.Option(min=10, help="Dev queries per query set.")] = 60,
    exclude: Exclude = None,
    sentences: Annotated[
        list[str] | None,
        typer.Option(
            help="A corpus below --data, of which sentences, taken out of their documents, are "
            "queries, too: texts that nobody judged, of other domains for example (repeatable)."
        ),
    ] = None,
    stop_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Read no more passages where those unread are expected to hold less than this "
            "share of the relevance. 0: always read all.",
        ),
    ] = 0.05,
) -> None:
    """Fit how the stages' scores are combined and when passages are enough, beside the models."""
    needs_torch()
    from reranker import stopping
    from reranker.evaluation.contamination import trained_on
    from reranker.stages import PassageReranker, TitleReranker
    from reranker.training import config as configs
    from reranker.training.fusing import Scorer, fit_fusion, score_windows
    from reranker.training.prepare import sources_of
    from reranker.training.stopping import fit_stopping, try_stopping

    for corpus in sentences or []:
        if not (data / corpus).exists():
            raise CommandError(
                f"There is no {data / corpus}; --sentences names a corpus by its path below --data."
            )
    path = config or configs.RECIPES / "title.toml"
    windows = score_windows(
        configs.read_recipe(path),
        data,
        Scorer(TitleReranker.load(model / "title"), PassageReranker.load(model / "passage")),
        queries,
        exclude=sources_of(exclude or []),
        seen=trained_on(model),
        sentences=sentences or [],
    )
    fusion = fit_fusion(windows)
    fusion.write(model / "fusion.json")
    rule = fit_stopping(windows, fusion, stop_share)
    if stop_share > 0:
        rule.write(model / stopping.FILE)
    else:
        (model / stopping.FILE).unlink(missing_ok=True)
    console = Console()
    console.print(fusion)
    console.print(rule)
    table = Table("stop at a share of", "passages read, of 20", "nDCG@10 lost", "by its own scores")
    for share in sorted({0.01, 0.02, 0.05, 0.1, 0.2, *([stop_share] if stop_share else [])}):
        tried = try_stopping(windows, fusion, rule._replace(share=share))
        table.add_row(
            f"{share:g}",
            f"{tried.read:.1f}",
            f"{100 * tried.lost:.2f} ± {100 * tried.error:.2f}",
            f"{100 * tried.lost_by_score:.2f}",
        )
    console.print(table)


def needs_torch() -> None:
    """Raise CommandError, with the remedy, where the `train` extra is not installed."""
    missing = [
        name for name in ("torch", "transformers", "onnx") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise CommandError(
            f"training needs {', '.join(missing)}; "
            "install them with `pip install 'titlecast[train]'`"
        )
