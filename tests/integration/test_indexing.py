"""Every source on small files in its true format, loaded into a real index."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from opensearchpy import OpenSearch
from typer.testing import CliRunner, Result

import plugin.cli.index
from indexing import target
from indexing.load import load
from indexing.records import Document, Failure
from plugin.cli.options import CommandError

INDEX = "test-indexing"


@pytest.fixture(autouse=True)
def clean(client: OpenSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield
    client.indices.delete(index=f"{INDEX}*", ignore=[404])


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)  # keeps `index` a command of its own beside others
    plugin.cli.index.register(app)
    return app


def run(app: typer.Typer, client: OpenSearch, *arguments: str) -> Result:
    connection = client.transport.connection_pool.connections[0]
    if "--alias" not in arguments:
        arguments = (*arguments, "--index", INDEX)
    return CliRunner().invoke(app, ["index", *arguments, "--url", connection.host])


def settings_of(client: OpenSearch, index: str) -> dict[str, Any]:
    found: dict[str, Any] = client.indices.get_settings(index=index, flat_settings=True)
    return next(iter(found.values()))["settings"]  # type: ignore[no-any-return]


def sources(client: OpenSearch) -> dict[str, Any]:
    found = client.search(index=INDEX, body={"size": 1000})["hits"]["hits"]
    return {hit["_id"]: hit["_source"] for hit in found}


def write(path: Path, *lines: object) -> str:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def test_a_beir_folder(app: typer.Typer, client: OpenSearch, tmp_path: Path) -> None:
    write(
        tmp_path / "corpus.jsonl",
        {"_id": "a", "title": "Ada", "text": "A programmer.", "metadata": {"source": "x"}},
        {"_id": "b", "title": "", "text": "No title."},
    )
    result = run(app, client, str(tmp_path))
    assert result.exit_code == 0, result.output
    assert sources(client) == {
        "a": {"title": "Ada", "passage": "A programmer.", "metadata": {"source": "x"}},
        "b": {"title": "", "passage": "No title."},
    }


def test_the_kilt_knowledge_source(app: typer.Typer, client: OpenSearch, tmp_path: Path) -> None:
    page = {
        "wikipedia_id": "290",
        "wikipedia_title": "A",
        "text": ["A\n", "First letter.\n", "Section::::History.\n", "From aleph.\n"],
    }
    path = write(tmp_path / "knowledge.json.gz", page)
    assert run(app, client, path, "--format", "kilt").exit_code == 0
    assert {key: value["passage"] for key, value in sources(client).items()} == {
        "290-1": "First letter.",
        "290-3": "From aleph.",
    }


def test_ms_marco_passages(app: typer.Typer, client: OpenSearch, tmp_path: Path) -> None:
    path = write(tmp_path / "collection.tsv", "0\tThe project.", "1\tMore of it.")
    assert run(app, client, path).exit_code == 0
    assert sources(client)["1"] == {"title": "", "passage": "More of it."}


def test_mapped_json_lines(app: typer.Typer, client: OpenSearch, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"key": 7, "headline": "H", "body": "B", "price": 3})
    fields = ("--title-field", "headline", "--passage-field", "body", "--id-field", "key")
    assert run(app, client, path, *fields).exit_code == 0
    assert sources(client) == {
        "7": {"title": "H", "passage": "B", "metadata": {"price": 3}},
    }


def test_the_standard_library(app: typer.Typer, client: OpenSearch) -> None:
    result = run(app, client, "pydoc")
    assert result.exit_code == 0, result.output
    body = {"query": {"match": {"title": "merging sorted inputs"}}, "size": 1}
    (hit,) = client.search(index=INDEX, body=body)["hits"]["hits"]
    assert hit["_id"] == "heapq.merge"


def test_a_limit(app: typer.Typer, client: OpenSearch, tmp_path: Path) -> None:
    path = write(tmp_path / "c.tsv", *(f"{number}\ttext" for number in range(50)))
    assert run(app, client, path, "--limit", "7").exit_code == 0
    assert len(sources(client)) == 7


def test_failures_are_named_and_the_rest_gets_in(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    lines = ['{"id": "1", "title": "good"}', "{nonsense", '{"id": "2", "title": "good too"}']
    result = run(app, client, write(tmp_path / "a.jsonl", *lines))
    assert result.exit_code == 1
    assert isinstance(result.exception, CommandError)
    assert "1 of 3 records" in str(result.exception)
    assert "a.jsonl:2: not JSON" in str(result.exception)
    assert set(sources(client)) == {"1", "2"}


def test_a_second_run_replaces_and_recreate_starts_anew(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    first = write(tmp_path / "a.tsv", "1\told", "2\told")
    second = write(tmp_path / "b.tsv", "1\tnew")
    run(app, client, first)
    result = run(app, client, second)
    assert result.exit_code == 0
    assert "documents are added to it" in " ".join(result.output.split())
    assert {key: value["passage"] for key, value in sources(client).items()} == {
        "1": "new",
        "2": "old",
    }
    assert run(app, client, second, "--recreate").exit_code == 0
    assert set(sources(client)) == {"1"}


def test_ids_that_come_twice_are_told(app: typer.Typer, client: OpenSearch, tmp_path: Path) -> None:
    result = run(app, client, write(tmp_path / "a.tsv", "1\tone", "1\ttwo"))
    assert result.exit_code == 0
    assert "1 ids came more than once" in " ".join(result.output.split())
    assert sources(client)["1"]["passage"] == "two"


def test_a_source_that_cannot_be_read_deletes_nothing(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    run(app, client, write(tmp_path / "a.tsv", "1\told"))
    assert run(app, client, str(tmp_path / "none.tsv"), "--recreate").exit_code == 1
    assert set(sources(client)) == {"1"}


def test_an_empty_source_is_no_success(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    assert run(app, client, write(tmp_path / "a.tsv")).exit_code == 1


@pytest.mark.parametrize(
    "own",
    [
        {"index.number_of_shards": 2, "index.number_of_replicas": 2},
        {"number_of_shards": 2, "number_of_replicas": 2},
        {"index": {"number_of_shards": 2, "number_of_replicas": 2}},
    ],
)
def test_a_new_index_is_made_for_loading_and_put_right_afterwards(
    client: OpenSearch, own: dict[str, Any]
) -> None:
    target.make_index(client, INDEX, {"settings": own})
    settings = settings_of(client, INDEX)
    assert settings["index.number_of_shards"] == "2"
    assert settings["index.number_of_replicas"] == "0"
    assert settings["index.refresh_interval"] == "-1"
    assert target.is_loading(client, INDEX)
    assert load(client, INDEX, [Document("1", "t", "p")]).verified
    assert target.end_loading(client, INDEX)
    settings = settings_of(client, INDEX)
    assert "index.refresh_interval" not in settings
    assert settings["index.number_of_replicas"] == "2"
    assert not target.is_loading(client, INDEX)
    assert not target.end_loading(client, INDEX)


def test_an_existing_index_gets_its_own_settings_again(client: OpenSearch) -> None:
    client.indices.create(
        index=INDEX,
        body={
            "settings": {"index.refresh_interval": "7s", "index.number_of_replicas": 2},
            "mappings": {"_meta": {"owner": "somebody"}, "properties": {"x": {"type": "text"}}},
        },
    )
    target.begin_loading(client, INDEX)
    target.begin_loading(client, INDEX)  # as after a kill: what it finds is not its own
    settings = settings_of(client, INDEX)
    assert settings["index.refresh_interval"] == "-1"
    assert settings["index.number_of_replicas"] == "0"
    assert target.end_loading(client, INDEX)
    settings = settings_of(client, INDEX)
    assert settings["index.refresh_interval"] == "7s"
    assert settings["index.number_of_replicas"] == "2"
    mapping = client.indices.get_mapping(index=INDEX)[INDEX]["mappings"]
    assert mapping == {"_meta": {"owner": "somebody"}, "properties": {"x": {"type": "text"}}}


def test_recreating_keeps_the_default_pipeline(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    client.indices.create(index=INDEX, body={"settings": {"index.search.default_pipeline": "some"}})
    assert run(app, client, write(tmp_path / "a.tsv", "1\told"), "--recreate").exit_code == 0
    assert settings_of(client, INDEX)["index.search.default_pipeline"] == "some"


def test_an_alias_is_not_loaded_into(app: typer.Typer, client: OpenSearch, tmp_path: Path) -> None:
    client.indices.create(index=f"{INDEX}-1", body={"aliases": {INDEX: {}}})
    result = run(app, client, write(tmp_path / "a.tsv", "1\told"), "--recreate")
    assert "is an alias" in str(result.exception)
    assert client.indices.exists(index=f"{INDEX}-1")


def test_metadata_of_any_kind_is_kept_beside_each_other(client: OpenSearch) -> None:
    target.make_index(client, INDEX)
    kinds: list[object] = [1, "word", {"deep": {"er": [1, "a"]}}, [{"x": 1}, 2], None, "w" * 40_000]
    records = [Document(str(n), "t", "p", {"value": kind}) for n, kind in enumerate(kinds)]
    summary = load(client, INDEX, records)
    assert summary.failures == ()
    assert [sources(client)[str(n)]["metadata"]["value"] for n in range(len(kinds))] == kinds


def test_what_a_real_engine_refuses_is_named(client: OpenSearch) -> None:
    client.indices.create(
        index=INDEX, body={"mappings": {"properties": {"passage": {"type": "integer"}}}}
    )
    records = [Document("1", "t", "7"), Document("2", "t", "words"), Document("x" * 600, "t", "7")]
    summary = load(client, INDEX, records)
    assert (summary.created, summary.failed) == (1, 2)
    long, refused = sorted(summary.failures, key=lambda failure: len(failure.location))[::-1]
    assert "512 bytes" in long.reason
    assert refused == Failure("document '2'", refused.reason)
    assert "passage" in refused.reason


def test_a_dry_run_reads_everything_and_needs_no_cluster(app: typer.Typer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "1", "title": "t"}, {"id": "2", "title": " "})
    nowhere = ("--dry-run", "--url", "http://127.0.0.1:1")
    result = CliRunner().invoke(app, ["index", path, *nowhere, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    counts = {name: summary[name] for name in ("read", "documents", "failed", "skipped")}
    assert counts == {"read": 2, "documents": 1, "failed": 0, "skipped": 1}
    path = write(tmp_path / "b.jsonl", {"id": "1", "title": "t"}, "{nonsense")
    result = CliRunner().invoke(app, ["index", path, *nowhere])
    assert isinstance(result.exception, CommandError)
    assert result.exception.status == 1
    assert "1 of 2 records" in str(result.exception)


def test_a_summary_as_json_and_a_file_of_what_failed(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    good = [{"id": str(n), "title": "good"} for n in range(3)]
    path = write(tmp_path / "a.jsonl", *good, "{nonsense", {"id": "x" * 600, "title": "long"})
    dead = tmp_path / "dead.jsonl"
    result = run(app, client, path, "--json", "--dead-letters", str(dead))
    assert isinstance(result.exception, CommandError)
    assert result.exception.status == 1
    summary = json.loads(result.stdout)  # nothing else is there
    assert summary["index"] == INDEX
    assert (summary["indexed"], summary["failed"], summary["verified"]) == (3, 2, True)
    assert summary["dead_letters"] == str(dead)
    unread, long = (json.loads(line) for line in dead.read_text().splitlines())
    assert (unread["position"], unread["excerpt"]) == (3, "{nonsense")
    assert (long["position"], long["id"], long["document"]["title"]) == (4, "x" * 600, "long")


def test_dead_letters_that_would_replace_something_end_a_load_before_it_begins(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    client.indices.create(index=INDEX)
    client.index(index=INDEX, id="0", body={"title": "kept"}, refresh=True)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = write(tmp_path / "a.jsonl", {"id": "1", "title": "t"}, "{nonsense")
    before = Path(path).read_text()
    for dead, said in ((str(pipe), "no regular file"), (path, "take the place of its source")):
        result = run(app, client, path, "--recreate", "--dead-letters", dead)
        assert isinstance(result.exception, CommandError)
        assert result.exception.status == 2
        assert said in str(result.exception)
        assert set(sources(client)) == {"0"}
    assert pipe.is_fifo()
    assert Path(path).read_text() == before


def test_an_alias_is_switched_from_the_command_line(
    app: typer.Typer, client: OpenSearch, tmp_path: Path
) -> None:
    """Twice, the second time deleting what the first one made."""
    made = []
    for text in ("old", "new"):
        path = write(tmp_path / "a.tsv", f"1\t{text}")
        result = run(app, client, path, "--alias", INDEX, "--delete-old")
        assert result.exit_code == 0, result.output
        assert sources(client)["1"]["passage"] == text
        made.append(target.indices_of(client, INDEX))
    assert f"before: {made[0][0]} (deleted)" in " ".join(result.output.split())
    assert list(client.indices.get(index=f"{INDEX}*")) == made[1] != made[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pydoc"], "--index or --alias"),
        (["--index", INDEX], "name what to load"),
        (["pydoc", "--alias", INDEX, "--recreate"], "no meaning"),
        (["pydoc", "--index", INDEX, "--delete-old"], "belongs to --alias"),
        (["pydoc", "--index", INDEX, "--alias", "x"], "either an index or an alias"),
        (["--restore"], "--index"),
        (["--restore", "--index", f"{INDEX}-none"], "there is no index"),
    ],
)
def test_what_cannot_run_has_status_2(
    app: typer.Typer, client: OpenSearch, arguments: list[str], said: str
) -> None:
    host = client.transport.connection_pool.connections[0].host
    result = CliRunner().invoke(app, ["index", *arguments, "--url", host])
    assert isinstance(result.exception, CommandError), result.output
    assert result.exception.status == 2
    assert said in str(result.exception)


def test_documents_are_found_by_inflected_words_and_by_the_exact_title(
    client: OpenSearch,
) -> None:
    target.make_index(client, INDEX)
    load(client, INDEX, [Document("1", "Sorting of Lists", "p"), Document("2", "Sorting", "p")])
    for query, found in (
        ({"match": {"title": "list"}}, ["1"]),
        ({"term": {"title.exact": "Sorting"}}, ["2"]),
    ):
        hits = client.search(index=INDEX, body={"query": query})["hits"]["hits"]
        assert [hit["_id"] for hit in hits] == found


def test_the_real_command_line_ends_with_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: a dead cluster is a sentence and status 1, no trace."""
    code = (
        "import typer, plugin.cli.index as i; a = typer.Typer(); i.register(a)\n"
        "try: a()\nexcept i.CommandError as e: print(e); raise SystemExit(e.status)"
    )
    path = write(tmp_path / "a.tsv", "1\ttext")
    done = subprocess.run(
        [sys.executable, "-c", code, path, "--index", INDEX, "--url", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout.startswith("no cluster answers at http://127.0.0.1:1")
    assert "Traceback" not in done.stderr
