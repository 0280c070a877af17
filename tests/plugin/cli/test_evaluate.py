"""`titlecast evaluate` on a small collection, with lexical scorers in the models' places."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from plugin.cli import evaluate as command
from plugin.cli.options import CommandError
from reranker.dual import DualEncoder
from reranker.evaluation.contamination import FILE, fingerprints
from reranker.evaluation.split import side
from reranker.evaluation.trec import read_run
from reranker.records import Hit, RankedHit, RerankResult
from tests.reranker.conftest import SMALL, random_encoder, write_model

pytest.importorskip("ir_measures", reason="ir-measures is in the train extra")

CORPUS = {
    "d1": ("Ed Wood", "An American filmmaker, and a wood in which no heap was seen."),
    "d2": ("Heapsort", "Sorts with a binary heap."),
    "d3": ("Sand", "A heap of sand, a heap of gravel."),
}
QUERIES = {"q1": "heap", "q2": "filmmaker", "q3": "nobody judged this"}
QRELS = {"q1": "d2", "q2": "d1"}


def overlap(query: str, text: str) -> float:
    return sum(word in text.lower() for word in query.lower().split()) - len(text) / 1000


class Titles:
    name = "titles"

    @classmethod
    def load(cls, path: Path | None = None, threads: int | None = None) -> Titles:
        return cls()

    def score(self, query: str, titles: list[str]) -> NDArray[np.float32]:
        return np.array([overlap(query, title) for title in titles], dtype=np.float32)


class Passages:
    name = "passages"

    @classmethod
    def load(cls, path: Path | None = None, threads: int | None = None) -> Passages:
        return cls()

    def score(self, query: str, titles: list[str], passages: list[str]) -> NDArray[np.float32]:
        return np.array([overlap(query, passage) for passage in passages], dtype=np.float32)


class Stages:
    name = "titles+passages"
    title = Titles()
    passage = Passages()

    @classmethod
    def load(cls, path: Path | None = None, threads: int | None = None) -> Stages:
        return cls()

    def rerank(self, query: str, hits: list[Hit], passage_depth: int = 20) -> RerankResult:
        order = sorted(hits, key=lambda hit: -overlap(query, hit.title))
        ranked = [
            RankedHit(hit.id, hits.index(hit), 2 - place / 100, hit.score)
            for place, hit in enumerate(order)
        ]
        return RerankResult(ranked, [], complete=True)


@pytest.fixture(autouse=True)
def lexical_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TitleReranker", Titles)
    monkeypatch.setattr(command, "PassageReranker", Passages)
    monkeypatch.setattr(command, "Cascade", Stages)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": d, "title": t, "text": x} for d, (t, x) in CORPUS.items()]
    queries = [{"_id": q, "text": t} for q, t in QUERIES.items()]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "qrels/test.tsv").write_text("".join(f"{q}\t{d}\t1\n" for q, d in QRELS.items()))
    return folder


def run(*arguments: object) -> str:
    app = typer.Typer()
    command.register(app)
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "160"}
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def report(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    run(*arguments, "--json", tmp_path / "report.json")
    read: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    return read


def rows(report: dict[str, Any]) -> list[str]:
    return [row["name"] for row in report["rows"]]


def mean(report: dict[str, Any], row: str, measure: str) -> float:
    (found,) = (each for each in report["rows"] if each["name"] == row)
    value: float = found["estimates"][measure]["mean"]
    return value


def test_the_cascades_report(tmp_path: Path, data: Path) -> None:
    read = report(tmp_path, data)
    names = ["BM25", "title stage alone", "title stage", "cascade (20)", "ceiling"]
    assert rows(read) == names
    assert (read["queries"], read["judged"], read["documents"]) == (3, 2, 3)
    assert read["first_stage"] == "BM25 over titles and passages, without stop words"
    assert read["models"] == {"reranker": "titles+passages"}
    assert list(read["rows"][0]["estimates"]) == ["nDCG@10", "RR@10", "R@20", "R@100"]
    assert [row["ranked"] for row in read["rows"]] == [2] * 5
    # BM25 finds the heap of sand first, the title stage Heapsort.
    assert mean(read, "BM25", "RR@10") == pytest.approx((1 / 2 + 1) / 2)
    assert mean(read, "title stage", "RR@10") == pytest.approx(1.0)
    assert mean(read, "ceiling", "RR@10") == pytest.approx(1.0)
    assert read["rows"][0]["estimates"]["RR@10"]["p"] is None
    assert 0 < read["rows"][1]["estimates"]["RR@10"]["p"] <= 1


def test_the_table_tells_measures_intervals_and_counts(data: Path) -> None:
    output = run(data, "--stage", "title", "--measures", "RR@10,AP")
    for expected in ("RR@10", "AP", "75.0", "50.0–100.0", "title stage alone", "ceiling", "ranked"):
        assert expected in output
    assert "2 judged queries of 3 read, 3 documents, top 100 of BM25" in output


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("bm25", ["BM25", "ceiling"]),
        ("title", ["BM25", "title stage alone", "title stage", "ceiling"]),
        (
            "passage",
            ["BM25", "passage stage alone (2)", "BM25 + passage stage (0.5)", "ceiling"],
        ),
    ],
)
def test_stages_choose_rows(tmp_path: Path, data: Path, stage: str, names: list[str]) -> None:
    assert rows(report(tmp_path, data, "--stage", stage, "--passage-depth", 2)) == names


@pytest.mark.parametrize("stage", ["title", "passage"])
def test_a_folder_without_fusion_holds_one_model(tmp_path: Path, data: Path, stage: str) -> None:
    read = report(tmp_path, data, "--stage", stage, "--model", tmp_path)
    plain = ["BM25 + passage stage (0.5)"] if stage == "passage" else []  # needs no fitted weights
    assert rows(read)[2:] == [*plain, "ceiling"]
    assert read["models"] == {"reranker": f"{stage}s"}
    (tmp_path / "fusion.json").touch()
    read = report(tmp_path, data, "--stage", stage, "--model", tmp_path)
    assert ("title stage" in rows(read)) == (stage == "title")


@pytest.mark.parametrize("unread", [1, 10, 98])
def test_hits_that_were_not_read_change_no_fusion(tmp_path: Path, data: Path, unread: int) -> None:
    hits = [("d2", 1.0), ("d1", 0.9), *((f"x{place}", 0.0) for place in range(unread))]
    lines = [f"q2 Q0 {key} {rank} {score} t" for rank, (key, score) in enumerate(hits, start=1)]
    (tmp_path / "a.run").write_text("\n".join(lines))
    options = ("--run", tmp_path / "a.run", "--stage", "passage", "--measures", "RR@10")
    for depth, reciprocal in ((0, 1 / 2), (2, 1.0)):  # read, d1 is far better than d2
        read = report(tmp_path, data, *options, "--passage-depth", depth)
        found = mean(read, "run a + passage stage (0.5)", "RR@10")
        assert found == reciprocal / 2  # of two queries


class OtherTitles(Titles):
    name = "other titles"

    def score(self, query: str, titles: list[str]) -> NDArray[np.float32]:
        return -super().score(query, titles)


def test_two_models_are_printed_together(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    monkeypatch.setattr(
        Titles, "load", lambda path=None, threads=None: OtherTitles() if path == old else Titles()
    )
    options = ("--stage", "title", "--model", tmp_path, "--against", old)
    read = report(tmp_path, data, *options)
    assert read["models"] == {"reranker": "titles", "before": "other titles"}
    assert rows(read) == ["BM25", "title stage alone", "ceiling"]  # of the model alone
    (one,) = read["comparisons"]
    assert one["name"] == "title stage alone"
    # The filmmaker and the heap come last by the model before, first by the one after.
    assert one["after"]["RR@10"] == mean(read, "title stage alone", "RR@10")
    change = one["difference"]["RR@10"]
    assert change["mean"] == pytest.approx(one["after"]["RR@10"] - one["before"]["RR@10"])
    assert change["mean"] > 0
    assert 0 < change["p"] <= 1
    assert all(time >= 0 for time in one["milliseconds"])
    output = run(data, *options, "--measures", "RR@10")
    for expected in ("before and after", f"{100 * change['mean']:+.1f} (", "before: other titles"):
        assert expected in output
    assert report(tmp_path, data, "--stage", "title")["comparisons"] == []


def test_what_either_model_was_trained_on_is_left_out(tmp_path: Path, data: Path) -> None:
    for name, text in (("new", "heap"), ("old", "nothing of these")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / FILE, fingerprints([text]))
    new, old = tmp_path / "new", tmp_path / "old"
    for pair in ((new, old), (old, new)):
        read = report(tmp_path, data, "--stage", "title", "--model", pair[0], "--against", pair[1])
        assert (read["left_out"], read["judged"]) == (1, 1)


def test_pages_are_measured_as_kilt_does(tmp_path: Path, data: Path) -> None:
    read = report(tmp_path, data, "--stage", "bm25", "--pages")
    assert list(read["rows"][0]["estimates"]) == ["KILT-Rprec", "KILT-R@5", "R@5", "R@20"]
    assert read["first_stage"] == "BM25 over titles, without stop words"
    assert read["rows"][0]["ranked"] == 0  # no title has the words themselves


def test_kilt_files_with_a_pool_of_titles(tmp_path: Path, data: Path) -> None:
    provenance = [{"title": "Heapsort"}, {"title": "Sand"}]
    record = {"id": "1", "input": "sand heapsort", "output": [{"provenance": provenance}]}
    kilt = tmp_path / "kilt.jsonl"
    kilt.write_text(json.dumps(record))
    read = report(tmp_path, kilt, "--corpus", data, "--stage", "bm25")
    assert read["documents"] == 3
    assert mean(read, "BM25", "KILT-Rprec") == 1.0


@pytest.mark.parametrize(("stage", "texts"), [("title", False), ("cascade", True)])
def test_the_title_stage_ranks_pages_by_their_titles_alone(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, stage: str, texts: bool
) -> None:
    passages: dict[str, str] = {}

    class Spy(Stages):
        def rerank(self, query: str, hits: list[Hit], passage_depth: int = 20) -> RerankResult:
            passages.update((hit.id, hit.passage) for hit in hits)
            return super().rerank(query, hits, passage_depth)

    monkeypatch.setattr(command, "Cascade", Spy)
    record = {
        "id": "1",
        "input": "heapsort of the wood",
        "output": [{"provenance": [{"title": "Heapsort"}, {"title": "Smoothsort of the heap"}]}],
    }
    kilt = tmp_path / "kilt.jsonl"
    kilt.write_text(json.dumps(record))
    # Of the gold page that the corpus lacks there is no text, which would tell it apart.
    run(kilt, "--corpus", data, "--stage", stage, "--no-stop-words")
    assert passages.keys() == {"Ed Wood", "Heapsort", "Smoothsort of the heap"}
    assert bool(passages["Ed Wood"] and passages["Heapsort"]) is texts


def test_a_saved_run_is_a_first_stage(tmp_path: Path, data: Path) -> None:
    saved = tmp_path / "saved.txt"
    first = report(tmp_path, data, "--stage", "title", "--save-run", saved)
    assert read_run(saved).keys() == {"q1", "q2"}
    again = report(tmp_path, data, "--stage", "bm25", "--run", saved, "--candidates", 2)
    assert rows(again) == ["run saved", "ceiling"]
    assert again["first_stage"] == "run file saved.txt"
    assert mean(again, "run saved", "RR@10") == mean(first, "title stage", "RR@10")


def test_a_run_over_other_documents_is_an_error(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").write_text("q1 Q0 elsewhere 1 1.0 t\n")
    with pytest.raises(CommandError, match="give a run over this collection"):
        run(data, "--run", tmp_path / "run")


def test_samples_are_seeded(tmp_path: Path, data: Path) -> None:
    read = report(tmp_path, data, "--stage", "bm25", "--sample", 1, "--seed", 3)
    assert read["judged"] == 1
    again = report(tmp_path, data, "--stage", "bm25", "--sample", 1, "--seed", 3)
    assert read["rows"][0]["estimates"] == again["rows"][0]["estimates"]


def test_the_bi_encoder_has_two_rows(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    def encoder(texts: list[str]) -> NDArray[np.float32]:
        encoded.extend(texts)
        letters = [[float(text.lower().count(letter)) for letter in "aehprst"] for text in texts]
        return np.array(letters, dtype=np.float32)

    monkeypatch.setattr(command, "load_bi_encoder", lambda name: encoder)
    options = ("--baseline", "bi-encoder", "--fusion-weight", 0.3)
    read = report(tmp_path, data, "--stage", "title", *options)
    assert rows(read)[:3] == ["BM25", "bi-encoder", "BM25 + bi-encoder (0.3)"]
    assert read["models"]["bi-encoder"] == "all-MiniLM-L6-v2"
    assert "Heapsort" in encoded  # what the title stage sees
    encoded.clear()
    report(tmp_path, data, "--stage", "passage", *options)
    assert "Heapsort. Sorts with a binary heap." in encoded


@pytest.mark.filterwarnings("default")  # those of matplotlib are not ours
def test_the_plot_sweeps_depths(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the train extra")
    picture = tmp_path / "depths.png"
    read = report(tmp_path, data, "--candidates", 10, "--plot", picture)
    assert [point["depth"] for point in read["depths"]] == [0, 5, 10]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_errors_name_the_remedy(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CommandError, match="--stage cascade"):
        run(data, "--stage", "title", "--plot", tmp_path / "x.png")
    with pytest.raises(CommandError, match="another --stage"):
        run(data, "--stage", "bm25", "--against", tmp_path)
    with pytest.raises(ValueError, match="nDCG@10"):
        run(data, "--stage", "bm25", "--measures", "nonsense@1")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandError, match=r"titlecast\[train\]"):
        run(data, "--plot", tmp_path / "x.png")
    (data / "qrels/test.tsv").write_text("other\td1\t1\n")
    with pytest.raises(CommandError, match="None of 3 queries is judged"):
        run(data)


def test_what_would_fail_at_the_end_fails_before_the_work(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path | None = None, threads: int | None = None) -> Stages:
        raise AssertionError("the work began")

    monkeypatch.setattr(Stages, "load", load)
    missing = tmp_path / "missing"
    for option in ("--json", "--save-run", "--plot", "--vectors"):
        with pytest.raises(CommandError, match=f"There is no folder {missing} for x.png; make it"):
            run(data, option, missing / "x.png")
        with pytest.raises(CommandError, match="is a folder; give the name of a file"):
            run(data, option, tmp_path)
    with pytest.raises(ValueError, match="names no kind of picture"):
        run(data, "--plot", tmp_path / "x.txt")
    for measure in ("P", "AP(rel=0)", "ERR@10", "nonsense@1"):
        with pytest.raises(ValueError, match=re.escape(measure)):
            run(data, "--measures", f"nDCG@10,{measure}")
    with pytest.raises(AssertionError, match="--seed"):
        run(data, "--seed", -1)


def test_what_was_measured_is_kept_where_a_run_cannot_be_written(
    tmp_path: Path, data: Path
) -> None:
    texts = [{"_id": q.replace("q", "q "), "text": text} for q, text in QUERIES.items()]
    (data / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in texts))
    (data / "qrels/test.tsv").write_text("q 1\td2\t1\n")
    options = ("--stage", "title", "--save-run", tmp_path / "run", "--json", tmp_path / "a.json")
    with pytest.raises(ValueError, match="does not fit a run file"):
        run(data, *options)
    assert rows(json.loads((tmp_path / "a.json").read_text()))[0] == "BM25"


def test_queries_that_the_model_was_trained_on_are_left_out_and_counted(
    tmp_path: Path, data: Path
) -> None:
    folder = tmp_path / "model"
    (folder / "title").mkdir(parents=True)
    (folder / "fusion.json").write_text("{}")
    np.save(folder / "title" / FILE, fingerprints(["Heap!"]))
    read = report(tmp_path, data, "--model", folder)
    assert (read["queries"], read["left_out"], read["judged"]) == (3, 1, 1)
    read = report(tmp_path, data, "--model", folder, "--trained-on")
    assert (read["left_out"], read["judged"]) == (0, 2)
    np.save(folder / "title" / FILE, fingerprints(["heap", "filmmaker"]))
    with pytest.raises(CommandError, match="--trained-on"):
        run(data, "--model", folder)


def test_a_side_of_the_split(tmp_path: Path, data: Path) -> None:
    texts = [f"heap {number}" for number in range(200)]
    queries = [{"_id": f"q{number}", "text": text} for number, text in enumerate(texts)]
    (data / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (data / "qrels/test.tsv").write_text("".join(f"q{number}\td2\t1\n" for number in range(200)))
    read = report(tmp_path, data, "--split", "dev", "--stage", "bm25")
    assert read["judged"] == sum(side(text) == "dev" for text in texts) > 0
    assert read["left_out"] == 200 - read["judged"]


def test_dense_and_hybrid_candidates(tmp_path: Path, data: Path) -> None:
    model = write_model(tmp_path / "models" / "passage", "passage", random_encoder(SMALL))
    options = ("--stage", "bm25", "--model", model.parent, "--vectors", tmp_path / "v.npz")
    read = report(tmp_path, data, "--first-stage", "hybrid", *options)
    assert rows(read) == ["BM25", "dense", "hybrid", "ceiling"]
    assert "reciprocal ranks (k = 60)" in read["first_stage"]
    assert read["models"] == {"dual encoder": "small-passage"}
    # All three documents are among the nearest, so nothing is missed.
    assert mean(read, "hybrid", "R@100") == mean(read, "ceiling", "R@100") == 1.0
    assert (tmp_path / "v.npz").is_file()
    again = report(tmp_path, data, "--first-stage", "dense", "--neighbours", "hnsw", *options)
    assert rows(again) == ["BM25", "dense", "ceiling"]
    assert "hnsw" in again["first_stage"]
    assert mean(again, "dense", "nDCG@10") == mean(read, "dense", "nDCG@10")


def test_the_dual_encoder_has_the_threads_of_our_models(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "models" / "passage", "passage", random_encoder(SMALL))
    loaded: list[int | None] = []

    class Spy(DualEncoder):
        @classmethod
        def load(cls, path: str | Path | None = None, threads: int | None = None) -> DualEncoder:
            loaded.append(threads)
            return DualEncoder.load(path, threads)

    monkeypatch.setattr(command, "DualEncoder", Spy)
    options = ("--stage", "bm25", "--model", model.parent, "--first-stage", "dense")
    run(data, *options, "--threads", 3)
    assert loaded == [3]


def test_vectors_of_a_model_that_was_exported_again_are_not_read(
    tmp_path: Path, data: Path
) -> None:
    model = tmp_path / "model"
    options = ("--stage", "bm25", "--first-stage", "dense", "--model", model)
    kept = ("--vectors", tmp_path / "v.npz")
    write_model(model, "passage", random_encoder(SMALL, seed=1))
    report(tmp_path, data, *options, *kept)
    write_model(model, "passage", random_encoder(SMALL, seed=2))  # of the same name
    with pytest.raises(ValueError, match="another model"):
        run(data, *options, *kept)


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_a_first_stage_is_not_measured_on_its_own_training(
    tmp_path: Path, data: Path, kind: str
) -> None:
    model = write_model(tmp_path / "models" / "passage", "passage", random_encoder(SMALL))
    np.save(model / FILE, fingerprints(["heap"]))
    (tmp_path / "models" / "title").mkdir()
    np.save(tmp_path / "models" / "title" / FILE, fingerprints(["filmmaker"]))
    for folder in (model.parent, model):  # of all models, or the passage model's own
        options = ("--stage", "bm25", "--model", folder)
        read = report(tmp_path, data, *options, "--first-stage", kind)
        assert (read["left_out"], read["judged"]) == (1, 1)  # the title model plays no part
        assert (
            report(tmp_path, data, *options, "--first-stage", kind, "--trained-on")["judged"] == 2
        )
        assert report(tmp_path, data, *options)["judged"] == 2


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_the_opponent_searches_all_documents_too(tmp_path: Path, data: Path, kind: str) -> None:
    model = write_model(tmp_path / "models" / "passage", "passage", random_encoder(SMALL))
    options = ("--stage", "bm25", "--model", model.parent, "--first-stage", kind)
    read = report(tmp_path, data, *options, "--baseline", "bi-encoder")
    opponent = [name for name in rows(read) if name.startswith("bi-encoder")]
    assert opponent == ["bi-encoder, dense", "bi-encoder"]
    # BM25 finds no document for some words; the vectors find all three documents for any query.
    assert mean(read, "bi-encoder, dense", "R@100") == 1.0
    # Among candidates that hold all documents, searching and reranking are the same.
    assert mean(read, "bi-encoder, dense", "nDCG@10") == mean(read, "bi-encoder", "nDCG@10")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (("--vectors", "v.npz"), "add --first-stage"),
        (("--neighbours", "hnsw"), "add --first-stage"),
        (("--baseline-model", "some/model"), "add --baseline"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    data: Path, options: tuple[str, str], remedy: str
) -> None:
    with pytest.raises(CommandError, match=remedy):
        run(data, "--stage", "bm25", *options)


def test_a_run_file_and_another_first_stage_are_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "a.run").write_text("q1 Q0 d1 1 1.0 x\n")
    with pytest.raises(CommandError, match="leave --first-stage out"):
        run(data, "--run", tmp_path / "a.run", "--first-stage", "dense")
