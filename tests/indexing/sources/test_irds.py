from collections.abc import Iterator
from pathlib import Path

import ir_datasets
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import TsvDocs
from ir_datasets.util import LocalDownload

from indexing.records import Document, Failure
from indexing.sources import SourceError, open_source

NAME = "titlecast-test"


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Path]:
    """A data set of the real library over a file of our own."""
    path = tmp_path / "docs.tsv"
    ir_datasets.registry.register(NAME, Dataset(TsvDocs(LocalDownload(path), lang="en")))
    yield path
    ir_datasets.registry._registered.pop(NAME)


def test_documents_of_a_set(registered: Path) -> None:
    registered.write_text("1\tFirst text.\n2\tSecond text.\n")
    source = open_source(f"irds:{NAME}")
    assert source.format == "irds"
    assert list(source.records) == [
        Document("1", "", "First text."),
        Document("2", "", "Second text."),
    ]


def test_what_cannot_be_read_ends_in_a_failure(registered: Path) -> None:
    registered.write_text("1\tFirst text.\nno tab\n")
    *_, failure = open_source(f"irds:{NAME}").records
    assert isinstance(failure, Failure)
    assert "the rest of the file cannot be read" in failure.reason


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(SourceError, match="knows no 'titlecast-none'"):
        open_source("irds:titlecast-none")
