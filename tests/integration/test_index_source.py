"""Another index as a source, on a real node."""

from collections.abc import Iterator
from typing import Any

import pytest
from opensearchpy import OpenSearch
from opensearchpy.helpers import bulk

from indexing.mapping import LANGUAGES, index_body
from indexing.records import Document, Failure, Record
from indexing.sources import open_source
from indexing.sources.fields import FieldMap
from indexing.sources.opensearch import IndexReader

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
