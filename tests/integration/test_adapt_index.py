"""`titlecast adapt --index`: documents come out of a real index, an adapted model out of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from opensearchpy import OpenSearch
from opensearchpy.helpers import bulk
from typer.testing import CliRunner

from indexing.sources.fields import FieldMap
from plugin.cli import adapt as command
from reranker import TitleReranker
from reranker.training.config import RECIPES
from tests.reranker.training.conftest import backbone  # noqa: F401 - a fixture
from tests.reranker.training.test_adapt import corpus, start  # noqa: F401 - another

INDEX = "test-adapt-index"


@pytest.fixture
def index(client: OpenSearch) -> Iterator[str]:
    """An index with the documents of `corpus`, in fields of other names, and one without any."""
    client.indices.create(index=INDEX)
    sources = {d.id: {"name": d.title, "body": {"en": d.text}} for d in corpus().values()}
    sources["z"] = {"price": 3}
    actions = [{"_id": key, "_source": source} for key, source in sources.items()]
    bulk(client, actions, index=INDEX, refresh=True)
    yield INDEX
    client.indices.delete(index=INDEX)


def address(client: OpenSearch) -> str:
    host: str = client.transport.connection_pool.connections[0].host
    return host


def test_an_index_makes_an_adapted_model(
    client: OpenSearch,
    index: str,
    backbone: Path,  # noqa: F811
    start: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = (RECIPES / "adapt.toml").read_text("utf-8")
    text = text.replace('task = "title"', f'task = "title"\nbackbone = "{backbone}"')
    for old, new in (("steps = 150", "steps = 4"), ("_layers = 2", "_layers = 1")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "r.toml").write_text(text, "utf-8")
    app = typer.Typer()
    command.register(app)
    out = tmp_path / "out"
    arguments = ["--url", address(client), "--index", index, "--out", str(out), "--no-teacher"]
    arguments += ["--title-field", "name", "--passage-field", "body.en", "--threads", "1"]
    arguments += ["--config", str(tmp_path / "r.toml"), "--start", str(start), "--name", "mine"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 records of" in result.stderr  # the one that has none of the fields
    pool = json.loads((out / "train" / "pool.json").read_text("utf-8"))
    assert {d.title for d in corpus().values()} == set(pool)
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert set(report) == {"held-back documents"}
    model = TitleReranker.load(out / "model", threads=1)
    assert model.name == "mine"
    assert model.score("merge lists", ["heap queue"]).shape == (1,)


def test_no_more_documents_than_asked_for_are_read(client: OpenSearch, index: str) -> None:
    location = f"{address(client)}/{index}"
    fields = FieldMap(title=("name",), passage=("body.en",))
    found = command.read_documents(location, fields, 7)
    assert list(found) == sorted(corpus())[:7]
    assert found == {key: corpus()[key] for key in found}
    assert client.get_all_pits()["pits"] == []
