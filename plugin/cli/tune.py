"""`titlecast tune`: measure this machine and these texts, and write the sidecar's settings."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from indexing.records import Document
from indexing.sources import open_source
from indexing.sources.fields import lookup
from plugin.cli.options import CommandError, Url, require_folders
from plugin.clusters import connect
from plugin.pipelines import Pipeline
from plugin.tuning import (
    DEPTHS,
    MOST_CACHE_MB,
    DepthTime,
    ThreadPoint,
    Tuned,
    Window,
    best,
    bytes_per_title,
    choose,
    environment,
    fewest_threads,
    measure_depth,
    measure_threads,
    others,
)
from reranker import Cascade, Hit
from reranker.cores import usable_cores
from reranker.evaluation import plots
from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import Collection, read_collection
from reranker.evaluation.collections import Document as Judged
from reranker.evaluation.reports import DepthPoint, sweep_depths
from reranker.evaluation.runs import Run, first_stage

_MEASURE = "nDCG@10"
_PIPELINE = Pipeline()
_PIPELINE_MS = int(_PIPELINE.timeout.removesuffix("ms"))
_NODE_MS = 2000  # the plugin's limit of any call, as shipped


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tune)


def tune(
    url: Url,
    out: Annotated[Path, typer.Option(help="The file of settings to write.")] = Path(
        "titlecast.env"
    ),
    beir: Annotated[
        Path | None, typer.Option(help="A judged BEIR folder: quality is measured, too.")
    ] = None,
    queries: Annotated[
        str | None, typer.Option(help="Which of the folder's query sets or splits.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="An index to draw texts from. (default: Python's docs)")
    ] = None,
    title_field: Annotated[str, typer.Option(help="The index's field of titles.")] = "title",
    passage_field: Annotated[str, typer.Option(help="The index's field of passages.")] = "passage",
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A model folder. Of several the best within the budget is chosen: name the best "
            "first. (default: the shipped models; repeatable)"
        ),
    ] = None,
    budget_ms: Annotated[
        float, typer.Option(min=1, help="What reranking may add to a search, in milliseconds.")
    ] = 200.0,
    candidates: Annotated[int, typer.Option(min=1, help="Hits whose titles are read.")] = 100,
    searches: Annotated[int, typer.Option(min=1, help="Searches to measure with.")] = 8,
    plot: Annotated[
        Path | None, typer.Option(help="Draw quality against depth and time; needs --beir.")
    ] = None,
) -> None:
    """Measure how fast this machine reranks your texts, and write the settings that fit.

    `titlecast serve --config titlecast.env` reads them. How many passages a search may read
    within the budget is a pipeline's option, which is printed. Measure on a machine that does
    what it will do when it serves.
    """
    if queries and not beir:
        raise CommandError("--queries names a query set of a judged folder: add --beir")
    if beir and index:
        raise CommandError("give --beir or --index, not both")
    if plot and not beir:
        raise CommandError("--plot draws quality, which needs judged queries: add --beir")
    require_folders(out, plot)
    if kept := others(out):
        raise CommandError(
            f"{out} holds other settings, which would be lost ({', '.join(kept)}): give another "
            "--out, and copy what it then holds"
        )
    console = Console()
    try:
        if plot:
            plots.require_drawable(plot)
        cores = usable_cores()
        depths = [depth for depth in DEPTHS if depth <= candidates]
        judged: _Judged | None = None
        if beir:
            judged = _judged(beir, queries, candidates, searches)
            windows, titles = judged.windows, judged.titles
        elif index:
            windows, titles = _from_index(
                url, index, title_field, passage_field, candidates, searches
            )
        else:
            windows, titles = _from_python(candidates, searches)
    except (ImportError, ValueError) as error:  # an extra is missing, or texts: it says which
        raise CommandError(str(error)) from error

    models: list[Path | None] = [*model] if model else [None]
    shallow = min(10, candidates)  # passages to measure threads with
    pages = []
    for folder in models:
        alone = measure_threads(folder, windows, cores, shallow, rounds=1)
        threads = fewest_threads(alone)
        cascade = Cascade.load(folder, threads, cache_mb=MOST_CACHE_MB)
        title_bytes = bytes_per_title(cascade, windows)
        times = [DepthTime(depth, measure_depth(cascade, windows, depth)) for depth in depths]
        points: list[DepthPoint] = []
        if judged:
            points = sweep_depths(cascade, judged.run, judged.collection, depths, [_MEASURE])
            quality = {point.depth: point.estimates[_MEASURE].mean for point in points}
            times = [time._replace(quality=quality[time.depth]) for time in times]
        tuned = choose(threads, times, title_bytes, titles, cores, budget_ms)
        pages.append(_Page(folder, cascade.name, shallow, alone, times, points, tuned))
        console.print(_table(pages[-1]))
    page = pages[best([(page.tuned, page.chosen) for page in pages])]
    if plot and judged:
        plots.draw_depths(plot, page.points, _MEASURE, judged.collection.name)
    told = _told(page, len(windows), candidates, budget_ms)
    out.write_text(environment(page.tuned, told, page.model), "utf-8")
    for line in told:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written: {out}; use it with `titlecast serve --config {out}`", soft_wrap=True)


class _Judged(NamedTuple):
    """A judged collection and the first stage's run over it."""

    collection: Collection
    run: Run
    windows: list[Window]
    titles: int  # different ones, in all


