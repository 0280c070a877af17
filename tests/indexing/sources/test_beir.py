import json
from pathlib import Path

import pytest

from indexing.records import Document, Failure
from indexing.sources import beir
from indexing.sources.files import LineFile


def read(folder: Path, *lines: object) -> list[Document | Failure]:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return list(beir.documents(LineFile(path)))


def test_a_corpus_line_becomes_a_document(tmp_path: Path) -> None:
    line = {"_id": "4983", "title": "Microstructural", "text": "Alterations", "metadata": {"a": 1}}
    assert read(tmp_path, line) == [Document("4983", "Microstructural", "Alterations", {"a": 1})]


def test_title_and_metadata_may_be_absent(tmp_path: Path) -> None:
    assert read(tmp_path, {"_id": 7, "text": "x"}) == [Document("7", "", "x", {})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"title": "t", "text": "x"}, "'_id'"),
        ({"_id": "1"}, "neither 'text' nor 'title'"),
        ({"_id": "1", "text": 3}, "'text'"),
        ({"_id": "1", "text": "x", "metadata": [1]}, "'metadata'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, reason: str) -> None:
    (failure,) = read(tmp_path, line)
    assert isinstance(failure, Failure)
    assert failure.location == "corpus.jsonl:1"
    assert reason in failure.reason


def test_a_folder_stands_for_its_corpus(tmp_path: Path) -> None:
    assert beir.find_corpus(tmp_path) is None
    zipped = tmp_path / "corpus.jsonl.gz"
    zipped.touch()
    assert beir.find_corpus(tmp_path) == zipped
    plain = tmp_path / "corpus.jsonl"
    plain.touch()
    assert beir.find_corpus(tmp_path) == plain
    assert beir.find_corpus(plain) == plain
