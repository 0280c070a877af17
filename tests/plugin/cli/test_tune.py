"""`titlecast tune` from the texts to the file that the sidecar reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import plugin.cli.tune as command
from indexing.records import Document
from plugin.cli.main import app
from plugin.cli.options import CommandError
from plugin.sidecar.settings import load_settings
from plugin.tuning import ThreadPoint
from reranker import Cascade
from tests.reranker.conftest import write_models

pytest.importorskip("ir_measures", reason="ir-measures is in the train extra")

TITLES = {"d1": "heap queue", "d2": "merge sorted lists", "d3": "read lines of files"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    folder = tmp_path / "judged"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": id, "title": t, "text": "a heap"} for id, t in TITLES.items()]
    queries = [{"_id": "q1", "text": "heap"}, {"_id": "q2", "text": "lists of lines"}]
    for name, items in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    judgements = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t1\n"
    (folder / "qrels" / "test.tsv").write_text(judgements, "utf-8")
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["tune", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_judged_folder_gives_settings_and_a_picture(models, judged, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the train extra")
    out, plot = tmp_path / "tuned.env", tmp_path / "depths.png"
    said = run(
        *("--beir", judged, "--model", models, "--out", out, "--plot", plot),
        *("--candidates", 5, "--searches", 2, "--budget-ms", 100_000),
    )
    assert "nDCG@10" in said
    assert plot.read_bytes().startswith(b"\x89PNG")
    # Installed so, a search reads what was measured, and has the time for it.
    wanted = r"pipeline install --passage-depth \d+ --window 5 --timeout 200000ms \("
    assert re.search(wanted, out.read_text())
    assert "raise title_rerank.sidecar.timeout" in " ".join(said.split())
    settings = load_settings(out)
    assert settings.threads >= 1
    assert settings.max_concurrent >= 1
    assert settings.cache_mb == 1


def test_of_several_models_one_is_chosen(models, judged, tmp_path):
    other = write_models(tmp_path / "other")
    out = tmp_path / "tuned.env"
    run(
        *("--beir", judged, "--model", models, "--model", other, "--out", out),
        *("--candidates", 5, "--searches", 1, "--budget-ms", 100_000),
    )
    # They are the same but for the time they take: of equal ones the first.
    assert load_settings(out).model == models


def test_a_folder_of_several_query_sets_needs_a_name(models, judged, tmp_path):
    for name in ("one", "two"):
        (judged / f"{name}-queries.jsonl").write_text((judged / "queries.jsonl").read_text())
        (judged / f"{name}-qrels.tsv").write_text((judged / "qrels/test.tsv").read_text())
    out = tmp_path / "tuned.env"
    options = ("--beir", judged, "--model", models, "--out", out, "--searches", 1)
    with pytest.raises(Exception, match="choose one with --queries: one, two"):
        run(*options)
    run(*options, "--queries", "two", "--candidates", 5)
    assert out.is_file()
    with pytest.raises(Exception, match="add --beir"):
        run("--queries", "two", "--out", out)


def test_a_picture_needs_judged_queries(tmp_path):
    with pytest.raises(Exception, match="--plot draws quality"):
        run("--plot", tmp_path / "a.png", "--out", tmp_path / "b.env")


def test_texts_come_from_one_place(tmp_path):
    with pytest.raises(Exception, match="not both"):
        run("--beir", tmp_path, "--index", "docs", "--out", tmp_path / "b.env")


def test_a_file_of_other_settings_is_left_alone(models, judged, tmp_path):
    out = tmp_path / "titlecast.env"
    options = ("--beir", judged, "--model", models, "--out", out, "--searches", 1)
    run(*options)
    run(*options)  # its own
    before = (
        out.read_text() + "export TITLECAST_API_KEY=secret\n#TITLECAST_PORT=1\n HTTP_PROXY = x\n"
    )
    out.write_text(before)
    with pytest.raises(CommandError, match=r"lost \(TITLECAST_API_KEY, HTTP_PROXY\): give another"):
        run(*options)
    assert out.read_text() == before


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_folder_that_is_not_there_is_missed_before_anything_is_measured(tmp_path, option):
    file = tmp_path / "none" / "file"
    with pytest.raises(CommandError, match=f"no folder {file.parent} for"):
        run(option, file, "--beir", tmp_path)  # where there is nothing to measure with


def test_depths_are_measured_as_the_sidecar_will_serve(models, judged, tmp_path, monkeypatch):
    """With the threads that are chosen, and with all the cache that may be."""
    points = [ThreadPoint(1, 70.0, 11.0), ThreadPoint(2, 80.0, 8.0)]
    monkeypatch.setattr(command, "measure_threads", lambda *_, **__: points)
    loaded = []

    class Spied(Cascade):
        @classmethod
        def load(cls, path, threads=None, cache_mb=64.0, **others):  # type: ignore[no-untyped-def]
            loaded.append((threads, cache_mb))
            return super().load(path, threads, cache_mb, **others)

    monkeypatch.setattr(command, "Cascade", Spied)
    out = tmp_path / "tuned.env"
    said = run("--beir", judged, "--model", models, "--out", out, "--candidates", 6)
    assert loaded == [(1, 1024)]
    assert load_settings(out).threads == 1
    assert "1 threads, 6 passages" in said
    assert "searches a second that read 6 passages each" in said


def test_more_searches_than_texts_are_all_texts(models, tmp_path, monkeypatch):
    records = [Document(id, title, "a heap") for id, title in TITLES.items()]
    source = SimpleNamespace(records=records)
    monkeypatch.setattr(command, "open_source", lambda _: source)
    out = tmp_path / "tuned.env"
    run("--model", models, "--out", out, "--candidates", 5, "--searches", 100_000)
    assert "with 3 searches" in out.read_text()


@pytest.mark.parametrize(
    ("fields", "told"),
    [({}, "no title was found in the index docs"), ({"_source": {"meta.title": "heap"}}, None)],
)
def test_hits_are_read_as_they_come(fields, told, monkeypatch):
    """An index may keep no `_source`, and a source may name a field inside an object by a dot."""
    hits = [{"_id": "a", "_score": 1.0, **fields}]
    client = SimpleNamespace(
        search=lambda **_: {"hits": {"hits": hits}},
        count=lambda **_: {"count": 1},
        close=lambda: None,
    )
    monkeypatch.setattr(command, "connect", lambda _: client)
    asked = ("http://here", "docs", "meta.title", "passage", 5, 2)
    if told:
        with pytest.raises(CommandError, match=told):
            command._from_index(*asked)
    else:
        windows, _ = command._from_index(*asked)
        assert [hit.title for window in windows for hit in window.hits] == ["heap"]