class _Page(NamedTuple):
    """What was measured of one model, and chosen for it."""

    model: Path | None
    name: str
    shallow: int  # passages that threads were measured with
    threads: list[ThreadPoint]
    times: list[DepthTime]
    points: list[DepthPoint]
    tuned: Tuned

    @property
    def chosen(self) -> DepthTime:
        return next(time for time in self.times if time.depth == self.tuned.passage_depth)


def _judged(folder: Path, queries: str | None, candidates: int, searches: int) -> _Judged:
    """Queries of a judged collection, with candidates."""
    collection = read_collection(folder, name=queries).sample(max(searches, 50))
    run = first_stage(BM25.over(collection.corpus), collection.judged, candidates).run
    windows = []
    for query in collection.judged[:searches]:
        hits = [_hit(id, collection.corpus[id], score) for id, score in run[query.id]]
        if hits:
            windows.append(Window(query.text, hits))
    titles = len({document.title for document in collection.corpus.values()})
    return _Judged(collection, run, _some(windows, folder), titles)


def _from_python(candidates: int, searches: int) -> tuple[list[Window], int]:
    """Windows over the running Python's documentation: a title's words are the query."""
    corpus = {
        record.id: Judged(record.id, record.title, record.passage)
        for record in open_source("pydoc").records
        if isinstance(record, Document)
    }
    engine = BM25.over(corpus)
    windows = []
    drawn = random.Random(0)  # noqa: S311 - no secret
    for id in drawn.sample(sorted(corpus), min(searches, len(corpus))):
        text = corpus[id].title.rpartition(":")[2].strip() or corpus[id].title
        hits = [
            _hit(found, corpus[found], score) for found, score in engine.search(text, candidates)
        ]
        if hits:
            windows.append(Window(text, hits))
    return _some(windows, "Python's documentation"), len({d.title for d in corpus.values()})


def _from_index(
    url: str, index: str, title_field: str, passage_field: str, candidates: int, searches: int
) -> tuple[list[Window], int]:
    """Windows over an index: titles drawn at random are the queries."""
    client = connect(url)
    try:
        drawn = client.search(
            index=index,
            body={
                "size": searches,
                "query": {
                    "function_score": {
                        "query": {"exists": {"field": title_field}},
                        "random_score": {"seed": 0, "field": "_seq_no"},
                    }
                },
            },
            params={"search_pipeline": "_none"},
        )
        windows = []
        for one in drawn["hits"]["hits"]:
            text = _value(one, title_field)
            if not text.strip():
                continue
            body = {
                "size": candidates,
                "query": {"multi_match": {"query": text, "fields": [title_field, passage_field]}},
            }
            found = client.search(index=index, body=body, params={"search_pipeline": "_none"})
            hits = [
                Hit(
                    hit["_id"],
                    _value(hit, title_field),
                    _value(hit, passage_field),
                    float(hit["_score"]),
                )
                for hit in found["hits"]["hits"]
            ]
            windows.append(Window(text, hits))
        total = int(client.count(index=index)["count"])
    finally:
        client.close()
    return _some(windows, f"the index {index}, field {title_field}"), total


def _some(windows: list[Window], source: object) -> list[Window]:
    if not any(hit.title.strip() for window in windows for hit in window.hits):
        raise CommandError(f"no title was found in {source}: name another, or its fields")
    return windows


def _value(hit: dict[str, Any], path: str) -> str:
    value = lookup(hit.get("_source") or {}, path)  # which an index need not keep
    if isinstance(value, list):
        value = value[0] if value else None
    return "" if value is None else str(value)


def _hit(id: str, document: Judged, score: float) -> Hit:
    return Hit(id, document.title, document.text, score)


def _told(page: _Page, windows: int, candidates: int, budget_ms: float) -> list[str]:
    tuned, chosen = page.tuned, page.chosen
    alone = next(point for point in page.threads if point.threads == tuned.threads)
    options = f"--passage-depth {tuned.passage_depth}"
    if candidates != _PIPELINE.window:
        options += f" --window {candidates}"
    # What is aimed at is a median; the limit is to end what takes far longer.
    if (limit := math.ceil(2 * budget_ms)) > _PIPELINE_MS:
        options += f" --timeout {limit}ms"
    told = [
        f"Measured {page.name} with {windows} searches of up to {candidates} hits each.",
        f"Up to {alone.per_second:.1f} searches a second that read {page.shallow} passages each, "
        f"{tuned.max_concurrent} at a time.",
        f"Within {budget_ms:g} ms: titlecast pipeline install {options} "
        f"({chosen.milliseconds:.0f} ms at the median)",
    ]
    if limit > _NODE_MS:
        told.append(
            f"The plugin waits {_NODE_MS} ms at most: raise title_rerank.sidecar.timeout, too"
        )
    if not tuned.within_budget:
        told[2:] = [
            f"Not even the titles alone fit {budget_ms:g} ms ({chosen.milliseconds:.0f} ms): "
            "read fewer hits (--candidates), or allow more (--budget-ms)"
        ]
    return told


def _table(page: _Page) -> Table:
    table = Table(page.name, "ms, one search", "searches/s", _MEASURE)
    for point in page.threads:
        table.add_row(
            f"{point.threads} threads, {page.shallow} passages",
            f"{point.alone_ms:.1f}",
            f"{point.per_second:.1f}",
        )
    for time in page.times:
        quality = "" if time.quality is None else f"{time.quality:.3f}"
        label = f"{time.depth} passages, titles seen before"
        table.add_row(label, f"{time.milliseconds:.1f}", "", quality)
    return table
