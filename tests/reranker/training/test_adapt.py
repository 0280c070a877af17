"""Adapting to unjudged documents: made queries, the teacher's grades, restored weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

from plugin.cli import adapt as command
from plugin.cli.options import CommandError
from reranker import PassageReranker, TitleReranker
from reranker.evaluation.collections import Document
from reranker.models.backbone import load_backbone, load_tokenizer
from reranker.models.broadcast import BroadcastEncoder, from_bert
from reranker.models.export import export, measure_ranges
from reranker.models.pair import PairEncoder
from reranker.models.restore import restore
from reranker.training.adapt import prepare_documents, reciprocal_rank
from reranker.training.config import RECIPES, Recipe, as_toml, read_recipe
from reranker.training.examples import example, load, save
from reranker.training.keep import prepare_keep
from reranker.training.pairs import Made, against_titles, make_queries, without_title
from reranker.training.start import (
    kind_of,
    lists_to_read,
    narrowed,
    new_model,
    with_sinks,
    with_tokens,
)
from tests.reranker.conftest import SMALL, WORDS, random_encoder, small_tokenizer, write_model

TEXT = """# Sorting with a heap

A heap is a list that keeps its smallest item first. It is fast.

Reading files
-------------
Files are read line by line, and closed at the end.
"""


def test_queries_are_headings_and_sentences_taken_out_of_the_text():
    document = Document("d", "Heap queue", TEXT)
    made = make_queries([document], np.random.default_rng(0), most=10)
    queries = [one.query for one in made]
    assert set(queries) == {
        "Sorting with a heap",
        "Reading files",
        "A heap is a list that keeps its smallest item first.",
        "Files are read line by line, and closed at the end.",
    }
    for one in made:
        assert one.document == "d"
        assert one.query not in one.rest
    assert len(make_queries([document], np.random.default_rng(0), most=2)) == 2


@pytest.mark.parametrize(
    "document",
    [
        Document("d", "", "A sentence without any title is no pair."),
        Document("d", "Heap queue", ""),
        Document("d", "Only the title is here", "only the title is here"),
        Document("d", "Heap", "Short. Too short. " + "far too long " * 30 + "."),
    ],
)
def test_documents_that_give_no_query(document):
    assert make_queries([document], np.random.default_rng(0)) == []


def test_a_long_sentence_is_cut_where_that_is_asked_for():
    long = "one two three four five six " * 5 + "end."
    document = Document("d", "Counting", long)
    rng = np.random.default_rng(0)
    assert make_queries([document], rng) == []
    (made,) = make_queries([document], rng, cut=True)
    assert made.query.split() == long.split()[:24]


@pytest.mark.parametrize(
    ("query", "title", "left"),
    [
        ("Mercury is the planet nearest to the Sun.", "Mercury (planet)", "is the planet nearest"),
        ("The planet MERCURY has no moon of its own.", "Mercury", "The planet has no moon"),
        ("Mercurys and their kin were American cars.", "Mercury", "Mercurys and their kin"),
        ("Mercury is near.", "Mercury", ""),
        ("It costs more (a+b) than that one.", "(a+b)", "It costs more (a+b) than"),
        ("Nothing of it is named here at all.", "", "Nothing of it is named"),
    ],
)
def test_a_query_does_not_hold_its_title(query, title, left):
    assert without_title(query, title).startswith(left)
    assert bool(without_title(query, title)) == bool(left)


@given(st.text(max_size=400))
def test_any_text_gives_queries_or_none(text):
    for one in make_queries([Document("d", "a title", text)], np.random.default_rng(0), most=9):
        assert one.query.strip()
        assert len(one.query.split()) <= 24


def corpus(count: int = 60) -> dict[str, Document]:
    rng = np.random.default_rng(3)
    found = {}
    for place in range(count):
        title = " ".join(rng.choice(WORDS, 2, replace=False)) + f" {place}"
        body = ". ".join(" ".join(rng.choice(WORDS, 6)).capitalize() for _ in range(3))
        found[f"d{place}"] = Document(f"d{place}", title, f"{body}.")
    return found


def test_an_answer_is_no_candidate_and_a_query_without_words_has_some():
    documents = corpus()
    made = [Made("merge sorted lists now", "d3", ""), Made("жук xyzzy qwerty", "d4", "")]
    pool, items = against_titles("s", made, documents, np.random.default_rng(0))
    assert [pool[item.golds[0]] for item in items] == [documents[d].title for d in ("d3", "d4")]
    for item in items:
        assert item.candidates
        assert item.golds[0] not in item.candidates + item.others
        assert len(item.candidates) == len(item.first_stage)


class Grader:
    """Takes the passage that shares most words with the query."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []

    def score(self, query: str, titles: list[str], passages: list[str]) -> np.ndarray:
        self.seen.append((query, passages))
        words = set(query.lower().split())
        return np.array([len(words & set(p.lower().split())) for p in passages], dtype=np.float32)


