"""`titlecast pipeline`: install, show and remove an index's reranking."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax

from plugin import pipelines
from plugin.cli.options import CommandError, Url
from plugin.clusters import connect
from plugin.pipelines import Pipeline

_DEFAULT = Pipeline()


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(no_args_is_help=True, help="Put reranking in front of an index.")
    group.command()(install)
    group.command()(show)
    group.command()(remove)
    app.add_typer(group, name="pipeline")


def install(
    index: Annotated[str, typer.Option(help="The index whose searches are to be reranked.")],
    title_field: Annotated[str, typer.Option(help="Field of the titles.")] = _DEFAULT.title_field,
    passage_field: Annotated[
        list[str] | None,
        typer.Option(help="Field of the passages; may be given several times (default: passage)."),
    ] = None,
    window: Annotated[
        int, typer.Option(help="How many of the engine's best hits are reranked.")
    ] = _DEFAULT.window,
    passage_depth: Annotated[
        int, typer.Option(help="How many passages are read; 0 for titles only.")
    ] = _DEFAULT.passage_depth,
    timeout: Annotated[
        str, typer.Option(help="Time for the reranking of one search, like 500ms.")
    ] = _DEFAULT.timeout,
    name: Annotated[
        str | None, typer.Option(help="The pipeline's name (default: titlecast-INDEX).")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace what is in the way: another default, or a pipeline of this name that"
            " holds more than ours or that other indices use.",
        ),
    ] = False,
    *,
    url: Url,
) -> None:
    """Create the search pipeline and make it the index's default."""
    console = Console(soft_wrap=True, highlight=False)
    name = name or pipelines.default_name(index)
    pipeline = Pipeline(
        title_field,
        tuple(passage_field or _DEFAULT.passage_fields),
        window,
        passage_depth,
        timeout,
    )
    with connect(url) as client:
        warnings = pipelines.install(client, index, pipeline, name=name, force=force)
    for warning in warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    fields = ", ".join(pipeline.passage_fields)
    console.print(
        f"Pipeline [bold]{escape(name)}[/bold] is the default of [bold]{escape(index)}[/bold]:"
        f" the best {window} hits are reranked by {escape(title_field)},"
        f" {passage_depth} of them by {escape(fields)}."
    )


def show(
    index: Annotated[str | None, typer.Option(help="Only the pipeline of this index.")] = None,
    *,
    url: Url,
) -> None:
    """Print the pipelines of Titlecast and the indices that use them."""
    console = Console(soft_wrap=True, highlight=False)
    with connect(url) as client:
        found = pipelines.installed(client, index)
    if not found:
        where = f"index {index} has none" if index else "the cluster has none"
        raise CommandError(
            f"{where} of Titlecast's pipelines: run `titlecast pipeline install --index NAME`"
        )
    for one in found:
        users = ", ".join(one.indices) or "no index"
        console.print(f"[bold]{escape(one.name)}[/bold], the default of {escape(users)}")
        body = json.dumps(one.body, indent=2)
        if console.is_terminal:
            shown = Syntax(body, "json", background_color="default", word_wrap=True)
            console.print(shown, soft_wrap=False)
        else:  # for another program: Rich would crop or break its lines
            console.out(body, highlight=False)


def remove(
    index: Annotated[
        str | None, typer.Option(help="Remove the pipeline that is this index's default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Remove the pipeline of this name.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also with what others have put into it.")
    ] = False,
    *,
    url: Url,
) -> None:
    """Delete a pipeline; the indices that use it go back to the engine's own order."""
    console = Console(soft_wrap=True, highlight=False)
    if name is not None and index is not None:  # which may not be that index's
        raise CommandError("give --name or --index, not both: all indices that use it are released")
    with connect(url) as client:
        if name is None:
            found = pipelines.installed(client, index)
            if len(found) != 1:
                names = ", ".join(one.name for one in found) or "none"
                raise CommandError(
                    f"which pipeline is not clear (there: {names}): give --name or --index"
                )
            name = found[0].name
        users = pipelines.remove(client, name, force=force)
    released = f"; the engine's own order holds again in {', '.join(users)}" if users else ""
    console.print(f"Removed pipeline [bold]{escape(name)}[/bold]{escape(released)}.")
