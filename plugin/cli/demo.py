"""`titlecast demo`: the whole way of a search, from an empty engine to tables of before and after.

Whatever is started here ends here: also on Ctrl-C, on SIGTERM, and where a step fails.
"""

from __future__ import annotations

import signal
import statistics
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import typer
from opensearchpy import OpenSearch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from indexing.load import Options, load
from indexing.records import Document, Record
from indexing.sources import open_source
from indexing.target import end_loading, make_index
from plugin import demo as demos
from plugin import pipelines
from plugin.cli.options import CommandError, default_url
from plugin.cli.search import Comparison, compare, render
from plugin.clusters import connect, with_scheme
from plugin.engines import (
    Container,
    Engine,
    EngineUnavailable,
    GivenCluster,
    LocalNode,
    choose_engine,
    why_no_container,
    why_no_local_node,
)
from plugin.node import LocalCluster, NodeError
from plugin.pipelines import Pipeline, PipelineError
from plugin.ports import free_port
from plugin.sidecar.process import SidecarProcess, ask_health
from reranker import Cascade
from reranker.evaluation import collections
from reranker.evaluation.contamination import FILE as TRAINED_ON
from reranker.evaluation.contamination import trained_on
from reranker.stages import SHIPPED

INDEX = "titlecast-demo"  # and the pipeline's name

# A demo measures on whatever machine there is: nothing is left out for want of time.
_TIMEOUT = "30s"
_CLIENT_SECONDS = 60.0
_NODE_SETTINGS = {"title_rerank.sidecar.timeout": _TIMEOUT}
_PIPELINE = Pipeline(window=demos.WINDOW, timeout=_TIMEOUT)
_PAGE = 5
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DEFAULT_SIDECAR = "http://localhost:8900"  # the plugin's, where the node's settings name none


class EngineKind(str, Enum):
    """Where the demo searches."""

    auto = "auto"
    url = "url"
    container = "container"
    local = "local"
    embedded = "embedded"


class _Ended(BaseException):
    """A signal asked us to end; not an error that anything on the way may handle."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _NoEngineError(Exception):
    """No engine could be started; the text says why."""


class _Task(NamedTuple):
    """What is to be searched."""

    source: str  # for `open_source`
    query_sets: list[demos.QuerySet]  # empty: the fixed searches
    model: Path | None
    keep: bool


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    beir: Annotated[
        Path | None,
        typer.Option(help="Measure on this BEIR folder instead of searching Python's docs."),
    ] = None,
    queries: Annotated[
        str | None, typer.Option(help="The one query set of the folder. (default: all of them)")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many queries of each set, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample.")] = 0,
    engine: Annotated[
        EngineKind,
        typer.Option(
            help="auto: OPENSEARCH_URL, else a container, else a local node, else embedded."
        ),
    ] = EngineKind.auto,
    model: Annotated[
        Path | None, typer.Option(help="A model folder. (default: the shipped models)")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave index and pipeline in the cluster of a URL.")
    ] = False,
) -> None:
    """Start an engine and the sidecar, index, search before and after, and stop all of it."""
    if beir is None and (queries or sample):
        raise CommandError("--queries and --sample choose among judged queries: add --beir DIR")
    console = Console(highlight=False)
    task = _Task(
        str(beir) if beir else "pydoc",
        _query_sets(console, beir, queries, sample, seed, model) if beir else [],
        model.absolute() if model else None,
        keep,
    )
    try:
        with _signals_end_it():
            _demo(console, task, engine)
    except _Ended as ended:
        Console(stderr=True).print("Interrupted: all that the demo had started is stopped.")
        raise typer.Exit(128 + ended.number) from None


def _demo(console: Console, task: _Task, kind: EngineKind) -> None:
    if kind is EngineKind.embedded:
        console.print("Without a search engine: an embedded BM25 finds, the same models rerank.")
    else:
        try:
            _on_engine(console, task, kind)
            return
        except _NoEngineError as error:
            if kind is not EngineKind.auto:
                raise CommandError(str(error)) from error
            console.print(
                "[yellow]Not on OpenSearch:[/yellow] an embedded BM25 finds, the same models"
                f" rerank, all in this process; the reason: {escape(str(error))}",
                soft_wrap=True,
            )
    _embedded(console, task)


def _on_engine(console: Console, task: _Task, kind: EngineKind) -> None:
    """Search through a real engine's search pipeline; raise `_NoEngineError` if there is none."""
    port = free_port()
    try:
        engine = _engine(kind, f"http://127.0.0.1:{port}")
    except EngineUnavailable as error:
        raise _NoEngineError(str(error)) from error
    with ExitStack() as stack:
        if engine.kind != "url":
            # A container does not come from 127.0.0.1.
            host = "0.0.0.0" if engine.kind == "container" else "127.0.0.1"  # noqa: S104
            sidecar = stack.enter_context(SidecarProcess(host, port, task.model))
        try:
            with console.status(f"Starting {engine.describe()} …"):
                stack.enter_context(engine)
        except (EngineUnavailable, NodeError) as error:
            if engine.kind == "url":  # it was named: another one would not be what was meant
                raise CommandError(str(error)) from error
            raise _NoEngineError(str(error)) from error
        client = stack.enter_context(
            connect(engine.url, seconds=_CLIENT_SECONDS, connections=Options().workers)
        )
        if engine.kind == "url":
            models = _sidecar_of(client, engine.url, task.model, stack)
        else:
            models = sidecar.wait()
        console.print(
            f"Engine: {escape(engine.describe())}. Sidecar: {escape(models)}.", soft_wrap=True
        )
        stack.enter_context(_index(client, task.keep or engine.kind != "url"))
        _load(console, client, task.source)
        for warning in pipelines.install(client, INDEX, _PIPELINE, name=INDEX):
            console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
        _show(console, task, lambda query, size: compare(client, INDEX, query, size, _PIPELINE))