def test_the_teacher_reads_the_document_without_the_query(tmp_path):
    grader = Grader()
    prepare_documents(corpus(), tmp_path, grader, depth=5)  # type: ignore[arg-type]
    assert grader.seen
    assert all(query not in passages[0] for query, passages in grader.seen)
    pool, train = load(tmp_path / "train")
    _, dev = load(tmp_path / "dev")
    assert not {item.query for item in train} & {item.query for item in dev}
    titles = [{pool[g] for item in side for g in item.golds} for side in (train, dev)]
    assert not titles[0] & titles[1]  # whole documents are held back
    for item in train + dev:
        assert len(item.taught) == len(item.golds) + len(item.candidates)
        graded = [score is not None for score in item.taught]
        assert graded == [place < 6 for place in range(len(graded))]


def test_too_few_documents_are_named(tmp_path):
    with pytest.raises(ValueError, match="give more documents"):
        prepare_documents({"a": Document("a", "Title", "")}, tmp_path, None)


def shaken(backbone: Path, **changes: object) -> BroadcastEncoder:
    found = load_backbone(str(backbone))
    model = from_bert(found.state, found.config, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("types"):
                parameter.add_(torch.randn_like(parameter) * 0.05)
        # As in training, layers that never see the query keep their bias.
        model.query_bias[: model.config.first_query_layer] = model.config.query_bias
    return model.eval()


def lists(count: int = 12) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for width in range(4, 4 + count):
        ids = torch.randint(4, 36, (6, width), generator=generator)
        query = torch.randint(4, 36, (1, 3 + width % 5), generator=generator)
        found.append((query, ids, torch.ones_like(ids, dtype=torch.bool)))
    return found


KINDS = {
    "bi-encoder": {"first_query_layer": 1},
    "scratch": {"first_query_layer": 0, "start": "scratch"},
    "late": {"first_query_layer": 1, "token_match": 7.0},
    "sinks": {"first_query_layer": 1, "sinks": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_exported_network_comes_back(backbone, tmp_path, precision, kind):
    model = shaken(backbone, **KINDS[kind])
    ranges = measure_ranges(model, lists()) if precision == "int8" else None
    export(model, tmp_path, precision, ranges)
    again = restore(tmp_path)
    late = ("token_match", "mean_match")  # there, where a training left them
    assert replace(again.config, **{k: getattr(model.config, k) for k in late}) == model.config
    assert (again.config.token_match is None) == (model.config.token_match is None)
    if kind != "scratch":  # which has no cosine
        assert again.scale.item() == pytest.approx(model.scale.item())
    for query, ids, mask in lists():
        seen = torch.ones_like(query, dtype=torch.bool)
        with torch.no_grad():
            wanted = model.score(model.encode_query(query, seen), ids, mask)
            got = again.score(again.encode_query(query, seen), ids, mask)
        spread = float(wanted.std()) + 1e-3
        within = 1e-4 if precision == "fp32" else 0.25
        assert float((wanted - got).abs().max()) < within * spread


def test_what_cannot_be_restored_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="titlecast export"):
        restore(tmp_path)
    write_model(tmp_path, "title", PairEncoder(random_encoder(SMALL)))
    with pytest.raises(ValueError, match="no model of the broadcast architecture"):
        restore(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(FileNotFoundError, match="neither a training's folder nor a model folder"):
        kind_of(tmp_path)


def test_a_recipe_is_written_as_it_was_read(tmp_path):
    for path in sorted(RECIPES.rglob("*.toml")):
        recipe = read_recipe(path)
        (tmp_path / "r.toml").write_text(as_toml(recipe), "utf-8")
        assert read_recipe(tmp_path / "r.toml") == recipe


def test_reciprocal_rank_by_hand():
    assert reciprocal_rank(np.array([2.0, 3.0, 2.0, 1.0]), 1) == pytest.approx(1 / 3)
    assert reciprocal_rank(np.array([2.0, 3.0, 2.0, 1.0]), 2) == 1.0


def run(*arguments: object) -> str:
    app = typer.Typer()
    command.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def start(backbone, tmp_path) -> Path:
    """A small title model's folder as it is shipped, with the name of a backbone out of reach."""
    model = shaken(backbone, first_query_layer=1)
    folder = tmp_path / "start"
    export(model, folder, "int8", measure_ranges(model, lists()))
    (folder / "tokenizer.json").write_text(small_tokenizer(), "utf-8")
    limits = {"max_query_tokens": 24, "max_text_tokens": 12}
    config = {"name": "s", "task": "title", "architecture": "broadcast", "backbone": "no/one"}
    (folder / "config.json").write_text(json.dumps(config | limits), "utf-8")
    return folder


def test_a_file_of_documents_makes_an_adapted_model(start, tmp_path, monkeypatch):
    documents = corpus()
    lines = [
        json.dumps({"_id": d.id, "title": d.title, "text": d.text}) for d in documents.values()
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines), "utf-8")
    guard = tmp_path / "guard"
    (guard / "qrels").mkdir(parents=True)
    (guard / "corpus.jsonl").write_text("\n".join(lines), "utf-8")
    (guard / "queries.jsonl").write_text('{"_id": "q", "text": "merge lists"}\n', "utf-8")
    (guard / "qrels/test.tsv").write_text("q\td3\t1\n", "utf-8")
    text = (RECIPES / "adapt.toml").read_text("utf-8")
    for old, new in (("steps = 150", "steps = 4"), ("_layers = 2", "_layers = 1")):
        text = text.replace(old, new)
    (tmp_path / "r.toml").write_text(text, "utf-8")
    monkeypatch.setattr(PassageReranker, "load", lambda *_, **__: Grader())
    arguments = ["--jsonl", tmp_path / "docs.jsonl", "--out", tmp_path / "out", "--start", start]
    arguments += ["--config", tmp_path / "r.toml", "--guard", guard, "--threads", 1]
    said = run(*arguments, "--name", "mine")
    assert "held-back" in said
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {"held-back documents", "guard", "guard, with BM25"} == set(report)
    for both in report.values():
        assert all(0 <= v["low"] <= v["mean"] <= v["high"] <= 1 for v in both.values())
    model = TitleReranker.load(tmp_path / "out/model", threads=1)
    assert model.name == "mine"
    assert not np.array_equal(
        model.score("merge lists", ["heap queue", "merge sorted lists"]),
        TitleReranker.load(tmp_path / "out/before", threads=1).score(
            "merge lists", ["heap queue", "merge sorted lists"]
        ),
    )
    assert run(*arguments, "--name", "mine") == said  # resumed: nothing is left to do
    other = [*arguments[:4], "--start", tmp_path / "out/model", *arguments[6:]]
    with pytest.raises(CommandError, match="another adaptation"):
        run(*other)
    # Nor is what was made of other documents, or in another way, taken for this one.
    moved = tmp_path / "more.jsonl"
    moved.write_text("\n".join(lines[:40]), "utf-8")
    with pytest.raises(ValueError, match="another --jsonl; give the same one, or another --out"):
        run("--jsonl", moved, *arguments[2:])
    for option in (["--queries", 20], ["--documents", 30], ["--no-teacher"]):
        with pytest.raises(ValueError, match="was made with another --"):
            run(*arguments, *option)


def test_one_source_of_documents_is_asked_for(tmp_path):
    with pytest.raises(CommandError, match="either --index or --jsonl"):
        run("--out", tmp_path)


def test_a_late_interaction_is_added_to_a_network_without_one(backbone):
    model = shaken(backbone, first_query_layer=1)
    data = {"sources": [{"path": "."}]}
    added = {"token_match": 7.0, "mean_match": 2.0}
    recipe = Recipe.model_validate({"task": "passage", "data": data, "model": added})
    wider = with_tokens(model, recipe)
    query, ids, mask = lists()[0]
    read = wider.encode_query(query, torch.ones_like(query, dtype=torch.bool))
    states, _ = wider.text_states(read, ids, mask)
    assert torch.equal(states, model.text_states(read, ids, mask)[0])
    assert (wider.config.token_match, wider.config.mean_match) == (7.0, 2.0)
    # What a network learned of it is not begun anew.
    again = with_tokens(wider, recipe.model_copy(update={"model": {"token_match": 1.0}}))
    assert again is wider


def test_sinks_are_added_to_a_network_without_them(backbone):
    """They are what its texts' special tokens were on average, and are not begun anew."""
    model = shaken(backbone, first_query_layer=1)
    words = torch.full((1, 4), 7)
    words[0, 0], words[0, -1] = 2, 3
    found = model.add_sinks(words, torch.ones_like(words, dtype=torch.bool))
    # Of one text alone they are its own special tokens, and its words' states stay the same.
    states, mask = found.text_states(None, words, torch.ones_like(words, dtype=torch.bool))
    before, _ = model.text_states(None, words, torch.ones_like(words, dtype=torch.bool))
    assert mask.shape == (1, 2)
    assert torch.allclose(states, before[:, 1:-1], atol=1e-5)
    data = {"sources": [{"path": "."}]}
    asked = {"task": "title", "backbone": str(backbone), "data": data, "model": {"sinks": True}}
    recipe = Recipe.model_validate(asked)
    added = with_sinks(model, recipe)
    assert added.config.sinks
    assert bool(added.sink_values.abs().sum((1, 2, 3)).all())
    assert with_sinks(added, recipe) is added
    assert with_sinks(model, recipe.model_copy(update={"model": {}})) is model


def test_a_narrower_network_has_fewer_units_from_any_start(backbone, tmp_path):
    model = shaken(backbone, first_query_layer=1)
    export(model, tmp_path / "wide", "fp32", None)
    known = {"task": "title", "backbone": str(backbone)}
    (tmp_path / "wide/config.json").write_text(json.dumps(known))
    (tmp_path / "wide/tokenizer.json").write_text(load_tokenizer(str(backbone)))
    data = {"sources": [{"path": "."}]}
    keep = {"words": 20, "size": 4}
    asked = {**known, "data": data, "keep": keep, "model": {"intermediate": 24}}
    texts = ["reading files", "sorting with a heap", "heap queue", "csv"]
    for number, start in enumerate((None, str(tmp_path / "wide"))):
        recipe = Recipe.model_validate({**asked, "start": start})
        folder = tmp_path / f"training {number}"
        items = [
            example("set", "read a file", [place], [0, 1, 2, 3], [0.0] * 4) for place in (0, 3)
        ]
        save(folder / "train", texts, items)
        prepare_keep(recipe, tmp_path, folder)
        found = new_model(recipe, folder)
        assert found.config.intermediate == 24
        # Made once, it is the training's start whatever becomes of its lists.
        shutil.rmtree(folder / "train")
        again = new_model(recipe, folder)
        assert all(map(torch.equal, found.state_dict().values(), again.state_dict().values()))
        assert narrowed(found, recipe, folder) is found
        assert new_model(recipe).config == found.config
    # A student that begins as layers of a narrower network is as narrow.
    export(found, tmp_path / "narrow", "fp32", None)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tmp_path / "wide" / name, tmp_path / "narrow")
    taught = {"folder": str(tmp_path / "narrow"), "layers": [1]}
    student = {**asked, "taught_by": taught, "model": {"layers": 1}}
    assert new_model(Recipe.model_validate(student)).config.intermediate == 24


def test_more_units_than_there_are_cannot_be_kept(backbone, tmp_path):
    recipe = {"task": "title", "backbone": str(backbone), "data": {"sources": [{"path": "."}]}}
    wider = Recipe.model_validate({**recipe, "model": {"intermediate": 65}})
    save(tmp_path / "train", ["a"], [])
    with pytest.raises(ValueError, match="intermediate is 65, of a network with 64 units"):
        new_model(wider, tmp_path)


def test_networks_are_narrowed_on_lists_of_both_kinds_as_they_are_read(backbone, tmp_path):
    texts = ["search a title", "sorting with a heap", "heap queue", "csv"]
    recipe = Recipe.model_validate(
        {
            "task": "title",
            "backbone": str(backbone),
            "data": {"sources": [{"path": "."}]},
            "lists": {"size": 3, "left_out": ["a"]},
            "keep": {"words": 5, "size": 4},
        }
    )
    items = [example("set", "read a file", [0], [0, 1, 2, 3], [0.0] * 4)]
    save(tmp_path / "train", texts, items)
    prepare_keep(recipe, tmp_path, tmp_path)
    lists = lists_to_read(recipe, tmp_path)
    assert [len(ids) for _, ids, _ in lists] == [3, 4, 4, 4, 4, 4]
    tokenizer = Tokenizer.from_str(load_tokenizer(str(backbone)))
    word = tokenizer.token_to_id("a")
    for query, ids, mask in lists:
        assert query.shape[0] == 1
        assert mask.shape == ids.shape
        assert mask.any(1).all()
        assert not (ids == word).any()
    for one, two in zip(lists, lists_to_read(recipe, tmp_path), strict=True):
        assert all(map(torch.equal, one, two))


def test_a_network_from_scratch_has_no_sinks(backbone):
    with pytest.raises(ValueError, match="bi-encoder"):
        shaken(backbone, start="scratch", sinks=True)
