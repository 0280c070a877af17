import json
from pathlib import Path

import pytest

from indexing.records import Document
from indexing.sources import SourceError, guess_format, open_source
from indexing.sources.jsonl import parse_map


def make(path: Path, *lines: object) -> str:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(path)


def test_formats_are_told_where_they_are_clear(tmp_path: Path) -> None:
    make(tmp_path / "corpus.jsonl", {"_id": "1", "text": "t"})
    page = {"wikipedia_id": "1", "wikipedia_title": "A", "text": []}
    other = make(tmp_path / "other.jsonl", {"_id": "1", "text": "t"})
    assert guess_format("pydoc") == "pydoc"
    assert guess_format(str(tmp_path)) == "beir"
    assert guess_format(str(tmp_path / "corpus.jsonl")) == "beir"
    assert guess_format(other) == "beir"
    assert guess_format(other, mapped=True) == "jsonl"
    assert guess_format(make(tmp_path / "pages.json", page)) == "kilt"
    assert guess_format(make(tmp_path / "docs.jsonl", {"id": "1", "title": "t"})) == "jsonl"
    assert guess_format(make(tmp_path / "broken.jsonl", "{")) == "jsonl"
    assert guess_format(make(tmp_path / "c.tsv")) == "msmarco"
    assert guess_format(make(tmp_path / "c.tsv.gz")) == "msmarco"


def test_what_is_not_clear_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="give --format"):
        guess_format(make(tmp_path / "some.txt", "x"))
    with pytest.raises(SourceError, match=r"no corpus\.jsonl"):
        guess_format(str(tmp_path))
    with pytest.raises(SourceError, match="does not exist"):
        guess_format(str(tmp_path / "nothing"))


def test_a_source_is_opened_and_read(tmp_path: Path) -> None:
    make(tmp_path / "corpus.jsonl", {"_id": "1", "title": "t", "text": "p"})
    source = open_source(str(tmp_path))
    assert source.format == "beir"
    assert source.fraction() == 0.0
    assert list(source.records) == [Document("1", "t", "p", {})]
    assert source.fraction() == 1.0


def test_a_mapping_reaches_the_reader(tmp_path: Path) -> None:
    path = make(tmp_path / "corpus.jsonl", {"key": "1", "headline": "t", "body": "p"})
    mapping = parse_map(["id=key", "title=headline", "passage=body"])
    assert list(open_source(path, None, mapping).records) == [Document("1", "t", "p", {})]


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "docs.jsonl", {"id": "1"})
    with pytest.raises(SourceError, match="unknown format 'csv'"):
        open_source(path, "csv")
    with pytest.raises(SourceError, match="--map belongs to the format jsonl"):
        open_source(path, "beir", parse_map(["id=key"]))
    with pytest.raises(SourceError, match="is no kilt source"):
        open_source(str(tmp_path / "none"), "kilt")
    with pytest.raises(SourceError, match="is no beir source"):
        open_source(str(tmp_path), "beir")
