"""Write a judged passage collection that no model was trained on, from the standard library.

Each entry's summary line is a query, and what is left of the entry without it is the passage
that answers it: the entry is found by what it does, not by its own words. Entries of which too
little is left are passages, but no queries. `titlecast evaluate` measures it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from indexing.records import Document
from indexing.sources import open_source
from tests.benchmarks.collection_folder import write_beir

_LEAST_WORDS = 12  # of a passage that can be found by what it says
_LEAST_QUERY_WORDS = 4


def main(
    out: Annotated[Path, typer.Argument(help="The BEIR folder to write.")],
) -> None:
    """Write corpus, queries and judgements in BEIR's format."""
    records = open_source("pydoc").records
    corpus, queries = collect(record for record in records if isinstance(record, Document))
    write_beir(out, corpus, [(id, text, [id]) for id, text in queries.items()])


def collect(documents: Iterable[Document]) -> tuple[list[Document], dict[str, str]]:
    """Give the passages without their summaries, and queries by the id of what answers them.

    A summary that several entries share answers none of them alone and is no query; where an
    entry's passage repeats its summary, it is taken out there too.
    """
    corpus: list[Document] = []
    asked: dict[str, list[str]] = {}
    for document in documents:
        name, _, summary = document.title.partition(": ")
        passage = " ".join(document.passage.split())
        if summary:
            passage = passage.replace(summary, " ").strip()
        corpus.append(document._replace(title=name, passage=passage))
        enough = len(passage.split()) >= _LEAST_WORDS
        if enough and len(summary.split()) >= _LEAST_QUERY_WORDS and not summary.endswith("…"):
            asked.setdefault(summary, []).append(document.id)
    return corpus, {ids[0]: query for query, ids in asked.items() if len(ids) == 1}


if __name__ == "__main__":
    typer.run(main)
