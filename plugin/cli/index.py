"""`titlecast index`: load a source of documents into an index."""

from __future__ import annotations

import itertools
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from indexing.bulk import load, prepare_index
from indexing.mapping import DEFAULT_ANALYZER
from indexing.records import Failure, Summary
from indexing.sources import FORMATS, open_source
from indexing.sources.jsonl import parse_map
from plugin.cli.options import CommandError, Url
from plugin.clusters import connect

_SHOWN = 10  # failures


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(index)


def index(
    source: Annotated[
        str,
        typer.Argument(help="A file, a BEIR folder, or `pydoc`: this Python's documentation."),
    ],
    index: Annotated[str, typer.Option("--index", help="The index to load into.")],
    format_: Annotated[
        str | None,
        typer.Option("--format", help=f"One of {', '.join(FORMATS)} (default: told from SOURCE)."),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="For JSON lines: title=FIELD, passage=FIELD or id=FIELD; may be repeated.",
        ),
    ] = None,
    recreate: Annotated[
        bool, typer.Option("--recreate", help="Delete the index first if it exists.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read no more than this many records.")
    ] = None,
    analyzer: Annotated[
        str, typer.Option(help="Analyser of a new index, for titles and passages.")
    ] = DEFAULT_ANALYZER,
    shards: Annotated[int, typer.Option(min=1, help="Shards of a new index.")] = 1,
    replicas: Annotated[int, typer.Option(min=0, help="Replicas of a new index.")] = 0,
    *,
    url: Url,
) -> None:
    """Load documents into an index; documents replace those of the same id."""
    console = Console(soft_wrap=True, highlight=False)
    # The source comes first: no index is deleted for one that cannot be read.
    opened = open_source(source, format_, parse_map(map_ or ()))
    with connect(url) as client:
        fresh = prepare_index(
            client,
            index,
            recreate=recreate,
            analyzer=analyzer,
            shards=shards,
            replicas=replicas,
        )
        if not fresh:
            console.print(
                f"Index [bold]{escape(index)}[/bold] exists: documents are added to it and"
                " replace those of the same id (--recreate starts anew)."
            )
        with _progress(console) as progress:
            task = progress.add_task(f"{opened.format} → {escape(index)}", total=None, done=0)

            def advance(done: int) -> None:
                if done % 100 == 0:
                    read = opened.fraction()
                    progress.update(
                        task, done=done, total=None if read is None else 1.0, completed=read or 0
                    )

            summary = load(
                client,
                index,
                itertools.islice(opened.records, limit),
                fresh=fresh,
                on_progress=advance,
            )
            progress.update(task, total=1.0, completed=1.0, done=summary.indexed)
    console.print(_table(summary, opened.name, index))
    if fresh and summary.updated:
        console.print(
            f"[yellow]warning:[/yellow] {summary.updated:,} ids came more than once:"
            " of each the last document was kept"
        )
    _judge(summary, index)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]:,} documents"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _table(summary: Summary, source: str, index: str) -> Table:
    table = Table(title=escape(f"{source} → {index}"), show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    rate = summary.indexed / summary.seconds if summary.seconds else 0.0
    table.add_row("read", f"{summary.read:,}")
    table.add_row("indexed, new", f"{summary.created:,}")
    table.add_row("indexed, replaced", f"{summary.updated:,}")
    table.add_row("skipped, without text", f"{summary.skipped:,}")
    style = "red" if summary.failed else ""
    table.add_row("failed", f"{summary.failed:,}", style=style)
    table.add_row("in the index now", f"{summary.documents:,}")
    table.add_row("time", f"{summary.seconds:.1f} s, {rate:,.0f} documents/s")
    return table


def _judge(summary: Summary, index: str) -> None:
    """Raise `CommandError` unless every document got in."""
    if summary.failed:
        raise CommandError(
            f"{summary.failed:,} of {summary.read:,} records were not indexed:"
            f" {_named(summary.failures, summary.failed)}; correct them and run this again,"
            " documents are replaced by id"
        )
    if not summary.verified:
        raise CommandError(
            f"index {index} holds {summary.documents:,} documents, which does not fit the"
            f" {summary.created:,} added: see that nothing else writes to it and run this again"
        )
    if not summary.indexed:
        raise CommandError("the source has no documents: check its format with --format")


def _named(failures: tuple[Failure, ...], failed: int) -> str:
    shown = "; ".join(f"{one.location}: {one.reason[:200]}" for one in failures[:_SHOWN])
    more = failed - min(failed, _SHOWN, len(failures))
    return f"{shown}; and {more:,} more" if more else shown
