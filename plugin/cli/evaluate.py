"""`titlecast evaluate`: first stage, opponents and our stages, measured on judged queries."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from plugin.cli.options import CommandError, require_folders
from plugin.sidecar.models import hash_models
from reranker import Cascade, PassageReranker, TitleReranker
from reranker.dual import DualEncoder
from reranker.evaluation import plots
from reranker.evaluation.baselines import Encoder, Vectors, load_bi_encoder, normalise
from reranker.evaluation.bm25 import BM25, Field, text_of
from reranker.evaluation.collections import FORMATS, Collection, read_collection
from reranker.evaluation.contamination import fingerprint
from reranker.evaluation.contamination import trained_on as fingerprints_of
from reranker.evaluation.hybrid import RRF_CONSTANT, DenseIndex, Hybrid, kept_vectors
from reranker.evaluation.measures import measure_rankings
from reranker.evaluation.reports import (
    Comparison,
    DepthPoint,
    Report,
    Row,
    compare_runs,
    measure_runs,
    sweep_depths,
)
from reranker.evaluation.runs import (
    Reranker,
    Reranking,
    Run,
    by_cascade,
    by_passage,
    by_title,
    cut,
    fuse,
    oracle,
    rerank,
)
from reranker.evaluation.runs import first_stage as search_all
from reranker.evaluation.split import side
from reranker.evaluation.trec import read_run, write_run
from reranker.stages import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE_MEASURES = "KILT-Rprec,KILT-R@5,R@5,R@20"
_PASSAGE_MEASURES = "nDCG@10,RR@10,R@20,R@100"
_DEPTHS = (0, 5, 10, 20, 50, 100)

_Runs: TypeAlias = (
    "dict[str, tuple[Run, float | None]]"  # name -> run, mean milliseconds of one query
)


class Stage(Enum):
    """How far our own rows go."""

    bm25 = "bm25"
    title = "title"
    passage = "passage"
    cascade = "cascade"


class Split(Enum):
    """Sides of the split by a query's text: what choices are made on, and what is reported."""

    all = "all"
    dev = "dev"
    test = "test"


class FirstStage(Enum):
    """Where the candidates come from."""

    bm25 = "bm25"
    dense = "dense"
    hybrid = "hybrid"


class Neighbours(Enum):
    """How the nearest vectors are found."""

    exact = "exact"
    hnsw = "hnsw"


class Baseline(Enum):
    """Opponents besides the first stage."""

    bi_encoder = "bi-encoder"


def register(app: typer.Typer) -> None:
    """Add `evaluate` to the command line."""
    app.command()(evaluate)


