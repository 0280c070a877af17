"""`titlecast index`: load a source of documents into an index."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from opensearchpy.exceptions import OpenSearchException
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

from indexing import target
from indexing.bulk import prepare
from indexing.job import Destination, Result, job_folder, run
from indexing.load import Encode, Options, Progress, Summary
from indexing.mapping import DEFAULT_ANALYZER, DIMENSION, index_body
from indexing.passages import DEFAULT_OVERLAP
from indexing.records import Document, Failure, Skip
from indexing.sources import Source
from indexing.sources.fields import FieldMap
from plugin.cli import reading
from plugin.cli.options import CommandError, Url
from plugin.cli.reading import Reading
from plugin.clusters import connect
from reranker.dual import DualEncoder

_SHOWN = 10  # failures
_SOME_FAILED, _DID_NOT_RUN = 1, 2  # exit status
_READING, _LOADING, _GOING_LIVE = reading.PANEL, "Loading", "Index"  # panels of the help


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(index)


def index(
    source: reading.SourceName = None,
    index: Annotated[
        str | None,
        typer.Option("--index", help="The index to load into.", rich_help_panel=_GOING_LIVE),
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(
            "--alias",
            help="Load into a new index, and switch this alias to it once all is in: searches"
            " never see a half loaded index.",
            rich_help_panel=_GOING_LIVE,
        ),
    ] = None,
    delete_old: Annotated[
        bool,
        typer.Option(
            "--delete-old",
            help="With --alias: delete what the alias named before.",
            rich_help_panel=_GOING_LIVE,
        ),
    ] = False,
    most_failures: Annotated[
        float,
        typer.Option(
            "--most-failures",
            min=0.0,
            max=1.0,
            help="With --alias: the share of records that may fail for it still to be switched.",
            rich_help_panel=_GOING_LIVE,
        ),
    ] = 0.01,
    recreate: Annotated[
        bool,
        typer.Option(
            "--recreate",
            help="Delete the index first if it exists, once the source's first record is read.",
            rich_help_panel=_GOING_LIVE,
        ),
    ] = False,
    restore: Annotated[
        bool,
        typer.Option(
            "--restore",
            help="Load nothing: only put right the settings that a killed load left in --index.",
            rich_help_panel=_GOING_LIVE,
        ),
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Also give an existing index settings fit for loading meanwhile: no refreshes,"
            " no replicas. A new one always has them.",
            rich_help_panel=_GOING_LIVE,
        ),
    ] = False,
    analyzer: Annotated[
        str,
        typer.Option(
            help="Analyser of a new index, for titles and passages.", rich_help_panel=_GOING_LIVE
        ),
    ] = DEFAULT_ANALYZER,
    shards: Annotated[
        int, typer.Option(min=1, help="Shards of a new index.", rich_help_panel=_GOING_LIVE)
    ] = 1,
    replicas: Annotated[
        int, typer.Option(min=0, help="Replicas of a new index.", rich_help_panel=_GOING_LIVE)
    ] = 0,
    format_: reading.Format = None,
    id_field: reading.IdField = "",
    title_field: reading.TitleField = None,
    passage_field: reading.PassageField = None,
    vector_field: reading.VectorField = "",
    vector_dimension: reading.VectorDimension = DIMENSION,
    vectors: Annotated[
        bool,
        typer.Option(
            "--vectors",
            help="Encode every document with the passage model's dual encoder, for the k-NN"
            " plugin.",
            rich_help_panel=_READING,
        ),
    ] = False,
    vectors_model: Annotated[
        Path | None,
        typer.Option(
            help="The passage model's folder for --vectors. (default: the one shipped)",
            rich_help_panel=_READING,
        ),
    ] = None,
    split_tokens: reading.SplitTokens = None,
    overlap: reading.Overlap = DEFAULT_OVERLAP,
    title_from: reading.TitleFrom = "none",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Read no more than this many records.", rich_help_panel=_READING),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read and check everything, and load nothing; needs no cluster."
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Read everything, load nothing, and say what the titles are like and what that"
            " means for the title stage; needs no cluster.",
        ),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the summary or report as one JSON object.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Requests at a time.", rich_help_panel=_LOADING)
    ] = 4,
    bulk_mib: Annotated[
        float,
        typer.Option(
            "--bulk-mib",
            min=0.01,
            max=100,
            help="The largest request, in MiB; what is right up to there is learned.",
            rich_help_panel=_LOADING,
        ),
    ] = 8.0,
    patience: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds to wait for a cluster that takes nothing, until the load stops.",
            rich_help_panel=_LOADING,
        ),
    ] = 300.0,
    dead_letters: Annotated[
        Path | None,
        typer.Option(
            "--dead-letters",
            help="The file for what cannot be indexed, with its reason; no device or pipe"
            " (default: in the state folder).",
            rich_help_panel=_LOADING,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="The folder in which loads keep where they are (default:"
            " $XDG_STATE_HOME/titlecast/loads, else ~/.local/state/titlecast/loads).",
            rich_help_panel=_LOADING,
        ),
    ] = None,
    discard: Annotated[
        bool,
        typer.Option(
            "--discard",
            help="Forget an interrupted load instead of going on with it.",
            rich_help_panel=_LOADING,
        ),
    ] = False,
    *,
    url: Url,
) -> None:
    """Load documents into an index; documents replace those of the same id.

    A load that was interrupted, by whatever it was, goes on where it stopped when it is run
    again.

    Exit status: 0 where every record is in, 1 where some could not be indexed (they are in the
    dead-letter file, the others are in), 2 where the load could not begin, end or be verified.
    """
    console = Console(soft_wrap=True, highlight=False, stderr=json_)
    with _one_sentence():
        if restore:
            _restore(console, index or alias, url)
            return
        if source is None:
            raise CommandError(
                "name what to load: a file, a folder, an index, or pydoc", _DID_NOT_RUN
            )
        if index is None and alias is None and not (dry_run or report):
            raise CommandError("name where to load it, with --index or --alias", _DID_NOT_RUN)
        # The source comes first: nothing is made for one that cannot be opened.
        read = reading.read(
            source,
            format_,
            FieldMap(id_field, tuple(title_field or ()), tuple(passage_field or ()), vector_field),
            split_tokens=split_tokens,
            overlap=overlap,
            title_from=title_from,
        )
        opened = read.source
        if report:
            reading.report(console, read, limit, json_=json_)
            return
        if dry_run:
            _dry_run(console, read, limit, json_=json_)
            return
        if vectors and vector_field:
            raise CommandError(
                "--vectors makes the vectors that --vector-field would read: give one of the two",
                _DID_NOT_RUN,
            )
        encoder = DualEncoder.load(vectors_model) if vectors else None
        dimension = vector_dimension if vector_field else None
        destination = Destination(
            index,
            alias,
            index_body(
                analyzer,
                shards,
                replicas,
                dimension=encoder.dimensions if encoder else dimension,
                vectors_of=encoder.name if encoder else None,
            ),
            recreate=recreate,
            delete_old=delete_old,
            tune=tune,
            most_failures=most_failures,
        )
        identity = {"source": dict(opened.fingerprint) or opened.name, "limit": limit}
        if encoder:
            identity["vectors"] = encoder.name
        options = Options(
            workers=workers, bulk_bytes=int(bulk_mib * 1024 * 1024), patience=patience
        )
        with (
            connect(url, connections=workers) as client,
            _interruptible(),
            _Display(console, opened, destination.name) as display,
        ):
            if vector_field or encoder:
                reading.require_knn(client)
            result = run(
                client,
                itertools.islice(opened.records, limit),
                identity,
                destination,
                source=opened,
                folder=job_folder(client, destination.name, state),
                discard=discard,
                dead_letters=dead_letters,
                options=options,
                encode=vectors_of(encoder) if encoder else None,
                on_start=display.start,
                on_progress=display.update,
            )
    if json_:
        told = {**_as_json(result, opened.name), **read.counts()}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _report(console, result, opened.name, destination)
        read.tell(console)
    _judge(result, destination)


def vectors_of(encoder: DualEncoder) -> Encode:
    """What a load calls for the vectors (n, dimensions) of its documents."""

    def encode(documents: Sequence[Document]) -> NDArray[np.float32]:
        return encoder.encode_passages(
            [document.title for document in documents],
            [document.passage for document in documents],
        )

    return encode


class _Display:
    """Progress: a line that changes on a terminal, nothing elsewhere."""

    def __init__(self, console: Console, source: Source, name: str) -> None:
        self._console, self._source, self._name = console, source, name
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[yellow]{task.fields[waiting]}[/yellow]"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            f"{source.format} → {escape(name)}", total=None, done="", waiting=""
        )
        self._first: tuple[float, Progress] | None = None

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, index: str, resumed_at: int | None, existed: bool) -> None:
        """Say what is loaded into."""
        shown = f"[bold]{escape(index)}[/bold]"
        if resumed_at is not None:
            self._console.print(
                f"Going on with the load into {shown} at record {resumed_at:,} (--discard begins"
                " anew)."
            )
        elif existed:
            self._console.print(
                f"Index {shown} exists: documents are added to it and replace those of the same"
                " id (--recreate starts anew)."
            )

    def update(self, progress: Progress) -> None:
        """Show how far the load is."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, progress
        began, first = self._first
        seconds = max(now - began, 1e-3)
        # Of this run: what an earlier one did took its own time.
        rate = (progress.position - first.position) / seconds
        megabytes = (progress.bytes - first.bytes) / seconds / 1e6
        done = f"{progress.indexed:,} documents, {rate:,.0f}/s, {megabytes:.1f} MB/s"
        if progress.failed:
            done += f", {progress.failed:,} failed"
        read = self._source.fraction()
        self._bar.update(
            self._task,
            total=None if read is None else 1.0,
            completed=read or 0.0,
            done=done,
            waiting=escape(progress.waiting),
        )


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what a load cannot begin or end for into its sentence and exit status."""
    try:
        yield
    except (OpenSearchException, OSError, ValueError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OpenSearchException):
            text = f"the cluster answered: {text}"
        elif isinstance(error, OSError) and error.errno is not None and error.filename is None:
            text = f"{text} (in {_where(error)})"
        raise CommandError(text, _DID_NOT_RUN) from error
    except KeyboardInterrupt as error:
        raise CommandError(
            "stopped: run the same command again to go on where it was", _DID_NOT_RUN
        ) from error


def _where(error: BaseException) -> str:
    """Name the last line of ours that an error without a file's name came through."""
    where = "?"
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] in ("indexing", "plugin", "reranker"):
            where = f"{module}, line {line}"
    return where


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a load as Ctrl-C does: with its checkpoint written and settings restored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _restore(console: Console, name: str | None, url: str) -> None:
    if name is None:
        raise CommandError("name the index to put right, with --index", _DID_NOT_RUN)
    with connect(url) as client:
        for one in target.indices_of(client, name) or [name]:
            if not target.uuid_of(client, one):
                raise CommandError(f"there is no index {one}", _DID_NOT_RUN)
            said = "has its own settings again" if target.end_loading(client, one) else "is right"
            console.print(f"Index [bold]{escape(one)}[/bold] {said}.")


