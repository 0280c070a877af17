"""The command line's entry: puts the commands together and turns errors into one sentence."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Annotated

import typer
from opensearchpy.exceptions import OpenSearchException
from rich.console import Console

from plugin.cli.options import CommandError

app = typer.Typer(
    name="titlecast",
    help="Title-first reranking for OpenSearch search pipelines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Every module adds its own commands: `register(app)`.
_MODULES = (
    *("node", "serve", "tune", "index", "pipeline", "search", "demo"),
    *("train", "curves", "adapt", "experiment", "evaluate"),
)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the trace of an error and detailed logs.")
    ] = False,
) -> None:
    """Options that come before the command."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


for _module in _MODULES:
    importlib.import_module(f"plugin.cli.{_module}").register(app)


def main() -> None:
    """Run the command line; exit status 0 only when all of it worked."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except (
        CommandError,
        OpenSearchException,
        OSError,
        RuntimeError,
        ValueError,
        ImportError,
    ) as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"[red]error:[/red] {_sentence(error)}", highlight=False
        )
        sys.exit(error.status if isinstance(error, CommandError) else 1)


def _sentence(error: Exception) -> str:
    from rich.markup import escape

    text = str(error).strip() or type(error).__name__
    if isinstance(error, OpenSearchException):
        text = f"the cluster answered: {text}"
    return escape(" ".join(text.split()))


if __name__ == "__main__":
    main()
