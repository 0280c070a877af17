from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure
from indexing.sources import msmarco
from indexing.sources.files import LineFile


def read(folder: Path, data: str) -> list[Document | Failure]:
    path = folder / "collection.tsv"
    path.write_bytes(data.encode())
    return list(msmarco.documents(LineFile(path)))


def test_two_columns_are_passages(tmp_path: Path) -> None:
    assert read(tmp_path, "0\tThe \"Manhattan' Project.\n1\tMore\n") == [
        Document("0", "", "The \"Manhattan' Project."),
        Document("1", "", "More"),
    ]


def test_four_columns_are_documents(tmp_path: Path) -> None:
    assert read(tmp_path, "D1\thttps://a.example/\tA title\tA body\nD2\t\t\tBody\n") == [
        Document("D1", "A title", "A body", url="https://a.example/"),
        Document("D2", "", "Body"),
    ]


def test_a_line_with_other_columns_than_the_first_fails(tmp_path: Path) -> None:
    broken, good, cut = read(tmp_path, "a\tb\tc\nD1\tu\tt\tb\nD2\tu\n")
    assert broken == Failure(
        "collection.tsv:1", "2 or 4 tab-separated columns are needed, not 3", "a\tb\tc"
    )
    assert isinstance(good, Document)
    assert cut == Failure("collection.tsv:3", "4 tab-separated columns are needed, not 2", "D2\tu")


def test_a_line_without_an_id_fails(tmp_path: Path) -> None:
    (failure,) = read(tmp_path, "\tsome text\n")
    assert isinstance(failure, Failure)
    assert "id" in failure.reason


@given(st.lists(st.text("ab\t é", min_size=1).filter(str.strip)))
def test_every_line_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    records = read(tmp_path_factory.mktemp("tsv"), "\n".join(lines))
    assert len(records) == len(lines)
