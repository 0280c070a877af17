"""`titlecast curves`: how trainings went, as a picture and a table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from plugin.cli.options import CommandError, require_folders
from reranker.evaluation import plots


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(curves)


def curves(
    trainings: Annotated[list[Path], typer.Argument(help="Folders of trainings.")],
    plot: Annotated[
        Path | None, typer.Option(help="Draw loss and quality against steps into this file.")
    ] = None,
) -> None:
    """Show the learning curves that trainings logged: the dev split's quality at every look."""
    require_folders(plot)
    if plot is not None:
        plots.require_drawable(plot)
    alone = Counter(folder.name for folder in trainings)
    logs = {
        folder.name if alone[folder.name] == 1 else str(folder): read_log(folder)
        for folder in trainings
    }
    table = Table("training", "step", "loss", "first stage", "alone", "fused")
    for name, lines in logs.items():
        for line in lines:
            if "fused" in line:
                values = (line[key] for key in ("loss", "first", "alone", "fused"))
                table.add_row(name, str(line["step"]), *(f"{value:.4f}" for value in values))
    Console().print(table)
    if plot is not None:
        plots.draw_curves(plot, logs)
        Console().print(f"drawn: {plot}", soft_wrap=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, by step; where a step was done again, its last line."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise CommandError(f"{path} is missing: give a folder of `titlecast train`")
    lines = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    by_step = {line["step"]: line for line in lines}
    return [by_step[step] for step in sorted(by_step)]
