"""`titlecast index --vectors`: refused without the k-NN plugin, and what it sends with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from opensearchpy import OpenSearch
from typer.testing import CliRunner, Result

import plugin.cli.index
from indexing.bulk import IndexingError
from indexing.job import Destination, run
from indexing.mapping import VECTORS_OF, index_body
from indexing.records import Document
from plugin.cli import reading
from plugin.cli.options import CommandError
from reranker.dual import DualEncoder
from tests.reranker.conftest import SMALL, random_encoder, write_model

INDEX = "test-index-vectors"
LINES = '{"id": "a", "title": "Heap", "passage": "A list"}\n{"id": "b", "title": "Sorted lines"}\n'


@pytest.fixture(autouse=True)
def clean(client: OpenSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield
    client.indices.delete(index=f"{INDEX}*", ignore=[404])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "passage", random_encoder(SMALL))


def load(client: OpenSearch, folder: Path, *options: object) -> Result:
    path = folder / "a.jsonl"
    path.write_text(LINES, "utf-8")
    url = client.transport.connection_pool.connections[0].host
    app = typer.Typer()
    app.callback()(lambda: None)
    plugin.cli.index.register(app)
    arguments = ["index", path, "--index", INDEX, "--url", url, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def has_knn(client: OpenSearch) -> bool:
    plugins = client.cat.plugins(params={"format": "json"})
    return "opensearch-knn" in {one["component"] for one in plugins}


def test_without_the_plugin_nothing_is_made(
    client: OpenSearch, model: Path, tmp_path: Path
) -> None:
    if has_knn(client):
        pytest.skip("this cluster has the k-NN plugin")
    done = load(client, tmp_path, "--vectors", "--vectors-model", model)
    assert done.exit_code != 0
    assert "install opensearch-knn" in str(done.exception)
    assert not client.indices.exists(index=INDEX)


def test_every_document_carries_its_passage_s_vector(
    client: OpenSearch, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the plugin is missing, with a mapping that keeps the vector without indexing it."""
    if not has_knn(client):
        monkeypatch.setattr(reading, "require_knn", lambda client: None)
        body = plugin.cli.index.index_body
        monkeypatch.setattr(
            plugin.cli.index,
            "index_body",
            lambda *settings, dimension, vectors_of: body(*settings, vectors_of=vectors_of),
        )
    done = load(client, tmp_path, "--vectors", "--vectors-model", model)
    assert done.exit_code == 0, done.output
    encoder = DualEncoder.load(model)
    wanted = encoder.encode_passages(["Heap", "Sorted lines"], ["A list", ""])
    for key, vector in zip(("a", "b"), wanted, strict=True):
        source = client.get(index=INDEX, id=key)["_source"]
        assert len(source["vector"]) == SMALL.hidden
        assert np.array_equal(np.array(source["vector"], dtype=np.float32), vector)
    mapping = client.indices.get_mapping(index=INDEX)[INDEX]["mappings"]
    assert mapping["_meta"] == {VECTORS_OF: encoder.name}


def test_an_index_without_vectors_is_not_given_any(client: OpenSearch, tmp_path: Path) -> None:
    client.indices.create(index=INDEX, body=index_body())

    def attempt(index: str | None, alias: str | None = None) -> Any:
        records = [Document("1", "a", "b", vector=(1.0, 2.0, 3.0, 4.0))]
        body = index_body(dimension=4)
        return run(client, records, {}, Destination(index, alias, body), folder=tmp_path / "load")

    with pytest.raises(IndexingError, match=r"made without vectors.* --alias, or with --recreate"):
        attempt(INDEX)
    assert client.count(index=INDEX)["count"] == 0
    # It was no load: another one may begin.
    assert run(client, [], {}, Destination(INDEX), folder=tmp_path / "load").summary.verified
    # An index that somebody gave the field is loaded into, whatever kind it is.
    field = {"type": "float"}
    client.indices.put_mapping(index=INDEX, body={"properties": {"vector": field}})
    assert attempt(INDEX).summary.verified


def test_vectors_of_another_model_are_refused(client: OpenSearch, tmp_path: Path) -> None:
    """No query's vector could be compared with both."""
    number = {"vector": {"type": "float"}}  # what any cluster can hold

    def attempt(model: str | None, **options: Any) -> Any:
        body = index_body(vectors_of=model)
        body["mappings"]["properties"] |= number
        records = [Document("1", "a", "b", vector=(1.0, 2.0))]
        destination = Destination(INDEX, body=body, **options)
        return run(client, records, {}, destination, folder=tmp_path / "load")

    for model in ("one-0.4", "one-0.4", None):  # nobody knows whose the last ones are
        assert attempt(model).summary.verified
    with pytest.raises(IndexingError, match=r"vectors of one-0\.4, .*of one-0\.5 .*--recreate"):
        attempt("one-0.5")
    assert attempt("one-0.5", recreate=True).summary.verified
    assert attempt("one-0.5").summary.verified
    mapping = client.indices.get_mapping(index=INDEX)[INDEX]["mappings"]
    assert mapping["_meta"] == {VECTORS_OF: "one-0.5"}


def test_two_sources_of_vectors_are_refused(
    client: OpenSearch, model: Path, tmp_path: Path
) -> None:
    done = load(client, tmp_path, "--vectors", "--vector-field", "v", "--vectors-model", model)
    assert isinstance(done.exception, CommandError) or "one of the two" in done.output
    assert not client.indices.exists(index=INDEX)
