"""Write a judged collection that no model was trained on: `titlecast evaluate` measures it.

The documents are the running Python's standard library, the queries are the natural ones of
`tests/data/pydoc-queries.tsv`, each with the names that answer it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexing.records import Document
from indexing.sources import open_source
from tests.benchmarks.collection_folder import write_folder

QUERIES = Path(__file__).parents[1] / "data" / "pydoc-queries.tsv"


def main(
    out: Annotated[Path, typer.Argument(help="The BEIR folder to write.")],
) -> None:
    """Write corpus, queries and judgements in BEIR's format."""
    records = open_source("pydoc").records
    write_folder(out, (r for r in records if isinstance(r, Document)), QUERIES)


if __name__ == "__main__":
    typer.run(main)
