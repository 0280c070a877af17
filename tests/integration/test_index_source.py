"""Every source on a small file in its true format, and another index as one, on a real node."""

import bz2
import gzip
import importlib
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import typer
from opensearchpy import OpenSearch
from opensearchpy.helpers import bulk
from typer.testing import CliRunner, Result

import plugin.cli.index
from indexing.mapping import LANGUAGES, index_body
from indexing.records import Document, Failure, Record
from indexing.sources import open_source
from indexing.sources.fields import FieldMap
from indexing.sources.opensearch import IndexReader
from plugin.cli.options import CommandError
from plugin.cli.reading import read

INDEX = "test-index-source"


@pytest.fixture(autouse=True)
def clean(client: OpenSearch) -> Iterator[None]:
    yield
    client.indices.delete(index=f"{INDEX}*", ignore=[404])


@pytest.fixture
def address(client: OpenSearch) -> str:
    return f"{client.transport.connection_pool.connections[0].host}/{INDEX}"


def make(client: OpenSearch, documents: dict[str, dict[str, Any]], **body: Any) -> None:
    client.indices.create(index=INDEX, body=body or index_body(shards=3))
    actions = [{"_id": key, "_source": source} for key, source in documents.items()]
    bulk(client, actions, index=INDEX, refresh=True)


def some(count: int) -> dict[str, dict[str, Any]]:
    return {f"{n:04}": {"title": f"Title {n}", "passage": f"Passage {n}."} for n in range(count)}


def documents(records: Iterator[Record]) -> list[Document]:
    found = list(records)
    assert all(isinstance(record, Document) for record in found), found
    return [record for record in found if isinstance(record, Document)]


def test_every_document_comes_once_and_in_the_same_order(client: OpenSearch, address: str) -> None:
    make(client, some(450))
    source = open_source(address)
    assert source.format == "opensearch"
    first = documents(source.records)
    assert [one.id for one in first] == sorted(some(450))
    assert first[7] == Document("0007", "Title 7", "Passage 7.")
    assert source.fraction() == 1.0
    client.indices.forcemerge(index=INDEX, params={"max_num_segments": "1"})
    assert documents(open_source(address).records) == first
    assert client.get_all_pits()["pits"] == []


def test_what_we_wrote_comes_back_as_it_was(client: OpenSearch, address: str) -> None:
    full = Document(
        "1", "T", "P", {"a": [1, {"b": None}]}, "page", 3, "One / Two", "https://a.example/"
    )
    make(client, {one.id: one.fields() for one in (full, Document("2", "", "Q"))})
    assert documents(open_source(address).records) == [full, Document("2", "", "Q")]


def test_foreign_fields_are_mapped(client: OpenSearch, address: str) -> None:
    foreign = {"sku": "s-1", "name": {"en": "N"}, "text": "B", "price": 3}
    make(client, {"x": foreign}, settings={"index.number_of_shards": 1})
    fields = FieldMap("sku", ("name.en",), ("text",))
    (found,) = documents(open_source(address, None, fields).records)
    assert found == Document("s-1", "N", "B", {"name": {"en": "N"}, "price": 3})


def test_a_field_to_sort_by_stands_in_for_the_id(client: OpenSearch, address: str) -> None:
    rows = {str(n): {"title": f"T{n}", "rank": 100 - n} for n in range(30)}
    make(client, rows, mappings={"properties": {"rank": {"type": "integer"}}})
    found = documents(open_source(f"{address}?sort=rank").records)
    assert [one.id for one in found] == [str(n) for n in reversed(range(30))]