def _embedded(console: Console, task: _Task) -> None:
    cascade = Cascade.load(task.model)
    corpus = {
        record.id: collections.Document(record.id, record.title, record.passage)
        for record in _records(task.source)
        if isinstance(record, Document)
    }
    if not corpus:
        raise CommandError(f"{task.source} has no documents: name a BEIR folder with a corpus")
    console.print(f"Embedded BM25 over {len(corpus):,} documents. Models: {escape(cascade.name)}.")
    _show(console, task, demos.Embedded(cascade, corpus, "the embedded BM25").compare)


def _engine(kind: EngineKind, sidecar_url: str) -> Engine:
    """Give the engine of a kind, not started yet; raises `EngineUnavailable`."""
    if kind is EngineKind.auto:
        return choose_engine([sidecar_url], settings=_NODE_SETTINGS)
    if kind is EngineKind.url:
        return GivenCluster(default_url())
    reason = why_no_container() if kind is EngineKind.container else why_no_local_node()
    if reason is not None:
        raise EngineUnavailable(reason)
    if kind is EngineKind.container:
        return Container([sidecar_url], settings=_NODE_SETTINGS)
    return LocalNode(LocalCluster(sidecar_urls=[sidecar_url], heap="512m", settings=_NODE_SETTINGS))


def _sidecar_of(client: OpenSearch, url: str, model: Path | None, stack: ExitStack) -> str:
    """Find the sidecar that a given cluster calls; start it where that is on this machine.

    Where it is belongs to the cluster's settings, which a demo does not change.
    """
    named = _first_sidecar(client)
    address = urlsplit(named)
    cluster = urlsplit(with_scheme(url)).hostname
    ours = address.hostname in _LOOPBACK and cluster in _LOOPBACK
    if not ours or address.scheme != "http" or address.path.strip("/"):
        return f"the cluster's own, {named}"
    port = address.port or 80
    found = ask_health(address.hostname or "", port)
    if found is not None:
        return f"{found}, which runs at {named} already"
    return stack.enter_context(SidecarProcess("127.0.0.1", port, model)).wait()


def _first_sidecar(client: OpenSearch) -> str:
    """The first address that the nodes call; the cluster's settings go before the nodes' own."""
    cluster: Mapping[str, Any] = client.cluster.get_settings(flat_settings=True)
    nodes: Mapping[str, Any] = client.nodes.info(metric="settings", flat_settings=True)["nodes"]
    node = next(iter(nodes.values())).get("settings", {})
    for settings in (cluster["transient"], cluster["persistent"], node):
        if told := settings.get("title_rerank.sidecar.urls"):
            urls = told if isinstance(told, list) else told.split(",")
            return str(urls[0]).strip()
    return _DEFAULT_SIDECAR


@contextmanager
def _index(client: OpenSearch, keep: bool) -> Iterator[None]:
    """Make the demo's index; remove it and its pipeline afterwards unless it is to be kept."""
    if client.indices.exists(index=INDEX):
        raise CommandError(
            f"the cluster has an index {INDEX} already, which the demo does not touch: delete it"
            f" and its pipeline (`titlecast pipeline remove --name {INDEX}`), and run this again"
        )
    try:
        make_index(client, INDEX)  # in here: a signal may come before its answer does
        yield
    finally:
        if not keep:
            try:
                pipelines.remove(client, INDEX)
            except PipelineError:
                pass  # it did not come that far
            finally:
                client.indices.delete(index=INDEX, ignore=[404])