def evaluate(
    data: Annotated[Path, typer.Argument(help="A BEIR, MS MARCO or TREC folder, a KILT file …")],
    format: Annotated[  # noqa: A002
        str | None, typer.Option(help=f"One of {', '.join(FORMATS)}. (default: guessed)")
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="More documents: a BEIR folder, a KILT or HoVer file … (repeatable)"),
    ] = None,
    queries: Annotated[
        str | None, typer.Option(help="Which of the folder's query sets or splits.")
    ] = None,
    pages: Annotated[
        bool, typer.Option("--pages", help="Rank pages by their titles instead of passages.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(help="Candidates from this TREC run file instead of BM25.")
    ] = None,
    first_stage: Annotated[
        FirstStage,
        typer.Option(help="BM25, the passage model's dual encoder, or both (reciprocal ranks)."),
    ] = FirstStage.bm25,
    neighbours: Annotated[
        Neighbours, typer.Option(help="How the dual encoder's nearest passages are found.")
    ] = Neighbours.exact,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Keep the documents' vectors in this file, and read them from it."),
    ] = None,
    stage: Annotated[Stage, typer.Option(help="How far to rerank.")] = Stage.cascade,
    candidates: Annotated[int, typer.Option(min=1, help="Hits taken from the first stage.")] = 100,
    passage_depth: Annotated[
        int, typer.Option(min=0, help="Hits that the passage stage reads.")
    ] = 20,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Only this many judged queries, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sample, intervals and tests.")] = 0,
    trained_on: Annotated[
        bool, typer.Option("--trained-on", help="Measure queries of the models' training too.")
    ] = False,
    split: Annotated[
        Split, typer.Option(help="Only this side of the split that training keeps to.")
    ] = Split.all,
    baseline: Annotated[
        Baseline | None,
        typer.Option(help="Add an opponent's rows; beside a dense first stage its own search too."),
    ] = None,
    baseline_model: Annotated[
        str | None,
        typer.Option(help="sentence-transformers name or folder. (default: all-MiniLM-L6-v2)"),
    ] = None,
    fusion_weight: Annotated[
        float, typer.Option(min=0, max=1, help="The other's share in first stage + other.")
    ] = 0.5,
    measures: Annotated[
        str | None,
        typer.Option(
            help="ir-measures names, KILT-Rprec, KILT-R@5 …, by commas. "
            f"(default: {_PASSAGE_MEASURES}; for pages {_PAGE_MEASURES})"
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of the models, or of one stage's. (default: those shipped)"),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="The models before: a folder like --model's, compared over the same candidates."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of our models.")] = None,
    stop_words: Annotated[
        bool, typer.Option(help="Whether BM25 leaves out English stop words.")
    ] = True,
    stem: Annotated[bool, typer.Option(help="Whether BM25 stems; needs PyStemmer.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this JSON file.")
    ] = None,
    save_run: Annotated[
        Path | None, typer.Option(help="Write the last of our runs as a TREC run file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw quality against passage depth and time.")
    ] = None,
) -> None:
    """Measure first stage, opponents and our stages on the same queries and candidates.

    Rows after the first are compared with it: p is that of a paired randomisation test.
    Intervals are 95 % bootstrap intervals over the queries. `ceiling` ranks the same
    candidates as well as they can be. `--against` adds a table of what another folder's models
    make of them, with the difference query by query, its interval and its p.
    """
    if run and first_stage is not FirstStage.bm25:
        raise CommandError("--run gives the candidates itself; leave --first-stage out.")
    if plot and stage is not Stage.cascade:
        raise CommandError("--plot draws passage depths; add --stage cascade.")
    if against and stage is Stage.bm25:
        raise CommandError("--against compares our stages; choose another --stage than bm25.")
    require_folders(json_file, save_run, plot, vectors)
    if first_stage is FirstStage.bm25 and (vectors or neighbours is not Neighbours.exact):
        raise CommandError(
            "--vectors and --neighbours are the dual encoder's; add --first-stage dense or hybrid."
        )
    if baseline_model and not baseline:
        raise CommandError("--baseline-model names the opponent; add --baseline bi-encoder.")
    console = Console()
    try:
        if plot:
            plots.require_drawable(plot)
        collection = read_collection(data, format, queries, corpus or ())
        read = len(collection.queries)
        collection = collection.by_page() if pages and not collection.pages else collection
        default = _PAGE_MEASURES if collection.pages else _PASSAGE_MEASURES
        names = [name.strip() for name in (measures or default).split(",") if name.strip()]
        judged = len(collection.judged)
        measured = (
            [] if stage is Stage.bm25 else [model or SHIPPED, *([against] if against else [])]
        )
        if first_stage is not FirstStage.bm25:
            measured.append(_dual_folder(model))
        seen: set[int] = set()
        if not trained_on:
            seen = seen.union(*(fingerprints_of(folder) or () for folder in measured))
        collection = collection.only(
            lambda text: (
                fingerprint(text) not in seen and (split is Split.all or side(text) == split.value)
            )
        )
        left_out = judged - len(collection.judged)
        collection = collection.sample(sample or len(collection.queries), seed)
        if not collection.queries:
            raise CommandError(
                f"None of {read} queries is judged and left to measure ({left_out} are trained on "
                "or of another split); choose others with --queries, or add --trained-on."
            )
        _require_measurable(names, collection)
        loaded = _load(stage, model, threads)
        models = {"reranker": loaded.name} if loaded.name else {}
        other = _load(stage, against, threads) if against else None
        if other:
            models["before"] = other.name
        title_only = collection.pages or stage is Stage.title

        first = _first_stage(collection, run, candidates, stop_words, stem)
        runs: _Runs = {first.name: (first.run, first.milliseconds)}
        opponent = load_bi_encoder(baseline_model) if baseline else None
        theirs: Vectors | None = None  # of all documents, where the opponent searches them
        if first_stage is not FirstStage.bm25:
            words = first.bm25 if first_stage is FirstStage.hybrid else None
            made_by = hash_models(_dual_folder(model))  # first: a folder may change meanwhile
            encoder = DualEncoder.load(_dual_folder(model), threads)
            models["dual encoder"] = encoder.name
            with Progress(console=Console(stderr=True), transient=True) as progress:
                dense = _dense(collection, encoder, made_by, neighbours, vectors, progress)
            found = _first_stages(collection, dense, words, candidates, neighbours)
            if opponent:
                theirs = Vectors(opponent, {k: text_of(d) for k, d in collection.corpus.items()})
                found.insert(0, _bi_encoder_search(collection, opponent, theirs, candidates))
            runs |= {one.name: (one.run, one.milliseconds) for one in found}
            first = found[-1]
        # Pages have a text where some corpus happened to bring one, and gold pages least of all.
        texts = stage is not Stage.title or not collection.pages
        seen_by_ours = collection if texts else _titles_alone(collection)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bench = _Bench(seen_by_ours, first.run, progress)
            if opponent:
                models["bi-encoder"] = baseline_model or "all-MiniLM-L6-v2"
                if theirs is None or title_only:
                    theirs = _vectors(bench, opponent, title_only)
                runs |= _bi_encoder(bench, first.name, theirs, fusion_weight)
            ours = _ours(bench, stage, passage_depth, loaded)
            before = _ours(bench, stage, passage_depth, other, "before: ") if other else {}
            after = dict(ours)
            if stage is Stage.passage and ours:
                (alone,) = ours.values()
                # Hits that it did not read have a place in its run, but no logit to be fused.
                was_read = cut(alone[0], collection.queries, passage_depth)
                both = fuse([bench.candidates, was_read], [1 - fusion_weight, fusion_weight])
                ours[f"{first.name} + passage stage ({fusion_weight:g})"] = (both, None)
            runs |= ours
        last = list(ours.values())[-1][0] if ours else first.run
        runs["ceiling"] = (oracle(first.run, collection), None)

        rows = measure_runs(collection, runs, names, seed)
        comparisons = compare_runs(collection, before, after, names, seed) if other else []
        points: list[DepthPoint] = []
        if plot and loaded.cascade:
            swept = [depth for depth in _DEPTHS if depth <= candidates]
            points = sweep_depths(loaded.cascade, first.run, collection, swept, names, seed)
    except ImportError as error:  # an extra is missing; the message says which
        raise CommandError(str(error)) from error

    report = Report(
        collection=collection.name,
        documents=len(collection.corpus),
        queries=read,
        left_out=left_out,
        judged=len(collection.judged),
        candidates=candidates,
        first_stage=first.description,
        rows=rows,
        models=models,
        depths=points,
        comparisons=comparisons,
    )
    console.print(_table(report, names))
    if comparisons:
        console.print(_comparison_table(comparisons, names))
    console.print(_summary(report), highlight=False, soft_wrap=True)
    # What holds most first: ids may not fit a run file, and drawing is another package's work.
    if json_file:
        json_file.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    if save_run:
        write_run(save_run, last)
    if plot and points:
        plots.draw_depths(plot, points, names[0], collection.name)


