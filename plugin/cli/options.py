"""Options and error handling that the commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


class CommandError(Exception):
    """What a user can act on: one sentence that says what was wrong and the remedy.

    `plugin.cli.main` prints it and exits with `status`; with `--debug`, the trace as well.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def require_folders(*files: Path | None) -> None:
    """Raise CommandError where a file that is to be written at the end could not be.

    None is a file that was not asked for.
    """
    for file in files:
        if file and file.is_dir():
            raise CommandError(f"{file} is a folder; give the name of a file.")
        if file and not file.parent.is_dir():
            raise CommandError(f"There is no folder {file.parent} for {file.name}; make it first.")


def default_url() -> str:
    """The cluster that commands speak to when `--url` is not given."""
    return os.environ.get("OPENSEARCH_URL", "http://localhost:9200")


Url = Annotated[
    str,
    typer.Option(
        "--url",
        help="The cluster's address. (default: OPENSEARCH_URL, else http://localhost:9200)",
        default_factory=default_url,
        show_default=False,
    ),
]
