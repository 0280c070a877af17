"""`titlecast search`: one search in the engine's order and reranked, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import typer
from opensearchpy import OpenSearch
from opensearchpy.exceptions import NotFoundError
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from indexing.sources.fields import lookup
from plugin import pipelines
from plugin.cli.options import CommandError, Url
from plugin.clusters import connect
from plugin.pipelines import Pipeline

_TITLE_CHARACTERS = 100


class Found(NamedTuple):
    """One hit of a search."""

    id: str
    title: str
    score: float | None


class Stage(NamedTuple):
    """What one stage of the reranking did, as the response tells."""

    name: str
    scored: int
    milliseconds: float
    truncated: int
    skipped: str


@dataclass(frozen=True)
class Comparison:
    """One search, with and without the index's default pipeline."""

    index: str
    query: str
    size: int
    before: tuple[Found, ...]  # the engine's order, the whole window
    after: tuple[Found, ...]  # the page as the pipeline gives it
    applied: bool  # whether the hits were reranked
    reason: str  # why not
    complete: bool
    stages: tuple[Stage, ...]
    model: str
    took_before: int  # milliseconds, as the engine tells
    took_after: int
    rerank_ms: float  # the part of `took_after` that is the reranking


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(search)


def search(
    query: Annotated[str, typer.Argument(help="What to search for.")],
    index: Annotated[str, typer.Option(help="The index to search.")],
    size: Annotated[int, typer.Option(min=1, help="Hits on the page.")] = 10,
    title_field: Annotated[
        str | None, typer.Option(help="Field of the titles (default: the pipeline's).")
    ] = None,
    passage_field: Annotated[
        list[str] | None,
        typer.Option(help="Field of the passages; may be repeated (default: the pipeline's)."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Hits whose rank before is known (default: the pipeline's)."),
    ] = None,
    *,
    url: Url,
) -> None:
    """Search twice, without and with the index's pipeline, and show what moved."""
    with connect(url) as client:
        found = pipelines.installed(client, index)
        fields = found[0].pipeline if found else Pipeline()
        if title_field:
            fields = fields._replace(title_field=title_field)
        if passage_field:
            fields = fields._replace(passage_fields=tuple(passage_field))
        if window:
            fields = fields._replace(window=window)
        comparison = compare(client, index, query, size, fields)
    Console(highlight=False).print(render(comparison))
    if not found:
        raise CommandError(
            f"index {index} has no pipeline of Titlecast's:"
            f" run `titlecast pipeline install --index {index}`"
        )


def search_body(query: str, fields: Pipeline) -> dict[str, Any]:
    """Give the plain search that an application would send.

    A hit counts by its better field, and by 0.3 of the other (`best_fields` with a tie
    breaker). Over Wikipedia passages this came out best: it ranks questions on two pages as
    well as the sum (`most_fields`), which lets titles of one matching word win otherwise, and
    questions on one passage as well as the better field alone.
    """
    return {
        "query": {
            "multi_match": {
                "query": query,
                "fields": [fields.title_field, *fields.passage_fields],
                "type": "best_fields",
                "tie_breaker": 0.3,
            }
        },
        "_source": [fields.title_field],
    }


def compare(
    client: OpenSearch, index: str, query: str, size: int = 10, fields: Pipeline | None = None
) -> Comparison:
    """Run one search without and with the index's default pipeline.

    The first asks for the whole window, so that the hits' ranks before are known.
    Raises `ValueError` if there is no such index, and opensearchpy's exceptions.
    """
    fields = fields or Pipeline()
    body = search_body(query, fields)
    try:
        plain = client.search(
            index=index,
            body={**body, "size": max(size, fields.window)},
            params={"search_pipeline": "_none"},
        )
    except NotFoundError as error:
        raise ValueError(
            f"no index {index}: make one with `titlecast index`, or check --index"
        ) from error
    reranked = client.search(index=index, body={**body, "size": size})
    told = reranked.get("ext", {}).get("title_rerank")
    if told is None:  # a pipeline says nothing of a search without hits
        hits = reranked["hits"]["hits"]
        reason = _why_alone(client, index) if hits else "there is no hit to rerank"
        told = {"applied": False, "reason": reason}
    return Comparison(
        index=index,
        query=query,
        size=size,
        before=_hits(plain, fields.title_field),
        after=_hits(reranked, fields.title_field),
        applied=bool(told.get("applied")),
        reason=str(told.get("reason") or ""),
        complete=bool(told.get("complete")),
        stages=tuple(_stage(stage) for stage in told.get("stages") or ()),
        model=str(told.get("model") or ""),
        took_before=int(plain["took"]),
        took_after=int(reranked["took"]),
        rerank_ms=float(told.get("took_ms") or 0.0),
    )


def _why_alone(client: OpenSearch, index: str) -> str:
    """Say why a response with hits says nothing of reranking, as far as can be known."""
    defaults = sorted(set(pipelines.default_pipelines(client, index).values()))
    if len(defaults) > 1:  # of several indices
        return (
            f"the engine uses none of several default pipelines ({', '.join(defaults)}):"
            f" install one for all that {index} stands for"
        )
    found = pipelines.installed(client, index)
    if not found:
        return "no pipeline of Titlecast's is the index's default"
    return (
        f"the pipeline {found[0].name} says nothing of this search: see what else is in it with"
        f" `titlecast pipeline show --index {index}`"
    )


def render(comparison: Comparison) -> RenderableType:
    """Show a comparison: the new order with what moved, and where the time went."""
    ranks = {hit.id: rank for rank, hit in enumerate(comparison.before, start=1)}
    table = Table(title=escape(f"“{comparison.query}” in {comparison.index}"), title_justify="left")
    for heading in ("before", "after", "", "score"):
        table.add_column(heading, justify="right")
    table.add_column("title", overflow="fold")
    for rank, hit in enumerate(comparison.after, start=1):
        table.add_row(
            *(_rank(ranks.get(hit.id), len(comparison.before)), str(rank)),
            *(_arrow(ranks.get(hit.id), rank), _score(hit.score), _title(hit.title)),
        )
    shown = {hit.id for hit in comparison.after}
    gone = [hit for hit in comparison.before[: comparison.size] if hit.id not in shown]
    if gone:
        table.add_section()
    for hit in gone:  # no longer on the page
        table.add_row(
            *(str(ranks[hit.id]), f">{comparison.size}", "[red]▼[/red]", "", _title(hit.title)),
            style="dim",
        )
    if not comparison.after:
        return Group(table, "No hits.", *_times(comparison))
    return Group(table, *_times(comparison))


def _times(comparison: Comparison) -> list[RenderableType]:
    lines: list[RenderableType] = [
        f"engine alone, {len(comparison.before)} hits: {comparison.took_before} ms;"
        f" with the pipeline: {comparison.took_after} ms"
        + (f", reranking {comparison.rerank_ms:.0f} ms of it" if comparison.rerank_ms else "")
    ]
    for stage in comparison.stages:
        line = f"  {stage.name}: {stage.scored} hits in {stage.milliseconds:.1f} ms"
        if stage.truncated:
            line += f", {stage.truncated} of them cut to the model's length"
        if stage.skipped:
            line += f", not all: {stage.skipped}"
        lines.append(escape(line))
    if not comparison.applied:
        lines.append(
            f"[yellow]not reranked:[/yellow] {escape(comparison.reason or 'no reason given')}"
        )
    elif not comparison.complete:
        lines.append("[yellow]reranked in part:[/yellow] a stage did not do all it was asked to")
    if comparison.model:
        lines.append(escape(f"model: {comparison.model}"))
    return lines


def _hits(response: dict[str, Any], title_field: str) -> tuple[Found, ...]:
    return tuple(
        Found(hit["_id"], _value(hit.get("_source") or {}, title_field), hit.get("_score"))
        for hit in response["hits"]["hits"]
    )


def _value(source: dict[str, Any], path: str) -> str:
    value = lookup(source, path)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _stage(told: dict[str, Any]) -> Stage:
    return Stage(
        str(told.get("name", "")),
        int(told.get("scored") or 0),
        float(told.get("milliseconds") or 0.0),
        int(told.get("truncated") or 0),
        str(told.get("skipped") or ""),
    )


def _rank(rank: int | None, known: int) -> str:
    return f">{known}" if rank is None else str(rank)


def _arrow(before: int | None, after: int) -> str:
    if before is None:
        return "[green]▲[/green]"
    if before == after:
        return "[dim]=[/dim]"
    return (
        f"[green]▲ {before - after}[/green]" if before > after else f"[red]▼ {after - before}[/red]"
    )


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def _title(title: str) -> str:
    short = title if len(title) <= _TITLE_CHARACTERS else f"{title[: _TITLE_CHARACTERS - 1]}…"
    return escape(short) or "[dim](no title)[/dim]"
