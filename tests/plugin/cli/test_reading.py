"""What `titlecast index` reads and how, without a cluster."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import plugin.cli.index
from indexing.records import Document
from indexing.sources import SourceError
from indexing.sources.fields import FieldMap
from plugin.cli.options import CommandError
from plugin.cli.reading import read, require_knn
from plugin.clusters import ClusterError

LONG = "".join(f"Sentence number {number} is here. " for number in range(80))


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def index() -> Callable[..., Any]:
    app = typer.Typer()
    app.callback()(lambda: None)
    plugin.cli.index.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["index", *arguments])


def test_titles_are_given_before_texts_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "1", "text": LONG})
    reading = read(path, split_tokens=64, title_from="first-sentence")
    found = list(reading.source.records)
    assert len(found) > 5
    assert {one.title for one in found if isinstance(one, Document)} == {
        "Sentence number 0 is here"
    }
    assert reading.counts() == {
        "titles_given": 1,
        "titles_missing": 0,
        "texts_split": 1,
        "passages_made": len(found),
    }
    assert len(reading.notes()) == 2


def test_only_pages_are_cut_unless_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "1", "title": "t", "text": LONG})
    assert len(list(read(path).source.records)) == 1
    (tmp_path / "a.md").write_text(f"# A\n\n{LONG}")
    pages = tmp_path / "a.md"
    assert len(list(read(str(pages)).source.records)) > 1
    assert len(list(read(str(pages), split_tokens=0).source.records)) == 1


def test_every_option_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "1", "title": "t", "text": LONG})
    options: list[dict[str, Any]] = [
        {},
        {"split_tokens": 64},
        {"split_tokens": 65},
        {"split_tokens": 64, "overlap": 8},
        {"title_from": "url"},
        {"title_from": "file"},
        {"fields": FieldMap(title=("text",))},
    ]
    prints = [json.dumps(dict(read(path, **one).source.fingerprint)) for one in options]
    assert len(set(prints)) == len(prints)
    assert json.dumps(dict(read(path).source.fingerprint)) == prints[0]


def test_documents_without_titles_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "1", "text": "b"})
    reading = read(path)
    list(reading.source.records)
    assert reading.counts()["titles_missing"] == 1
    (note,) = reading.notes()
    assert "--title-from first-sentence" in note


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "1", "title": "t"})
    with pytest.raises(ValueError, match="--title-from is one of"):
        read(path, title_from="guess")
    with pytest.raises(ValueError, match="at least 16 tokens"):
        read(path, split_tokens=3)
    with pytest.raises(SourceError):
        read(str(tmp_path / "none"))


def test_a_report_as_a_table_and_as_json(index: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"id": n, "title": title, "text": "b"} for n, title in enumerate(("A", "B", "a!", ""))]
    path = write(tmp_path / "a.jsonl", *rows, {"nothing": 1})
    shown = index(path, "--report")
    assert shown.exit_code == 0, shown.output
    for words in ("distinct titles", "near-duplicates: A | a!", "25.0 % of the documents have no"):
        assert words in shown.output
    found = json.loads(index(path, "--report", "--json").stdout)
    assert (found["documents"], found["failed"], found["empty"]) == (4, 1, 1)
    assert found["near"] == [{"titles": ["A", "a!"], "documents": 2}]
    given = json.loads(index(path, "--report", "--json", "--title-from", "first-sentence").stdout)
    assert (given["empty"], given["given"]) == (0, 1)
    assert json.loads(index(path, "--report", "--json", "--limit", "2").stdout)["documents"] == 2


def test_a_dry_run_tells_what_reading_did(index: Callable[..., Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"key": 1, "head": "t", "body": LONG})
    fields = ("--id-field", "key", "--title-field", "head", "--passage-field", "body")
    done = index(path, *fields, "--split-tokens", "64", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["documents"] == found["passages_made"] > 5
    assert found["texts_split"] == 1


def test_a_source_that_cannot_be_read_is_one_sentence(index: Callable[..., Any]) -> None:
    done = index("/nowhere/at/all.tsv", "--report")
    assert isinstance(done.exception, CommandError)
    assert "does not exist" in str(done.exception)


class Plugins:
    """The part of a client that lists a cluster's plugins."""

    def __init__(self, *names: str) -> None:
        self._names = names

    @property
    def cat(self) -> "Plugins":
        return self

    def plugins(self, params: dict[str, str]) -> list[dict[str, str]]:
        assert params == {"format": "json"}
        return [{"name": "node", "component": name} for name in self._names]


def test_vectors_need_the_k_nn_plugin() -> None:
    require_knn(Plugins("title-rerank", "opensearch-knn"))  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="has not got the k-NN plugin"):
        require_knn(Plugins("title-rerank"))  # type: ignore[arg-type]
