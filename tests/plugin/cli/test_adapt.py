"""`titlecast adapt`: what is read of documents, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexing.sources.fields import FieldMap
from plugin.cli.adapt import read_documents
from plugin.cli.options import CommandError
from reranker.evaluation.collections import Document


def test_unreadable_records_are_counted_with_the_first_reason(tmp_path: Path, capsys) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "title": "Heap", "text": "a queue"}\n{broken\n[]\n')
    found = read_documents(str(path), FieldMap(), 10)
    assert found == {"a": Document("a", "Heap", "a queue")}
    said = capsys.readouterr().err
    assert said.startswith(f"2 records of {path} could not be read; the first: ")
    assert "corpus.jsonl:2: " in said


@pytest.mark.parametrize(
    ("content", "why"),
    [("", "no document in .* to adapt to$"), ("[]\n", "the first: corpus.jsonl:1: ")],
)
def test_nothing_to_adapt_to_is_an_error_with_its_reason(tmp_path: Path, content, why) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(content)
    with pytest.raises(CommandError, match=why):
        read_documents(str(path), FieldMap(), 10)