class _FirstStage(NamedTuple):
    name: str  # the row's
    description: str  # the report's
    run: Run
    milliseconds: float | None
    bm25: BM25 | None = None


class _Bench:
    """Runs rerankers over one first stage's candidates, with a progress bar each."""

    def __init__(self, collection: Collection, candidates: Run, progress: Progress) -> None:
        self.collection = collection
        self.candidates = candidates
        self._progress = progress

    def rerank(self, name: str, reranker: Reranker) -> Reranking:
        task = self._progress.add_task(name, total=len(self.candidates))
        return rerank(
            self.candidates,
            self.collection.queries,
            self.collection.corpus,
            reranker,
            lambda: self._progress.advance(task),
        )


def _require_measurable(measures: Sequence[str], collection: Collection) -> None:
    """Measure one judged query, so that what cannot be measured shows before the work."""
    query = collection.queries[0].id
    ranking = [*collection.qrels[query], "unjudged"]
    for measure in measures:
        measure_rankings(
            {query: ranking}, collection.qrels, collection.gold_sets, [measure], [query]
        )


def _first_stage(
    collection: Collection, run: Path | None, candidates: int, stop_words: bool, stem: bool
) -> _FirstStage:
    if run:
        ranked = cut(read_run(run), collection.queries, candidates)
        if not any(hit in collection.corpus for hits in ranked.values() for hit, _ in hits):
            raise CommandError(
                f"{run} ranks no document of {collection.name} for its judged queries; "
                "give a run over this collection."
            )
        return _FirstStage(f"run {run.stem}", f"run file {run.name}", ranked, None)
    field: Field = "title" if collection.pages else "both"
    bm25 = BM25.over(collection.corpus, field, stop_words=stop_words, stem=stem)
    searched = search_all(bm25, collection.queries, candidates)
    over = "titles" if collection.pages else "titles and passages"
    words = "without stop words" if stop_words else "with stop words"
    description = f"BM25 over {over}, {words}{', stemmed' if stem else ''}"
    return _FirstStage("BM25", description, searched.run, searched.mean_milliseconds, bm25)


