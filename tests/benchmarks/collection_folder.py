"""A BEIR folder from documents and a file of queries, each with the ids that answer it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from indexing.records import Document


def write_folder(out: Path, documents: Iterable[Document], queries: Path) -> None:
    """Write corpus, queries and judgements; a query of which no answer is there is left out.

    `queries` has lines `query<TAB>id,id,…`.
    """
    corpus = list(documents)
    known = {document.id for document in corpus}
    kept = []
    for number, line in enumerate(queries.read_text("utf-8").splitlines()):
        text, names = line.split("\t")
        found = [name for name in names.split(",") if name in known]
        if not found:
            typer.echo(f"left out, there is none of {names}: {text}", err=True)
            continue
        kept.append((f"q{number}", text, found))
    write_beir(out, corpus, kept)


def write_beir(
    out: Path, corpus: Sequence[Document], judged: Sequence[tuple[str, str, Sequence[str]]]
) -> None:
    """Write a BEIR folder; `judged` are queries' ids, texts and the ids that answer them."""
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    documents = [{"_id": d.id, "title": d.title, "text": d.passage} for d in corpus]
    queries = [{"_id": id, "text": text} for id, text, _ in judged]
    for name, items in (("corpus", documents), ("queries", queries)):
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    lines = (f"{id}\t{answer}\t1\n" for id, _, answers in judged for answer in answers)
    (out / "qrels" / "test.tsv").write_text(
        f"query-id\tcorpus-id\tscore\n{''.join(lines)}", "utf-8"
    )
    typer.echo(f"{out}: {len(corpus)} documents, {len(judged)} queries")
