import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from indexing.records import Document, Failure
from indexing.sources import FORMATS, PAGES, SourceError, guess_format, open_source
from indexing.sources.fields import FieldMap


def make(path: Path, *lines: object) -> str:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(path)


def test_formats_are_told_where_they_are_clear(tmp_path: Path) -> None:
    make(tmp_path / "corpus.jsonl", {"_id": "1", "text": "t"})
    page = {"wikipedia_id": "1", "wikipedia_title": "A", "text": []}
    other = make(tmp_path / "other.jsonl", {"_id": "1", "text": "t"})
    assert guess_format("pydoc") == "pydoc"
    assert guess_format("irds:beir/scifact") == "irds"
    assert guess_format("http://localhost:9200/docs") == "opensearch"
    assert guess_format(str(tmp_path)) == "beir"
    assert guess_format(str(tmp_path / "corpus.jsonl")) == "beir"
    assert guess_format(other) == "beir"
    assert guess_format(other, mapped=True) == "jsonl"
    assert guess_format(make(tmp_path / "pages.json", page)) == "kilt"
    assert guess_format(make(tmp_path / "docs.jsonl", {"id": "1", "title": "t"})) == "jsonl"
    assert guess_format(make(tmp_path / "broken.jsonl", "{")) == "jsonl"
    assert guess_format(make(tmp_path / "c.tsv")) == "msmarco"
    assert guess_format(make(tmp_path / "c.tsv.gz")) == "msmarco"
    assert guess_format(make(tmp_path / "c.tsv"), mapped=True) == "csv"
    assert guess_format(make(tmp_path / "c.csv", "id,title")) == "csv"
    assert guess_format(make(tmp_path / "psgs_w100.tsv", "id\ttext\ttitle")) == "dpr"
    assert guess_format(make(tmp_path / "c.parquet")) == "parquet"
    assert guess_format(make(tmp_path / "ft911_1", "<DOC>")) == "trec"
    assert guess_format(make(tmp_path / "Packages", "Package: bash")) == "debian"
    assert guess_format(make(tmp_path / "README.md", "# Title")) == "folder"
    assert guess_format(make(tmp_path / "notes.txt", "some")) == "folder"


def test_formats_are_told_through_compression(tmp_path: Path) -> None:
    path = tmp_path / "passages.tsv.gz"
    path.write_bytes(gzip.compress(b"id\ttext\ttitle\n1\ta\tb\n"))
    assert guess_format(str(path)) == "dpr"


def test_formats_are_told_whatever_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\n<DOC><DOCNO>1</DOCNO>caf\xe9</DOC>")
    assert guess_format(str(path)) == "trec"


def test_a_folder_of_pages_is_told_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    make(tmp_path / "guide" / "a.md", "# A")
    assert guess_format(str(tmp_path)) == "folder"


def test_what_is_not_clear_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="give --format"):
        guess_format(make(tmp_path / "some.log", "x"))
    with pytest.raises(SourceError, match=r"no corpus\.jsonl"):
        guess_format(str(tmp_path))
    with pytest.raises(SourceError, match="does not exist"):
        guess_format(str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match="standard input is not clear: give --format"):
        guess_format("-")


def test_a_source_is_opened_and_read(tmp_path: Path) -> None:
    make(tmp_path / "corpus.jsonl", {"_id": "1", "title": "t", "text": "p"})
    source = open_source(str(tmp_path))
    assert source.format == "beir"
    assert source.fraction() == 0.0
    assert list(source.records) == [Document("1", "t", "p", {})]
    assert source.fraction() == 1.0


def test_a_mapping_reaches_the_reader(tmp_path: Path) -> None:
    path = make(tmp_path / "corpus.jsonl", {"key": "1", "headline": "t", "body": "p"})
    fields = FieldMap("key", ("headline",), ("body",))
    assert list(open_source(path, None, fields).records) == [Document("1", "t", "p", {})]


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "docs.jsonl", {"id": "1"})
    with pytest.raises(SourceError, match="unknown format 'xml'"):
        open_source(path, "xml")
    with pytest.raises(SourceError, match="beir has its own fields"):
        open_source(path, "beir", FieldMap("key"))
    for format_ in ("kilt", "folder", "trec", "parquet"):
        with pytest.raises(SourceError, match=f"is no {format_} source"):
            open_source(str(tmp_path / "none"), format_)
    with pytest.raises(SourceError, match="is no beir source"):
        open_source(str(tmp_path), "beir")
    with pytest.raises(SourceError, match="cannot be read from standard input"):
        open_source("-", "parquet")
    with pytest.raises(SourceError, match="names no index"):
        open_source("http://localhost:9200/")


@pytest.mark.parametrize("missing", ["ir_datasets", "pyarrow"])
def test_a_missing_package_is_named_with_its_remedy(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="pip install"):
        open_source("irds:vaswani" if missing == "ir_datasets" else str(path))


def test_a_missing_package_for_zstandard_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00")
    with pytest.raises(SourceError, match=r"titlecast\[sources\]"):
        open_source(str(path), "jsonl")


def test_standard_input_is_read_whatever_it_is_packed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"1\ttext\n", gzip.compress(b"1\ttext\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        source = open_source("-", "msmarco")
        assert source.fraction() is None
        assert list(source.records) == [Document("1", "", "text")]
        assert not sys.stdin.buffer.closed


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"1\ttext\n",))
    writer.start()
    assert list(open_source(str(path), "msmarco").records) == [Document("1", "", "text")]
    writer.join()


def test_the_fingerprint_tells_what_was_read_and_how(tmp_path: Path) -> None:
    path = make(tmp_path / "a.jsonl", {"id": "1", "title": "t", "headline": "h"})
    plain = open_source(path).fingerprint
    assert open_source(path).fingerprint == plain
    mapped = open_source(path, None, FieldMap(title=("headline",))).fingerprint
    assert mapped != plain
    cut = open_source(path).through(lambda records: records, split_tokens=64)
    assert cut.fingerprint == {**plain, "split_tokens": 64}
    assert list(cut.records) == list(open_source(path).records)
    make(tmp_path / "a.jsonl", {"id": "2", "title": "longer"})
    assert open_source(path).fingerprint != plain
    json.dumps(plain)


@pytest.mark.parametrize("format_", sorted({*FORMATS} - {"opensearch", "irds", "parquet", "pydoc"}))
@pytest.mark.parametrize("empty", ["file", "gzip"])
def test_an_empty_file_is_an_empty_source(format_: str, empty: str, tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(b"" if empty == "file" or format_ == "folder" else gzip.compress(b""))
    records = [r for r in open_source(str(path), format_).records if not isinstance(r, Failure)]
    assert [record for record in records if isinstance(record, Document)] == []


def test_formats_of_pages_are_formats() -> None:
    assert set(FORMATS) > PAGES