def _titles_alone(collection: Collection) -> Collection:
    """The same pages without their texts, as the first stage and the opponent see them."""
    corpus = {key: page._replace(text="") for key, page in collection.corpus.items()}
    return replace(collection, corpus=corpus)


def _dual_folder(models: Path | None) -> Path:
    """The dual encoder's folder: that of the passage model in a folder of models, or it itself."""
    folder = models or SHIPPED
    return folder / "passage" if (folder / "passage").is_dir() else folder


def _dense(
    collection: Collection,
    encoder: DualEncoder,
    made_by: str,
    neighbours: Neighbours,
    kept: Path | None,
    progress: Progress,
) -> DenseIndex:
    """Encode all documents, or read their vectors, and index them."""
    task = progress.add_task("vectors", total=len(collection.corpus))
    vectors = kept_vectors(
        kept,
        collection.corpus,
        encoder,
        made_by,
        lambda done: progress.update(task, completed=done),
    )
    return DenseIndex(list(collection.corpus), vectors, encoder.encode_queries, neighbours.value)


def _first_stages(
    collection: Collection,
    dense: DenseIndex,
    bm25: BM25 | None,
    candidates: int,
    neighbours: Neighbours,
) -> list[_FirstStage]:
    """Search by the dual encoder, and by it and BM25 together."""
    how = f"the dual encoder's nearest passages ({neighbours.value})"
    searched = search_all(dense, collection.queries, candidates)
    found = [_FirstStage("dense", how, searched.run, searched.mean_milliseconds)]
    if bm25 is not None:
        fused = search_all(Hybrid([bm25, dense]), collection.queries, candidates)
        description = f"BM25 and {how}, fused by reciprocal ranks (k = {RRF_CONSTANT})"
        found.append(_FirstStage("hybrid", description, fused.run, fused.mean_milliseconds))
    return found


def _bi_encoder_search(
    collection: Collection, encode: Encoder, vectors: Vectors, candidates: int
) -> _FirstStage:
    """The opponent as a first stage: its nearest of all documents, title and text."""
    ids = list(collection.corpus)
    index = DenseIndex(ids, vectors.of(ids), lambda some: normalise(encode(some)))
    searched = search_all(index, collection.queries, candidates)
    description = "the bi-encoder's nearest passages (exact)"
    return _FirstStage("bi-encoder, dense", description, searched.run, searched.mean_milliseconds)


def _vectors(bench: _Bench, encode: Encoder, title_only: bool) -> Vectors:
    """The opponent's of the candidates: of the texts our stage sees, titles or with passages."""
    ids = {key for hits in bench.candidates.values() for key, _ in hits}
    field: Field = "title" if title_only else "both"
    corpus = bench.collection.corpus
    texts = {key: text_of(corpus[key], field) for key in sorted(ids) if key in corpus}
    return Vectors(encode, texts)


