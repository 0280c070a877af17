"""A BEIR folder from documents and a file of queries, each with the ids that answer it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import typer

from indexing.records import Document


def write_folder(out: Path, documents: Iterable[Document], queries: Path) -> None:
    """Write corpus, queries and judgements; a query of which no answer is there is left out.

    `queries` has lines `query<TAB>id,id,…`.
    """
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": d.id, "title": d.title, "text": d.passage} for d in documents]
    known = {document["_id"] for document in corpus}
    kept, judgements = [], ["query-id\tcorpus-id\tscore"]
    for number, line in enumerate(queries.read_text("utf-8").splitlines()):
        text, names = line.split("\t")
        found = [name for name in names.split(",") if name in known]
        if not found:
            typer.echo(f"left out, there is none of {names}: {text}", err=True)
            continue
        kept.append({"_id": f"q{number}", "text": text})
        judgements += [f"q{number}\t{name}\t1" for name in found]
    for name, items in (("corpus", corpus), ("queries", kept)):
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    (out / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n", "utf-8")
    typer.echo(f"{out}: {len(corpus)} documents, {len(kept)} queries")
