import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from opensearchpy.exceptions import ConnectionError as NoConnectionError
from opensearchpy.exceptions import TransportError
from rich.console import Console
from typer.testing import CliRunner

import plugin.cli.demo
from plugin import demo
from plugin.cli.options import CommandError
from plugin.cli.search import Comparison, Found
from plugin.engines import EngineUnavailable
from plugin.ports import free_port
from plugin.sidecar.process import SidecarError, SidecarProcess, ask_health
from reranker import Cascade
from reranker.evaluation.collections import Document, Query
from reranker.evaluation.contamination import fingerprint, fingerprints
from reranker.evaluation.hybrid import DenseIndex
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
TEXTS = {
    "d1": ("Heaps", "A heap is a tree whose parents are never larger than their children."),
    "d2": ("Sorting", "Merging sorted lists takes linear time."),
    "d3": ("Lists", "A list holds items in order; lists can be sorted."),
    "d4": ("", "Archives hold files."),
}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A folder with two query sets; one query of each is not judged."""
    lines(
        tmp_path / "corpus.jsonl",
        *({"_id": k, "title": t, "text": p} for k, (t, p) in TEXTS.items()),
    )
    for name, questions in (
        ("one", ["merge sorted lists", "What is a heap?", "unjudged"]),
        ("two", ["files in archives", "unjudged lists"]),
    ):
        queries = [{"_id": f"{name}{n}", "text": text} for n, text in enumerate(questions)]
        lines(tmp_path / f"{name}-queries.jsonl", *queries)
        judged = {"one": ["one0\td2\t1", "one1\td1\t2"], "two": ["two0\td4\t1"]}[name]
        (tmp_path / f"{name}-qrels.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *judged, ""])
        )
    return tmp_path


def lines(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


# Query sets.


def test_every_query_set_of_a_folder_is_read(beir: Path) -> None:
    one, two = demo.read_query_sets(beir)
    assert (one.name, one.read, one.judged, one.trained_on) == ("one", 3, 2, 0)
    assert [query.id for query in one.queries] == ["one0", "one1"]
    assert (two.name, two.read, two.judged) == ("two", 2, 1)
    assert one.qrels["one1"] == {"d1": 2}


def test_a_query_set_is_chosen_by_name(beir: Path) -> None:
    assert [one.name for one in demo.read_query_sets(beir, "two")] == ["two"]
    with pytest.raises(ValueError, match="choose one of one, two"):
        demo.read_query_sets(beir, "three")


def test_an_ordinary_beir_folder_is_one_set(tmp_path: Path) -> None:
    lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "a"}, {"_id": "r", "text": "b"})
    (tmp_path / "qrels").mkdir()
    for split, query in (("test", "q"), ("train", "r")):
        (tmp_path / "qrels" / f"{split}.tsv").write_text(
            f"query-id\tcorpus-id\tscore\n{query}\td\t1\n"
        )
    (chosen,) = demo.read_query_sets(tmp_path)
    assert (chosen.name, [query.id for query in chosen.queries]) == ("test", ["q"])
    (chosen,) = demo.read_query_sets(tmp_path, "train")
    assert (chosen.name, [query.id for query in chosen.queries]) == ("train", ["r"])


def test_queries_without_judgements_are_no_set(beir: Path, tmp_path: Path) -> None:
    (beir / "two-qrels.tsv").unlink()
    with pytest.raises(ValueError, match=r"two-qrels\.tsv is missing"):
        demo.read_query_sets(beir)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no judged queries"):
        demo.read_query_sets(empty)


def test_what_the_models_were_trained_on_is_left_out_and_counted(beir: Path) -> None:
    seen = [fingerprint("what is a HEAP"), fingerprint("something else")]
    one, two = demo.read_query_sets(beir, seen=seen)
    assert one.trained_on == 1
    assert [query.id for query in one.queries] == ["one0"]
    assert two.trained_on == 0


def test_a_sample_is_drawn_by_its_seed(tmp_path: Path) -> None:
    lines(tmp_path / "a-queries.jsonl", *({"_id": f"q{n}", "text": f"{n}"} for n in range(100)))
    (tmp_path / "a-qrels.tsv").write_text("".join(f"q{n}\td\t1\n" for n in range(100)))

    def draw(seed: int) -> list[str]:
        (drawn,) = demo.read_query_sets(tmp_path, sample=10, seed=seed, seen=[fingerprint("7")])
        return [query.id for query in drawn.queries]

    assert len(draw(1)) == len(set(draw(1))) == 10
    assert draw(1) == draw(1) != draw(2)
    assert all("q7" not in draw(seed) for seed in range(10))


# Measuring.


def comparison(before: str, after: str, **fields: Any) -> Comparison:
    given = {
        "index": "i",
        "query": "q",
        "size": 100,
        "before": tuple(Found(key, key, 1.0) for key in before),
        "after": tuple(Found(key, key, 1.0) for key in after),
        "applied": True,
        "reason": "",
        "complete": True,
        "stages": (),
        "model": "m",
        "took_before": 1,
        "took_after": 5,
        "rerank_ms": 3.0,
    }
    return Comparison(**{**given, **fields})


def query_set(*ids: str) -> demo.QuerySet:
    queries = tuple(Query(key, f"text of {key}") for key in ids)
    return demo.QuerySet("set", len(ids), len(ids), 0, queries, {key: {"A": 1} for key in ids})


def test_before_and_after_are_measured_by_hand() -> None:
    answers = {
        "text of q1": comparison("BA", "AB", took_before=1, took_after=5),
        "text of q2": comparison("A", "A", took_before=3, took_after=9, complete=False),
        "text of q3": comparison("B", "B", took_before=8, took_after=10),
    }
    asked = []

    def compare(query: str, size: int) -> Comparison:
        asked.append(size)
        return answers[query]

    measured = demo.measure(query_set("q1", "q2", "q3"), compare)
    assert asked == [100, 100, 100]
    assert measured.before["nDCG@10"] == pytest.approx((1 / np.log2(3) + 1 + 0) / 3)
    assert measured.after["nDCG@10"] == pytest.approx(2 / 3)
    assert measured.before["R@100"] == measured.after["R@100"] == pytest.approx(2 / 3)
    assert (measured.run, measured.failed, measured.in_part) == (3, 0, 1)
    assert (measured.ms_before, measured.ms_after, measured.ms_rerank) == (3, 9, 3)


def test_failed_searches_are_counted_and_measured_on_neither_side() -> None:
    def compare(query: str, size: int) -> Comparison:
        if query.endswith("q1"):
            raise TransportError(400, "no such thing")
        if query.endswith("q2"):
            return comparison("BA", "BA", applied=False, complete=False, reason="sidecar gone")
        if query.endswith("q3"):
            return comparison("", "", applied=False, complete=False, reason="no hits")
        return comparison("A", "A")

    measured = demo.measure(query_set("q1", "q2", "q3", "q4"), compare)
    assert (measured.run, measured.failed, measured.in_part) == (4, 2, 0)
    assert measured.reason.startswith("q1: ")
    # Of a search that finds nothing there is nothing to rerank: it is measured, and scores 0.
    assert measured.before["nDCG@10"] == measured.after["nDCG@10"] == 0.5


def test_a_cluster_that_is_gone_ends_the_measuring() -> None:
    def compare(query: str, size: int) -> Comparison:
        raise NoConnectionError("N/A", "gone", Exception())

    with pytest.raises(NoConnectionError):
        demo.measure(query_set("q1"), compare)


def test_nothing_to_measure_is_no_failure() -> None:
    measured = demo.measure(query_set(), lambda query, size: comparison("", ""))
    assert measured.run == 0
    assert np.isnan(measured.before["nDCG@10"])


def test_the_embedded_engine_reranks_what_bm25_finds() -> None:
    corpus = {key: Document(key, title, text) for key, (title, text) in TEXTS.items()}
    embedded = demo.Embedded(Cascade.load(threads=1), corpus, "here")
    found = embedded.compare("sorted lists", 1)
    assert {hit.id for hit in found.before} == {"d2", "d3"}
    assert len(found.after) == 1
    assert found.after[0].title == TEXTS[found.after[0].id][0]
    assert found.applied
    assert [stage.name for stage in found.stages] == ["title", "passage"]
    assert embedded.compare("nothingofthekind", 5).after == ()
    # With a dense searcher, also what shares no word with the query.
    vectors = np.eye(len(corpus), dtype=np.float32)
    nearest = DenseIndex(list(corpus), vectors, lambda texts: vectors[:1])
    hybrid = demo.Embedded(Cascade.load(threads=1), corpus, "here", nearest)
    assert hybrid.compare("nothingofthekind", 1).after


# The command.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.delenv("OPENSEARCH_URL", raising=False)
    app = typer.Typer()
    plugin.cli.demo.register(app)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_the_measures_of_every_set_are_shown(beir: Path, run: Callable[..., Any]) -> None:
    shown = run("--engine", "embedded", "--beir", str(beir))
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("nDCG@10") == 2
    assert shown.output.count("recall@100") == 2
    assert "one: 3 queries, 2 judged" in shown.output
    assert "2 run, 0 failed" in shown.output
    assert "two: 2 queries, 1 judged" in shown.output


def test_only_fresh_queries_are_used(beir: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("title", "passage", "fusion.json"):
        (model / name).symlink_to(REPOSITORY / "reranker" / "weights" / name)
    (model / "trained-on.npy").unlink(missing_ok=True)
    np.save(model / "trained-on.npy", fingerprints(["merge sorted lists"]))
    options = ("--engine", "embedded", "--beir", str(beir), "--model", str(model))
    shown = run(*options, "--queries", "one")
    assert shown.exit_code == 0, shown.output
    assert "2 judged, 1 of them left out" in shown.output
    assert "1 run" in shown.output
    assert "is not known" not in shown.output
    np.save(model / "trained-on.npy", fingerprints(["files in archives"]))
    nothing = run(*options, "--queries", "two")
    assert nothing.exit_code == 1
    assert "kept out of training" in str(nothing.exception)


def test_where_no_engine_can_be_had_it_says_so_and_why(
    beir: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise EngineUnavailable("there is [no] engine")

    monkeypatch.setattr(plugin.cli.demo, "choose_engine", none)
    shown = run("--beir", str(beir), "--queries", "two")
    assert shown.exit_code == 0, shown.output
    assert "Not on OpenSearch" in shown.output
    assert "there is [no] engine" in shown.output
    assert "nDCG@10" in shown.output


def test_a_named_engine_that_cannot_be_had_is_an_error(
    beir: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSEARCH_URL", f"http://127.0.0.1:{free_port()}")
    for kind in ("auto", "url"):
        shown = run("--beir", str(beir), "--engine", kind)
        assert isinstance(shown.exception, CommandError)
        assert "no cluster answers" in str(shown.exception)
    monkeypatch.setattr(plugin.cli.demo, "why_no_local_node", lambda: "no JDK is there")
    shown = run("--beir", str(beir), "--engine", "local")
    assert isinstance(shown.exception, CommandError)
    assert "no JDK is there" in str(shown.exception)


URLS = "title_rerank.sidecar.urls"


@pytest.mark.parametrize(
    ("node", "persistent", "transient", "named"),
    [
        (["http://far:1"], {}, {}, "http://far:1"),
        (["http://far:1"], {URLS: ["http://other:2"]}, {}, "http://other:2"),
        (["http://far:1"], {URLS: ["http://other:2"]}, {URLS: ["http://now:3"]}, "http://now:3"),
        ("http://far:1, http://far:2", {}, {}, "http://far:1"),  # as environments give a list
        (["https://localhost:4"], {}, {}, "https://localhost:4"),  # which is not for us to start
        (["http://localhost:4/rerank"], {}, {}, "http://localhost:4/rerank"),
    ],
)
def test_the_sidecar_of_a_given_cluster_is_the_one_it_calls(
    node: Any, persistent: dict[str, Any], transient: dict[str, Any], named: str
) -> None:
    answer = {"nodes": {"a": {"settings": {URLS: node}}}}
    settings = {"persistent": persistent, "transient": transient}
    client: Any = SimpleNamespace(
        nodes=SimpleNamespace(info=lambda **_: answer),
        cluster=SimpleNamespace(get_settings=lambda **_: settings),
    )
    with contextlib.ExitStack() as stack:
        found = plugin.cli.demo._sidecar_of(client, "http://localhost:9200", None, stack)
    assert found == f"the cluster's own, {named}"


@pytest.mark.parametrize("options", [("--queries", "one"), ("--sample", "3")])
def test_options_of_judged_queries_need_a_folder(
    options: tuple[str, str], run: Callable[..., Any]
) -> None:
    shown = run("--engine", "embedded", *options)
    assert isinstance(shown.exception, CommandError)
    assert "--beir" in str(shown.exception)


def test_the_fixed_searches_fail_unless_all_are_reranked() -> None:
    console = Console(file=io.StringIO(), width=100)
    plugin.cli.demo._search(console, lambda query, size: comparison("AB", "BA", query=query))
    late = comparison("AB", "AB", applied=False, complete=False, reason="no sidecar")
    missed = demo.SEARCHES[3]
    with pytest.raises(CommandError, match=r"1 of \d+ searches were not reranked \(no sidecar\)"):
        plugin.cli.demo._search(
            console, lambda query, size: late if query == missed else comparison("AB", "BA")
        )


def test_a_failed_search_of_a_query_set_fails_the_demo() -> None:
    console = Console(file=io.StringIO(), width=100)
    late = comparison("AB", "AB", applied=False, reason="no sidecar")
    with pytest.raises(CommandError, match=r"1 searches failed \(query q1: no sidecar\)"):
        plugin.cli.demo._measure(console, [query_set("q1")], lambda query, size: late)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_it_and_no_other_breaks_the_cleaning_up(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    cleaned = []

    def work() -> None:
        with plugin.cli.demo._signals_end_it():
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                cleaned.append(True)

    with pytest.raises(plugin.cli.demo._Ended) as ended:
        work()
    assert cleaned
    assert ended.value.number == number
    assert signal.getsignal(number) == before


# The sidecar beside it.


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def test_the_sidecar_runs_inside_its_block() -> None:
    port = free_port()
    with SidecarProcess("127.0.0.1", port) as sidecar:
        assert sidecar.wait(300) == Cascade.load(threads=1).name
        assert ask_health("127.0.0.1", port)
    assert not listens(port)
    with pytest.raises(RuntimeError):
        SidecarProcess("127.0.0.1", port).wait()


def test_the_sidecar_has_no_setting_and_no_code_of_its_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.chdir(tmp_path)
    for name, value in (("MODEL", tmp_path), ("MAX_HITS", 5), ("API_KEY", "x"), ("CONFIG", "none")):
        monkeypatch.setenv(f"TITLECAST_{name}", str(value))
    with SidecarProcess("127.0.0.1", free_port()) as sidecar:
        assert sidecar.wait(300) == Cascade.load(threads=1).name


def test_a_sidecar_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        SidecarProcess("127.0.0.1", free_port(), tmp_path / "none") as sidecar,
        pytest.raises(SidecarError, match="no model"),
    ):
        sidecar.wait(300)


def test_the_sidecar_ends_with_whoever_started_it() -> None:
    port = free_port()
    script = (
        "import time; from plugin.sidecar.process import SidecarProcess\n"
        f"with SidecarProcess('127.0.0.1', {port}) as sidecar:\n"
        "    sidecar.wait(300); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY) as parent:
        try:
            wait_until(lambda: listens(port), 300)
        finally:
            parent.kill()  # without any chance to clean up
    wait_until(lambda: not listens(port))


def test_what_is_no_sidecar_has_no_health() -> None:
    assert ask_health("127.0.0.1", free_port()) is None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert ask_health("127.0.0.1", silent.getsockname()[1], seconds=0.2) is None