def _load(console: Console, client: OpenSearch, source: str) -> None:
    with console.status("Indexing …"):
        summary = load(client, INDEX, _records(source))
        end_loading(client, INDEX)
    if summary.failed or not summary.indexed:
        first = f", first {summary.failures[0].location}: {summary.failures[0].reason}"
        raise CommandError(
            f"{summary.failed:,} of {summary.read:,} records were not indexed"
            f"{first if summary.failures else ''}; correct the source and run this again"
        )
    console.print(
        f"Indexed {summary.documents:,} documents in {summary.seconds:.1f} s;"
        f" the search pipeline {INDEX} is the index's default.",
        soft_wrap=True,
    )


def _records(source: str) -> Iterator[Record]:
    return open_source(source, "pydoc" if source == "pydoc" else "beir").records


def _show(console: Console, task: _Task, compare_: demos.Compare) -> None:
    if task.query_sets:
        _measure(console, task.query_sets, compare_)
    else:
        _search(console, compare_)


def _search(console: Console, compare_: demos.Compare) -> None:
    """Run the fixed searches; raise `CommandError` unless all were reranked."""
    done: list[Comparison] = []
    for query in demos.SEARCHES:
        comparison = compare_(query, _PAGE)
        done.append(comparison)
        console.print()
        console.print(render(comparison))
    console.print()
    console.print(
        f"{len(done)} searches, medians: {_ms(one.took_before for one in done)} before,"
        f" {_ms(one.took_after for one in done)} with reranking"
        f" ({_ms(one.rerank_ms for one in done)} of it)."
    )
    missed = [one for one in done if not one.applied]
    if missed:
        raise CommandError(
            f"{len(missed)} of {len(done)} searches were not reranked"
            f" ({missed[0].reason or 'no reason given'}): see the sidecar's and the node's log"
        )


def _measure(console: Console, query_sets: list[demos.QuerySet], compare_: demos.Compare) -> None:
    """Measure the query sets; raise `CommandError` unless all searches were reranked."""
    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for one in query_sets:
            bar = progress.add_task(one.name, total=len(one.queries))
            results.append(demos.measure(one, compare_, partial(progress.advance, bar)))
    for one, measured in zip(query_sets, results, strict=True):
        console.print()
        console.print(_counts(one, measured), soft_wrap=True)
        console.print(_table(measured))
    failed = next((measured for measured in results if measured.failed), None)
    if failed:
        raise CommandError(
            f"{sum(measured.failed for measured in results)} searches failed"
            f" (query {failed.reason}): see the sidecar's and the node's log"
        )


def _counts(query_set: demos.QuerySet, measured: demos.Measured) -> str:
    parts = [
        f"{query_set.read:,} queries",
        f"{query_set.judged:,} judged",
        f"{query_set.trained_on:,} of them left out, as the models were trained on them",
        f"{measured.run:,} run",
        f"{measured.failed:,} failed",
    ]
    if measured.in_part:
        parts.append(f"{measured.in_part:,} reranked in part, for want of time")
    return f"[bold]{escape(query_set.name)}[/bold]: {', '.join(parts)}"


def _table(measured: demos.Measured) -> Table:
    table = Table()
    table.add_column("")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for name in demos.MEASURES:
        shown = name.replace("R@", "recall@")
        table.add_row(shown, f"{measured.before[name]:.4f}", f"{measured.after[name]:.4f}")
    table.add_section()
    table.add_row("ms per search, median", f"{measured.ms_before:.0f}", f"{measured.ms_after:.0f}")
    table.add_row("of it reranking", "", f"{measured.ms_rerank:.0f}")
    return table


def _query_sets(
    console: Console,
    folder: Path,
    name: str | None,
    sample: int | None,
    seed: int,
    model: Path | None,
) -> list[demos.QuerySet]:
    seen = trained_on(model or SHIPPED)
    if seen is None:
        console.print(
            f"[yellow]Which queries the models were trained on is not known[/yellow] (no"
            f" {TRAINED_ON} beside them): all judged queries are used.",
            soft_wrap=True,
        )
    sets = demos.read_query_sets(folder, name, sample, seed, seen or ())
    if not any(one.queries for one in sets):
        raise CommandError(
            f"no query of {folder} is judged and was kept out of training: choose other queries"
        )
    open_source(str(folder), "beir")  # a missing corpus shows before anything is started
    return sets


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `_Ended`, once: what follows must not break the clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signals arrive here, as in a test
        return
    numbers = (signal.SIGINT, signal.SIGTERM)

    def end(number: int, _: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise _Ended(number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ms(values: Iterator[float]) -> str:
    return f"{statistics.median(values):.0f} ms"