def _dry_run(console: Console, read: Reading, limit: int | None, *, json_: bool) -> None:
    """Read everything as a load would, and say what it would do."""
    source = read.source
    counts = {"read": 0, "documents": 0, "failed": 0, "skipped": 0, "bytes": 0}
    failures: list[Failure] = []
    for record in itertools.islice(source.records, limit):
        counts["read"] += 1
        prepared = prepare(record) if isinstance(record, Document) else record
        if isinstance(prepared, Failure):
            counts["failed"] += 1
            if len(failures) < _SHOWN:
                failures.append(prepared)
        elif isinstance(prepared, Skip):
            counts["skipped"] += 1
        else:
            counts["documents"] += 1
            counts["bytes"] += len(prepared.lines)
    if json_:
        told = [failure._asdict() for failure in failures]
        summary = {"source": source.name, "dry_run": True, **counts, **read.counts()}
        summary["failures"] = told
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        table = Table(title=escape(f"{source.name}, nothing loaded"), show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, number in counts.items():
            table.add_row(name, f"{number:,}")
        console.print(table)
        read.tell(console)
    if counts["failed"]:
        raise CommandError(
            f"{counts['failed']:,} of {counts['read']:,} records could not be indexed:"
            f" {_named(tuple(failures), counts['failed'])}",
            _SOME_FAILED,
        )


def _as_json(result: Result, source: str) -> dict[str, Any]:
    summary = result.summary
    return {
        "source": source,
        **dataclasses.asdict(summary),
        "failures": [failure._asdict() for failure in summary.failures],
        "indexed": summary.indexed,
        "duplicates": summary.duplicates,
        "verified": summary.verified,
        "resumed_at": result.resumed_at,
        "switched": result.switched,
        "old": list(result.old),
        "leftovers": list(result.leftovers),
    }


def _report(console: Console, result: Result, source: str, destination: Destination) -> None:
    summary = result.summary
    console.print(_table(summary, source))
    if summary.duplicates:
        console.print(
            f"[yellow]warning:[/yellow] {summary.duplicates:,} ids came more than once:"
            " of each the last document was kept"
        )
    if result.switched:
        was = ", ".join(result.old) or "nothing"
        fate = " (deleted)" if destination.delete_old and result.old else ""
        console.print(
            f"Alias [bold]{escape(destination.name)}[/bold] now names {escape(summary.index)};"
            f" before: {escape(was)}{fate}."
        )
    if result.leftovers:
        console.print(
            "[yellow]warning:[/yellow] half loaded by other runs, delete them if none goes on:"
            f" {escape(', '.join(result.leftovers))}"
        )


def _table(summary: Summary, source: str) -> Table:
    table = Table(
        title=escape(f"{source} → {summary.index}"), show_header=False, title_justify="left"
    )
    table.add_column()
    table.add_column(justify="right")
    seconds = summary.seconds or 1e-9
    table.add_row("read", f"{summary.read:,}")
    table.add_row("indexed, new", f"{summary.created:,}")
    table.add_row("indexed, replaced", f"{summary.replaced:,}")
    table.add_row("skipped, without text", f"{summary.skipped:,}")
    table.add_row("failed", f"{summary.failed:,}", style="red" if summary.failed else "")
    table.add_row("in the index now", f"{summary.documents:,}")
    table.add_row("compared, field by field", f"{summary.sampled:,}")
    table.add_row(
        "time",
        f"{summary.seconds:.1f} s, {summary.indexed / seconds:,.0f} documents/s,"
        f" {summary.bytes / seconds / 1e6:.1f} MB/s",
    )
    return table


def _judge(result: Result, destination: Destination) -> None:
    """Raise `CommandError` unless every document got in."""
    summary = result.summary
    if not summary.verified:
        left = (
            f"; the alias {destination.name} was not switched, index {summary.index} is left to"
            " be looked at"
            if destination.alias
            else ""
        )
        raise CommandError(
            f"index {summary.index} is not what was loaded"
            f" ({'; '.join(summary.differences[:_SHOWN])}): see that nothing else writes to it"
            f" and run this again{left}",
            _DID_NOT_RUN,
        )
    if not summary.indexed and not summary.failed:
        raise CommandError(
            "the source has no documents: check its format with --format", _DID_NOT_RUN
        )
    if summary.failed:
        not_switched = destination.alias is not None and not result.switched
        raise CommandError(
            f"{summary.failed:,} of {summary.read:,} records were not indexed"
            f" (all in {summary.dead_letters}):"
            f" {_named(summary.failures, summary.failed)}; correct them and run this again,"
            " documents are replaced by id"
            + (
                f". The alias {destination.name} was not switched, as they are too many or the"
                " source was cut short: to do so all the same, run this again with a higher"
                " --most-failures (1 where it was cut short)"
                if not_switched
                else ""
            ),
            _DID_NOT_RUN if not_switched else _SOME_FAILED,
        )


def _named(failures: tuple[Failure, ...], failed: int) -> str:
    shown = "; ".join(f"{one.location}: {one.reason[:200]}" for one in failures[:_SHOWN])
    more = failed - min(failed, _SHOWN, len(failures))
    return f"{shown}; and {more:,} more" if more else shown
