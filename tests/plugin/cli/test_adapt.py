"""`titlecast adapt`: what is read of documents, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import plugin.cli.adapt
from indexing.sources.fields import FieldMap
from plugin.cli.adapt import read_documents
from plugin.cli.main import app
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


class FoundError(Exception):
    """The documents were asked for."""


@pytest.mark.parametrize(
    ("url", "location", "kept"),
    [
        (
            "https://ann:secret@cluster:9200/",
            "https://ann:secret@cluster:9200/docs",
            "https://cluster:9200/docs",
        ),
        ("cluster:9200", "http://cluster:9200/docs", "http://cluster:9200/docs"),
    ],
)
def test_an_index_is_read_as_the_cluster_is_named_and_kept_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, location: str, kept: str
) -> None:
    pytest.importorskip("torch", reason="torch is in the train extra")
    asked = []

    def read(location: str, *_: object) -> dict[str, Document]:
        asked.append(location)
        return {"a": Document("a", "Heap", "a queue")}

    def stop(*_: object, **__: object) -> None:
        raise FoundError

    monkeypatch.setattr(plugin.cli.adapt, "read_documents", read)
    monkeypatch.setattr("reranker.training.adapt.prepare_documents", stop)
    arguments = ["adapt", "--index", "docs", "--url", url, "--out", str(tmp_path), "--no-teacher"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, FoundError), result.output
    assert asked == [location]
    inputs = (tmp_path / "inputs.json").read_text()
    assert f'"{kept}"' in inputs
    assert "secret" not in inputs


def test_what_is_said_of_an_index_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"hits": {"total": {"value": 0}, "hits": []}}
    client = SimpleNamespace(
        create_pit=lambda **_: {"pit_id": "p"},
        search=lambda **_: empty,
        delete_pit=lambda **_: None,
        close=lambda: None,
    )
    monkeypatch.setattr("plugin.clusters.connect", lambda _: client)
    with pytest.raises(CommandError, match="no document in https://cluster:9200/docs to adapt"):
        read_documents("https://ann:secret@cluster:9200/docs", FieldMap(), 10)
