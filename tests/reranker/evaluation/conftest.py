"""A small judged collection, written in BEIR format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from reranker.evaluation.collections import Collection, read_collection

DOCUMENTS = (
    ("d1", "Ed Wood", "Edward Wood was an American filmmaker."),
    ("d2", "Ed Wood", "Plan 9 from Outer Space is his best known film."),
    ("d3", "Scott Derrickson", "Scott Derrickson is an American film director."),
    ("d4", "Heapsort", "Heapsort sorts with a binary heap."),
    ("d5", "", "A passage about sorting a heap of sand, without a title."),
)
QUERIES = (
    ("q1", "american filmmaker Ed Wood"),
    ("q2", "sort a heap"),
    ("q3", "a question nobody judged"),
    ("q4", "zebra"),
)
QRELS = (("q1", "d1", 2), ("q1", "d2", 1), ("q2", "d4", 1), ("q2", "d1", 0), ("q4", "d3", 1))


def write_lines(path: Path, records: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_lines(
        folder / "corpus.jsonl", ({"_id": i, "title": t, "text": x} for i, t, x in DOCUMENTS)
    )
    write_lines(folder / "queries.jsonl", ({"_id": i, "text": t} for i, t in QUERIES))
    (folder / "qrels").mkdir()
    rows = "".join(f"{q}\t{d}\t{r}\n" for q, d, r in QRELS)
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


@pytest.fixture
def collection(beir: Path) -> Collection:
    return read_collection(beir)
