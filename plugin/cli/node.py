"""`titlecast node`: a local OpenSearch cluster with the plugin, for development and demos."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plugin.cli.options import CommandError
from plugin.node import OPENSEARCH_VERSION, ClusterOptions, Node, NodeError, detached

DEFAULT_SIDECAR_URL = "http://127.0.0.1:8900"  # where `titlecast serve` listens by default

_app = typer.Typer(help="A local OpenSearch cluster with the plugin in it.", no_args_is_help=True)
_console = Console()


def register(app: typer.Typer) -> None:
    """Add the command group `node`."""
    app.add_typer(_app, name="node")


@_app.command()
def start(
    http_port: Annotated[
        int, typer.Option(help="The first node's port; the others' follow it. 0: any free one.")
    ] = 9200,
    nodes: Annotated[int, typer.Option(help="How many nodes form the cluster.")] = 1,
    heap: Annotated[str, typer.Option(help="Each node's Java heap.")] = "1g",
    data: Annotated[
        Path | None,
        typer.Option(help="Where the indices are kept. [default: in the cache folder]"),
    ] = None,
    plugin: Annotated[
        bool, typer.Option("--plugin/--no-plugin", help="Whether the title-rerank plugin is in it.")
    ] = True,
    sidecar_url: Annotated[
        list[str] | None,
        typer.Option(
            help="A sidecar's address; may be given several times. "
            f"[default: {DEFAULT_SIDECAR_URL}]"
        ),
    ] = None,
    sidecar_key: Annotated[
        str,
        typer.Option(
            envvar="TITLECAST_SIDECAR_KEY",
            show_default=False,
            help="The sidecars' key, for the keystore; the variable keeps it out of process lists.",
        ),
    ] = "",
) -> None:
    """Start a cluster and leave it running until `titlecast node stop`.

    The first start assembles it with Maven, which takes a minute or so; later ones are quick.
    """
    urls = sidecar_url or ([DEFAULT_SIDECAR_URL] if plugin else [])
    options = ClusterOptions(
        nodes=nodes,
        http_port=http_port,
        heap=heap,
        data=data,
        with_plugin=plugin,
        sidecar_urls=urls,
        secure_settings={"title_rerank.sidecar.key": sidecar_key} if sidecar_key else {},
    )
    begin = time.monotonic()
    with (
        _errors_as_sentences(),
        _console.status(f"Starting OpenSearch {OPENSEARCH_VERSION} …"),
    ):
        started = detached.start(options)
    _console.print(_table(started))
    _console.print(
        f"OpenSearch {OPENSEARCH_VERSION} is ready after {time.monotonic() - begin:.1f} s; "
        "`titlecast node stop` ends it."
    )


@_app.command()
def stop() -> None:
    """Stop the cluster that `titlecast node start` started; its indices are kept."""
    with _errors_as_sentences():
        stopped = detached.stop()
    if stopped:
        _console.print(f"Stopped {', '.join(node.name for node in stopped)}.")
    else:
        _console.print("No node was running.")


@_app.command()
def status() -> None:
    """Show what runs; exit status 1 where nothing does or it does not answer."""
    with _errors_as_sentences():
        found = detached.status()
    if not found.nodes:
        _console.print("No node is running; `titlecast node start` starts one.")
        raise typer.Exit(1)
    _console.print(_table(found.nodes))
    if found.health is None:
        _console.print(f"It does not answer; its log is {found.nodes[0].log_file}.")
        raise typer.Exit(1)
    _console.print(f"Cluster health: {found.health}")


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    try:
        yield
    except NodeError as error:
        for line in error.log_tail:
            Console(stderr=True, soft_wrap=True).print(escape(line), highlight=False, style="dim")
        raise CommandError(str(error)) from error


def _table(nodes: tuple[Node, ...]) -> Table:
    table = Table("node", "address", "process")
    for node in nodes:
        table.add_row(node.name, node.url, str(node.pid))
    return table
