"""The options that say what to read and how, and the report on a source's titles."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from typing import Annotated, NamedTuple

import typer
from opensearchpy import OpenSearch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from indexing import titles
from indexing.mapping import needs_knn
from indexing.passages import DEFAULT_OVERLAP, Splitter
from indexing.sources import FORMATS, PAGES, Source, open_source
from indexing.sources.fields import FieldMap
from plugin.clusters import ClusterError, connect
from reranker.runtime import read_config
from reranker.stages import SHIPPED
from reranker.tokens import Tokenizer

PANEL = "Source"

SourceName = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A file or folder, `-` (standard input), an index (http://HOST:9200/INDEX),"
        " irds:DATASET, or `pydoc`: this Python's documentation.",
        show_default=False,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"One of {', '.join(FORMATS)} (default: told from SOURCE).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
IdField = Annotated[
    str,
    typer.Option(
        "--id-field",
        help="JSON lines, tables, indices: the field that holds the id (default: id, else made"
        " from the content).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
TitleField = Annotated[
    list[str] | None,
    typer.Option(
        "--title-field",
        help="The field that holds the title, META.HEADLINE for one inside another; several are"
        " joined (default: title).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
PassageField = Annotated[
    list[str] | None,
    typer.Option(
        "--passage-field",
        help="The field that holds the passage; several are joined (default: passage, text,"
        " contents or body).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
VectorField = Annotated[
    str,
    typer.Option(
        "--vector-field",
        help="The field that holds a vector, a list of numbers (default: none).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
VectorDimension = Annotated[
    int,
    typer.Option(
        "--vector-dimension",
        min=1,
        max=16_000,
        help="How many numbers a vector of a new index has.",
        rich_help_panel=PANEL,
    ),
]
SplitTokens = Annotated[
    int | None,
    typer.Option(
        "--split-tokens",
        min=0,
        help="Cut texts at sentence ends into passages of so many tokens, the title among them;"
        " 0 cuts nothing (default: the passage model's window for"
        f" {' and '.join(sorted(PAGES))}, else 0).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Overlap = Annotated[
    int,
    typer.Option(
        "--overlap",
        min=0,
        help="A passage begins with the last sentences of the one before, up to so many tokens.",
        rich_help_panel=PANEL,
    ),
]
TitleFrom = Annotated[
    str,
    typer.Option(
        "--title-from",
        help=f"What gives documents without a title one: {', '.join(titles.RULES)}.",
        rich_help_panel=PANEL,
    ),
]


class Reading(NamedTuple):
    """A source with its steps behind it, and what the steps count."""

    source: Source
    giver: titles.Giver
    splitter: Splitter | None

    def notes(self) -> list[str]:
        """Say what the steps did, a sentence for each."""
        said = []
        if self.giver.given:
            said.append(f"{self.giver.given:,} documents got a title ({self.giver.rule}).")
        if self.giver.missing:
            said.append(
                f"{self.giver.missing:,} documents have no title, so the title stage cannot tell"
                " them apart: --title-from first-sentence gives them one."
            )
        if self.splitter and self.splitter.split:
            said.append(
                f"{self.splitter.split:,} texts were cut into {self.splitter.made:,} passages"
                f" of up to {self.splitter.tokens} tokens."
            )
        return said

    def tell(self, console: Console) -> None:
        """Print what the steps did."""
        for note in self.notes():
            console.print(escape(note))

    def counts(self) -> dict[str, int]:
        """Give what the steps did in numbers."""
        return {
            "titles_given": self.giver.given,
            "titles_missing": self.giver.missing,
            "texts_split": self.splitter.split if self.splitter else 0,
            "passages_made": self.splitter.made if self.splitter else 0,
        }


def read(
    location: str,
    format_: str | None = None,
    fields: FieldMap | None = None,
    *,
    split_tokens: int | None = None,
    overlap: int = DEFAULT_OVERLAP,
    title_from: str = "none",
) -> Reading:
    """Open a source, give titles and cut texts. Raises `SourceError` and `ValueError`."""
    rule = next((known for known in titles.RULES if known == title_from), None)
    if rule is None:
        raise ValueError(f"--title-from is one of {', '.join(titles.RULES)}, not {title_from!r}")
    source = open_source(location, format_, fields, connect)
    giver = titles.Giver(rule)
    if rule == "none":
        source = source._replace(records=giver.records(source.records))  # which counts them
    else:
        source = source.through(giver.records, title_from=rule)
    window = int(read_config(SHIPPED / "passage")["max_passage_tokens"])
    tokens = (window if source.format in PAGES else 0) if split_tokens is None else split_tokens
    if not tokens:
        return Reading(source, giver, None)
    tokenizer = Tokenizer(SHIPPED / "passage" / "tokenizer.json")
    splitter = Splitter(tokenizer, tokens, min(overlap, tokens // 2))
    source = source.through(splitter.records, split_tokens=tokens, overlap=splitter.overlap)
    return Reading(source, giver, splitter)


def require_knn(client: OpenSearch) -> None:
    """Raise `ClusterError` where the cluster cannot hold vectors."""
    plugins = client.cat.plugins(params={"format": "json"})
    reason = needs_knn([str(plugin["component"]) for plugin in plugins])
    if reason:
        raise ClusterError(reason)


def report(console: Console, reading: Reading, limit: int | None, *, json_: bool) -> None:
    """Read a source to its end and print what its titles are like."""
    config = read_config(SHIPPED / "title")
    tokenizer = Tokenizer.of(SHIPPED / "title", config)
    reporter = titles.Reporter(tokenizer, int(config["max_text_tokens"]))
    for record in itertools.islice(reading.source.records, limit):
        reporter.add(record)
    made = reporter.report(reading.giver.given)
    if json_:
        near = [one._asdict() for one in made.near]
        fields = {"source": reading.source.name, **dataclasses.asdict(made), "near": near}
        sys.stdout.write(json.dumps(fields) + "\n")
        return
    console.print(_table(reading.source.name, made))
    for one in made.near:
        console.print(f"  near-duplicates: {escape(' | '.join(one.titles))}")
    for sentence in made.meaning:
        console.print(f"• {escape(sentence)}")


def _table(name: str, made: titles.Report) -> Table:
    table = Table(title=escape(f"Titles of {name}"), show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    about = "about " if made.estimated else ""
    table.add_row("documents", f"{made.documents:,}")
    table.add_row("unreadable records", f"{made.failed:,}", style="red" if made.failed else "")
    table.add_row("without a title", f"{made.empty:,} ({titles.share(made.empty, made.documents)})")
    table.add_row("titles given", f"{made.given:,}")
    table.add_row(
        "tokens a title, median / 90 % / 99 % / longest",
        " / ".join(f"{made.tokens[percent]:,}" for percent in ("50", "90", "99", "100")),
    )
    table.add_row(
        f"longer than the {made.limit} tokens that are read",
        f"{made.truncated:,} ({titles.share(made.truncated, made.titled)})",
    )
    table.add_row(
        "distinct titles",
        f"{about}{made.distinct:,} ({titles.share(made.distinct, made.titled)})",
    )
    table.add_row(
        "of them near-duplicates of another",
        f"{about}{made.near_titles:,} in {made.near_groups:,} groups",
    )
    return table