@pytest.mark.parametrize("sort", ["", "?sort=day"])
def test_equal_sort_values_lose_nothing_between_pages(
    client: OpenSearch, address: str, sort: str
) -> None:
    """Two indices behind an alias share all ids, and many of each have one day."""
    rows = {key: {**one, "day": int(key) // 37} for key, one in some(230).items()}
    body = {"settings": {"number_of_shards": 2}, "aliases": {f"{INDEX}-alias": {}}}
    make(client, rows, **body)
    client.indices.create(index=f"{INDEX}-2", body=body)
    bulk(client, [{"_id": key, "_source": one} for key, one in rows.items()], index=f"{INDEX}-2")
    client.indices.refresh(index=f"{INDEX}*")
    for name in (f"{INDEX}-alias", f"{INDEX}*"):
        location = f"{address.rpartition('/')[0]}/{name}{sort}"
        found = documents(IndexReader(location, page=11).documents())
        assert sorted(one.id for one in found) == sorted([*rows, *rows])
        assert documents(IndexReader(location, page=50).documents()) == found


def test_documents_that_were_not_read_are_a_failure(client: OpenSearch, address: str) -> None:
    """By their own routing, two documents of one index have one id, at the end of a page."""
    make(client, some(9))
    shards = {}
    for routing in map(str, range(9)):
        answer = client.search_shards(index=INDEX, params={"routing": routing})
        shards[answer["shards"][0][0]["shard"]] = routing
    for routing in shards.values():
        client.index(index=INDEX, id="same", body={"title": "T"}, routing=routing, refresh=True)
    *found, failure = IndexReader(address, page=10).documents()
    assert len(found) == 10
    assert isinstance(failure, Failure)
    assert failure.cut
    assert "10 documents were read where the index holds 12" in failure.reason


def test_a_point_in_time_that_expires_is_replaced(client: OpenSearch, address: str) -> None:
    make(client, some(50))
    records = IndexReader(address, page=10).documents()
    found = [next(records) for _ in range(15)]
    client.delete_all_pits()
    assert [one.id for one in documents(iter([*found, *records]))] == sorted(some(50))


def test_an_index_that_goes_away_is_a_failure(client: OpenSearch, address: str) -> None:
    make(client, some(50))
    records = IndexReader(address, page=10).documents()
    found = [next(records) for _ in range(15)]
    client.indices.delete(index=INDEX)
    client.delete_all_pits()
    *rest, failure = records
    assert len(found) + len(rest) == 20
    assert isinstance(failure, Failure)
    assert "the rest of the index cannot be read" in failure.reason
    assert "no such index" in failure.reason


def test_no_such_index_is_a_failure(address: str) -> None:
    (failure,) = open_source(address).records
    assert isinstance(failure, Failure)
    assert "no such index" in failure.reason


def test_an_index_without_sources_is_a_failure_for_each(client: OpenSearch, address: str) -> None:
    make(client, some(3), mappings={"_source": {"enabled": False}})
    found = list(open_source(address).records)
    assert [type(one) for one in found] == [Failure] * 3


def test_the_password_is_in_no_name() -> None:
    reader = IndexReader("https://admin:p%40ss@host:9200/prefix/docs?sort=a", connect=_never)
    assert reader.name == "https://host:9200/prefix/docs"
    assert (reader.index, reader.sort) == ("docs", "a")


def _never(address: str) -> OpenSearch:
    assert address == "https://admin:p%40ss@host:9200/prefix"
    return OpenSearch([address])


@pytest.mark.parametrize("name", [INDEX, f"{INDEX}-alias", f"{INDEX}*"])
def test_an_index_is_not_deleted_for_its_own_load(
    client: OpenSearch, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    make(client, some(3))
    client.indices.put_alias(index=INDEX, name=f"{INDEX}-alias")
    url = address.rpartition("/")[0]
    done = load(f"{url}/{name}", url, "--recreate")
    assert isinstance(done.exception, CommandError)
    assert done.exception.status == 2
    assert "with --alias instead" in str(done.exception)
    assert sorted(stored(client)) == sorted(some(3))
    # Another index may be made of it.
    done = load(f"{url}/{name}", url, "--recreate", index=f"{INDEX}-2")
    assert done.exit_code == 0, done.output
    assert stored(client, f"{INDEX}-2") == stored(client)


def test_an_index_is_not_deleted_for_a_source_that_gives_nothing(
    client: OpenSearch, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    make(client, some(3))
    url = address.rpartition("/")[0]
    empty = tmp_path / "a.jsonl"
    empty.write_text("")
    for source, why in ((f"{url}/{INDEX}-mistyped", "no such index"), (str(empty), "no records")):
        done = load(source, url, "--recreate")
        assert isinstance(done.exception, CommandError)
        assert "was not deleted" in str(done.exception)
        assert why in str(done.exception)
        assert sorted(stored(client)) == sorted(some(3))
    # What was refused is no interrupted load.
    empty.write_text('{"id": "1", "title": "T"}')
    assert load(str(empty), url, "--recreate").exit_code == 0
    assert list(stored(client)) == ["1"]


@pytest.mark.parametrize("analyzer", LANGUAGES)
def test_every_language_is_one_of_the_engine(client: OpenSearch, analyzer: str) -> None:
    body = {"analyzer": analyzer, "text": "Sorting the lists"}
    assert client.indices.analyze(body=body)["tokens"]


def test_passages_of_a_page_are_found_and_ordered(client: OpenSearch) -> None:
    make(
        client,
        {
            str(n): Document(str(n), "T", "p", page_id=f"page {n % 2}", position=9 - n).fields()
            for n in range(6)
        },
    )
    body = {"query": {"term": {"page_id": "page 1"}}, "sort": [{"position": "asc"}]}
    hits = client.search(index=INDEX, body=body)["hits"]["hits"]
    assert [hit["_id"] for hit in hits] == ["5", "3", "1"]


def zstd_compress(data: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    compressed: bytes = importlib.import_module(name).compress(data)
    return compressed


def parquet(path: Path) -> None:
    columns = {"id": ["1"], "title": ["T"], "text": ["P"], "year": [1999]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


FORMATS: dict[str, tuple[str, bytes | Callable[[Path], None]]] = {
    "csv": ("a.csv", b'id,title,text,price\n1,T,"P, or\nQ",3\n2,U,,\n'),
    "debian": ("status", b"Package: bash\nSection: shells\nDescription: GNU shell\n Long.\n"),
    "dpr": ("psgs.tsv.zst", zstd_compress(b'id\ttext\ttitle\n1\t"P ""q"""\tT\n')),
    "folder": ("a.md", b"# T\n\nP.\n\n## S\n\n" + b"One sentence of it. " * 200),
    "jsonl": ("a.jsonl.bz2", bz2.compress(b'{"id": 1, "title": "T", "text": "P", "n": {"a": 1}}')),
    "kilt": (
        "a.json.xz",
        lzma.compress(
            b'{"wikipedia_id": "1", "wikipedia_title": "T", "text": ["T", "P", "Section::::S.",'
            b' "Q"], "anchors": [{"paragraph_id": 1, "text": "P", "href": "P"}]}'
        ),
    ),
    "msmarco": ("a.tsv.gz", gzip.compress(b"D1\thttps://a.example/\tT\tP\n")),
    "parquet": ("a.parquet", parquet),
    "trec": ("a.txt", b"<DOC><DOCNO>A-1</DOCNO><HL>T</HL><TEXT>caf\xe9</TEXT></DOC>"),
}


@pytest.mark.parametrize("format_", sorted(FORMATS))
def test_a_format_is_in_the_index_as_it_was_read(
    format_: str,
    client: OpenSearch,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    name, content = FORMATS[format_]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    url = address.rpartition("/")[0]
    done = load(str(path), url)
    assert done.exit_code == 0, done.output
    reading = read(str(path))
    assert reading.source.format == format_  # told by itself
    wanted = {one.id: one.fields() for one in documents(reading.source.records)}
    assert wanted
    assert stored(client) == wanted
    # A second run changes nothing, and so does a load of the index itself.
    assert load(str(path), url).exit_code == 0
    assert stored(client) == wanted
    assert {one.id: one.fields() for one in documents(open_source(address).records)} == wanted


def test_vectors_are_refused_where_the_cluster_cannot_hold_them(
    client: OpenSearch, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = client.cat.plugins(params={"format": "json"})
    if "opensearch-knn" in {one["component"] for one in plugins}:
        pytest.skip("this cluster has the k-NN plugin")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "title": "T", "v": [1, 2]}\n')
    done = load(str(path), address.rpartition("/")[0], "--vector-field", "v")
    assert done.exit_code != 0
    assert "install opensearch-knn" in str(done.exception)
    assert not client.indices.exists(index=INDEX)


def load(path: str, url: str, *options: str, index: str = INDEX) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    plugin.cli.index.register(app)
    return CliRunner().invoke(app, ["index", path, "--index", index, "--url", url, *options])


def stored(client: OpenSearch, index: str = INDEX) -> dict[str, Any]:
    hits = client.search(index=index, body={"size": 1000})["hits"]["hits"]
    return {hit["_id"]: hit["_source"] for hit in hits}