def _bi_encoder(bench: _Bench, first: str, vectors: Vectors, weight: float) -> _Runs:
    """Measure the opponent, alone and fused with the first stage."""
    reranking = bench.rerank("bi-encoder", vectors.rerank)
    return {
        "bi-encoder": (reranking.run, reranking.mean_milliseconds),
        f"{first} + bi-encoder ({weight:g})": (
            fuse([bench.candidates, reranking.run], [1 - weight, weight]),
            None,
        ),
    }


class _Models(NamedTuple):
    """What is measured: both stages put together, or a single stage's model."""

    name: str = ""
    title: TitleReranker | None = None
    passage: PassageReranker | None = None
    cascade: Cascade | None = None


def _load(stage: Stage, folder: Path | None, threads: int | None) -> _Models:
    """Load the models of a stage.

    A folder without `fusion.json` is taken for a single model, fresh from training.
    """
    if stage is Stage.bm25:
        return _Models()
    if folder and stage is not Stage.cascade and not (folder / "fusion.json").exists():
        if stage is Stage.title:
            title = TitleReranker.load(folder, threads)
            return _Models(title.name, title=title)
        passage = PassageReranker.load(folder, threads)
        return _Models(passage.name, passage=passage)
    cascade = Cascade.load(folder, threads)
    if stage is Stage.passage:
        return _Models(cascade.passage.name, passage=cascade.passage)
    return _Models(cascade.name, title=cascade.title, cascade=cascade)


def _ours(bench: _Bench, stage: Stage, depth: int, models: _Models, task: str = "") -> _Runs:
    """Run our stages, as far as was asked."""
    rerankers: dict[str, Reranker] = {}
    if models.title:
        rerankers["title stage alone"] = by_title(models.title)
    if models.passage:
        rerankers[f"passage stage alone ({depth})"] = by_passage(models.passage, depth)
    if models.cascade:
        rerankers["title stage"] = by_cascade(models.cascade, 0)
        if stage is Stage.cascade:
            rerankers[f"cascade ({depth})"] = by_cascade(models.cascade, depth)
    runs: _Runs = {}
    for name, reranker in rerankers.items():
        reranking = bench.rerank(f"{task}{name}", reranker)
        runs[name] = (reranking.run, reranking.mean_milliseconds)
    return runs


def _table(report: Report, measures: list[str]) -> Table:
    table = Table(title=report.collection)
    table.add_column("run", no_wrap=True)
    for measure in measures:
        table.add_column(measure, justify="right")
    table.add_column("ms/query", justify="right")
    table.add_column("ranked", justify="right")
    for row in report.rows:
        cells = [_cell(row, measure) for measure in measures]
        time = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        table.add_row(row.name, *cells, time, str(row.ranked))
    return table


def _comparison_table(comparisons: Sequence[Comparison], measures: Sequence[str]) -> Table:
    table = Table(title="before and after, over the same candidates")
    table.add_column("run", no_wrap=True)
    for measure in measures:
        table.add_column(measure, justify="right")
    table.add_column("ms/query", justify="right")
    for one in comparisons:
        cells = []
        for measure in measures:
            change = one.difference[measure]
            cells.append(
                f"{100 * one.before[measure]:.1f} -> {100 * one.after[measure]:.1f}\n"
                f"{100 * change.mean:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})\n"
                f"{_p(change.p)}"
            )
        times = " -> ".join("" if time is None else f"{time:.1f}" for time in one.milliseconds)
        table.add_row(one.name, *cells, times)
    return table


def _p(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _cell(row: Row, measure: str) -> str:
    estimate = row.estimates[measure]
    interval = f"{100 * estimate.mean:.1f}\n{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"
    return f"{interval}\n{_p(estimate.p)}".rstrip()


def _summary(report: Report) -> str:
    models = "; ".join(f"{role}: {name}" for role, name in report.models.items())
    return (
        f"{report.judged} judged queries of {report.queries} read"
        + (f" ({report.left_out} trained on or of another split)" if report.left_out else "")
        + f", {report.documents:,} documents, "
        f"top {report.candidates} of {report.first_stage}"
        + (f"; models: {models}" if models else "")
        + ". Means x 100 with 95 % intervals; p against the first row."
    )
