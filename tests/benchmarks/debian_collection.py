"""Write a judged collection of package descriptions: `titlecast evaluate` measures it.

The documents are Debian packages ("name: synopsis" and description), by default those installed
here; `apt-cache dumpavail > FILE` writes all that can be installed. The queries are those of
`tests/data/debian-queries.tsv`, each with the packages that answer it, as far as they are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexing.records import Document
from indexing.sources import open_source
from tests.benchmarks.collection_folder import write_folder

QUERIES = Path(__file__).parents[1] / "data" / "debian-queries.tsv"


def main(
    out: Annotated[Path, typer.Argument(help="The BEIR folder to write.")],
    packages: Annotated[Path, typer.Option(help="A `Packages` or status file.")] = Path(
        "/var/lib/dpkg/status"
    ),
) -> None:
    """Write corpus, queries and judgements in BEIR's format."""
    records = open_source(str(packages), "debian").records
    corpus = {record.id: record for record in records if isinstance(record, Document)}
    write_folder(out, corpus.values(), QUERIES)


if __name__ == "__main__":
    typer.run(main)
