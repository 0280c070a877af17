"""`titlecast adapt`: train the title model further on documents that nobody judged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from indexing.records import Document as Indexed
from indexing.records import Failure, Skip
from indexing.sources.fields import FieldMap
from plugin.cli.options import CommandError, Url
from plugin.cli.train import needs_torch
from plugin.clusters import shown_address, with_scheme

if TYPE_CHECKING:
    from reranker.evaluation.collections import Document


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(adapt)


def adapt(
    url: Url,
    out: Annotated[Path, typer.Option(help="Folder of the training; an earlier one is resumed.")],
    index: Annotated[str | None, typer.Option(help="The index whose documents are used.")] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="Or a JSON Lines file, as `titlecast index` reads it.")
    ] = None,
    title_field: Annotated[str, typer.Option(help="Of the index.")] = "title",
    passage_field: Annotated[str, typer.Option(help="Of the index.")] = "passage",
    documents: Annotated[int, typer.Option(min=10, help="Use at most so many.")] = 20_000,
    queries: Annotated[int, typer.Option(min=10, help="Make at most so many queries.")] = 2000,
    start: Annotated[
        Path | None,
        typer.Option(help="A training's folder or a model folder. (default: the shipped model)"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A recipe (TOML). Without: a short, gentle training.")
    ] = None,
    guard: Annotated[
        list[Path] | None,
        typer.Option(help="A judged BEIR folder that must not get worse (repeatable)."),
    ] = None,
    name: Annotated[str, typer.Option(help="The adapted model's name.")] = "adapted-title",
    teacher: Annotated[
        bool, typer.Option(help="Whether the passage reranker grades the candidates.")
    ] = True,
    threads: Annotated[int | None, typer.Option(help="Threads. Without: all cores.")] = None,
) -> None:
    """Adapt the title model to your own documents, and say what that changed.

    Sentences and headings become queries; the passage reranker grades the titles. OUT/model is
    the adapted model's folder, OUT/report.json holds the quality before and after.
    """
    needs_torch()
    import torch

    from reranker.evaluation.collections import read_collection
    from reranker.stages import SHIPPED, PassageReranker, TitleReranker
    from reranker.training import adapt as adapting
    from reranker.training import config as configs
    from reranker.training.finish import export_trained
    from reranker.training.inputs import check_inputs, keep_inputs
    from reranker.training.loop import train
    from reranker.training.start import kind_of

    if (index is None) == (jsonl is None):
        raise CommandError("give either --index or --jsonl")
    logging.getLogger("reranker").setLevel(logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    judged = [read_collection(path) for path in guard or []]
    if len({collection.name for collection in judged}) < len(judged):
        raise CommandError("two folders of --guard have one name: name them apart")
    recipe = configs.read_recipe(config or configs.RECIPES / "adapt.toml")
    start = start or SHIPPED / "title"
    recipe = recipe.model_copy(update={"start": str(start), "backbone": kind_of(start)[1]})
    kept = out / "recipe.toml"
    text = configs.as_toml(recipe)
    if kept.exists() and kept.read_text("utf-8") != text:
        raise CommandError(f"{out} holds another adaptation; give another --out")
    inputs = {
        "--jsonl": str(jsonl.resolve()) if jsonl else None,
        # Without user and password, which are to lie in no file.
        "--index": shown_address(_index_address(url, index)) if index else None,
        "--title-field": title_field,
        "--passage-field": passage_field,
        "--documents": documents,
        "--queries": queries,
        "--teacher": teacher,
    }
    if (out / "trained-on.npy").exists():
        check_inputs(out, inputs)
    else:
        if index:
            fields = FieldMap(title=(title_field,), passage=(passage_field,))
            corpus = read_documents(_index_address(url, index), fields, documents)
        else:
            corpus = read_documents(str(jsonl), FieldMap(), documents)
        keep_inputs(out, inputs)
        grader = PassageReranker.load(threads=threads) if teacher else None
        adapting.prepare_documents(corpus, out, grader, queries, seed=recipe.seed)
        kept.write_text(text, "utf-8")

    def measure(folder: Path) -> dict[str, adapting.Quality]:
        model = TitleReranker.load(folder, threads)
        values = {"held-back documents": adapting.held_back_quality(model, out)}
        for collection in judged:
            alone, fused = adapting.guard_quality(model, collection)
            values |= {collection.name: alone, f"{collection.name}, with BM25": fused}
        return values

    if not (out / "before" / "config.json").exists():  # the start itself, exported the same way
        export_trained(out, out / "before", "before", blend=0.0)
    before = measure(out / "before")
    train(recipe, out)
    export_trained(out, out / "model", name)
    after = measure(out / "model")
    report = {what: {"before": before[what], "after": after[what]} for what in before}
    adapting.write_report(out / "report.json", report)
    table = Table("mean reciprocal rank x 100", "before", "after")
    for what, both in report.items():
        table.add_row(
            what,
            *(f"{100 * v.mean:.1f} ({100 * v.low:.1f}–{100 * v.high:.1f})" for v in both.values()),
        )
    Console().print(table)
    Console().print(f"the adapted model: {out / 'model'}", soft_wrap=True)


def _index_address(url: str, index: str) -> str:
    return f"{with_scheme(url).rstrip('/')}/{index}"


def read_documents(location: str, fields: FieldMap, most: int) -> dict[str, Document]:
    """Documents of whatever `titlecast index` reads, by id, at most so many.

    Raises CommandError, with the first reason, where there is not one.
    """
    from indexing.sources import open_source
    from plugin.clusters import connect
    from reranker.evaluation.collections import Document

    corpus: dict[str, Document] = {}
    failed = 0
    first: Failure | Skip | None = None  # a failure, if there is one
    source = open_source(location, fields=fields, connect=connect)
    for record in source.records:
        if isinstance(record, Indexed):
            corpus[record.id] = Document(record.id, record.title, record.passage)
        else:
            if first is None or (not failed and isinstance(record, Failure)):
                first = record
            failed += isinstance(record, Failure)
        if len(corpus) >= most:
            break
    why = f"; the first: {first.location}: {first.reason}" if first else ""
    if not corpus:
        raise CommandError(f"no document in {source.name} to adapt to{why}")
    if failed:
        Console(stderr=True).print(
            f"{failed} records of {source.name} could not be read{why}", soft_wrap=True
        )
    return corpus
