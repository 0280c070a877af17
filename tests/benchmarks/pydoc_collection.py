"""Write a judged collection that no model was trained on: `titlecast evaluate` measures it.

The documents are the running Python's standard library, the queries are the natural ones of
`tests/data/pydoc-queries.tsv`, each with the names that answer it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from indexing.records import Document
from indexing.sources import open_source

QUERIES = Path(__file__).parents[1] / "data" / "pydoc-queries.tsv"


def main(
    out: Annotated[Path, typer.Argument(help="The BEIR folder to write.")],
) -> None:
    """Write corpus, queries and judgements in BEIR's format."""
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    records = open_source("pydoc").records
    corpus = [record for record in records if isinstance(record, Document)]
    known = {document.id for document in corpus}
    queries, judgements = [], ["query-id\tcorpus-id\tscore"]
    for number, line in enumerate(QUERIES.read_text("utf-8").splitlines()):
        text, names = line.split("\t")
        found = [name for name in names.split(",") if name in known]
        if not found:
            typer.echo(f"left out, this Python documents none of {names}: {text}", err=True)
            continue
        queries.append({"_id": f"q{number}", "text": text})
        judgements += [f"q{number}\t{name}\t1" for name in found]
    documents = [{"_id": d.id, "title": d.title, "text": d.passage} for d in corpus]
    for name, items in (("corpus", documents), ("queries", queries)):
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    (out / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n", "utf-8")
    typer.echo(f"{out}: {len(corpus)} documents, {len(queries)} queries")


if __name__ == "__main__":
    typer.run(main)
