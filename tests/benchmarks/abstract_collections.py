"""Write two BEIR folders from questions and the abstracts that answer them (PubMedQA).

`sentences`: an abstract's last sentence searches for the paper, whose title is the question.
`words`: two fifths of a question's words, in their order, search for the abstract, without title.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

_SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
_COMMON = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "for",
        "to",
        "and",
        "or",
        "is",
        "are",
        "be",
        "do",
        "does",
        "did",
        "can",
        "with",
        "by",
        "from",
        "at",
        "as",
        "it",
        "its",
        "than",
        "that",
        "this",
        "there",
        "we",
        "between",
        "after",
        "among",
        "during",
        "what",
        "how",
        "which",
        "who",
        "when",
        "where",
        "not",
        "no",
        "should",
        "could",
        "would",
        "will",
        "has",
        "have",
        "had",
    ]
)


def main(
    source: Annotated[Path, typer.Argument(help="Folder with corpus.jsonl and queries.jsonl.")],
    out: Annotated[Path, typer.Argument(help="Where the two folders are written.")],
) -> None:
    """Make queries of other kinds than questions, judged by what they were made from."""
    texts = {one["_id"]: one["text"] for one in _lines(source / "corpus.jsonl")}
    asked = {one["positive"][0]: one["text"] for one in _lines(source / "queries.jsonl")}
    documents, queries = [], {}
    for id, question in asked.items():
        sentences = [one for one in _SENTENCE.split(texts[id]) if len(one.split()) >= 8]
        if len(sentences) >= 3:
            documents.append({"_id": id, "title": question, "text": " ".join(sentences[:-1])})
            queries[id] = sentences[-1]
    _write(out / "sentences", documents, queries)
    rng = np.random.default_rng(0)
    queries = {}
    for id, question in asked.items():
        words = [word for part in question.split() if (word := part.strip("?:.,;\"'()"))]
        words = [word for word in words if word.lower() not in _COMMON]
        chosen = rng.permutation(len(words))[: max(2, round(len(words) * 0.4))]
        queries[id] = " ".join(words[place] for place in sorted(chosen.tolist()))
    _write(
        out / "words",
        [{"_id": id, "title": "", "text": text} for id, text in texts.items()],
        queries,
    )


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(folder: Path, documents: list[dict[str, str]], queries: dict[str, str]) -> None:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    asked = [{"_id": f"q{id}", "text": text} for id, text in queries.items()]
    for name, records in (("corpus", documents), ("queries", asked)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    judged = "".join(f"q{id}\t{id}\t1\n" for id in queries)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, "utf-8")
    typer.echo(f"{folder}: {len(queries)} queries over {len(documents)} documents")


if __name__ == "__main__":
    typer.run(main)
