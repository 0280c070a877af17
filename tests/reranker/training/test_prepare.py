"""Preparing: several sources' ids kept apart, held-out queries kept out, bad data refused."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reranker.evaluation.collections import Document
from reranker.evaluation.contamination import FILE, fingerprint
from reranker.evaluation.split import side
from reranker.stages import Query, Scores
from reranker.training.config import Recipe, changed, read_recipe
from reranker.training.examples import UNLABELLED, load
from reranker.training.fusing import Scorer, score_windows, taken_out
from reranker.training.loop import train
from reranker.training.prepare import prepare, prepare_once, sources_of
from tests.reranker.training.conftest import recipe_text

ANIMALS = ["cat", "dog", "horse", "mouse", "eagle", "whale", "tiger", "shark", "camel", "panda"]
METALS = ["iron", "gold", "silver", "copper", "zinc", "lead", "tin", "nickel", "cobalt", "chrome"]


def asked(word: str, wanted: str = "train") -> str:
    """A question about a word that falls on a side of the split."""
    texts = (f"what is a {word} described {number}" for number in range(1000))
    return next(text for text in texts if side(text) == wanted)


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def write_beir(
    folder: Path,
    documents: list[tuple[str, str, str]],
    queries: list[tuple[str, str]],
    judged: list[tuple[str, str]],
) -> None:
    write_lines(
        folder / "corpus.jsonl", [{"_id": i, "title": t, "text": x} for i, t, x in documents]
    )
    write_lines(folder / "queries.jsonl", [{"_id": i, "text": x} for i, x in queries])
    (folder / "qrels").mkdir()
    lines = [f"{query}\t{document}\t1\n" for query, document in judged]
    (folder / "qrels/train.tsv").write_text("".join(lines), "utf-8")


def write_words(folder: Path, words: list[str], sides: list[str] | None = None) -> None:
    """Documents and queries whose ids are numbers, as in every other collection of them."""
    documents = [
        (str(i), f"{word} described", f"the {word} is here") for i, word in enumerate(words)
    ]
    wanted = sides or ["train"] * len(words)
    queries = [(str(i), asked(word, wanted[i])) for i, word in enumerate(words)]
    write_beir(folder, documents, queries, [(str(i), str(i)) for i in range(len(words))])


def recipe_of(task: str, *paths: str, **data: object) -> Recipe:
    sources = [{"path": path, "queries": "train"} for path in paths]
    return Recipe.model_validate({"task": task, "data": {"window": 5, "sources": sources, **data}})


@pytest.mark.parametrize("task", ["title", "passage"])
def test_documents_of_two_sources_may_have_the_same_ids(tmp_path, task):
    write_words(tmp_path / "one", ANIMALS)
    write_words(tmp_path / "two", METALS)
    prepare(recipe_of(task, "one", "two"), tmp_path, tmp_path / "out")
    pool, items = load(tmp_path / "out/train")
    assert len(pool) == 20
    assert {item.source for item in items} == {"one/train", "two/train"}
    for item in items:
        (gold,) = item.golds
        assert pool[gold].split()[0] == item.query.split()[3]


def test_a_title_may_be_another_document_s_id(tmp_path):
    documents = [(str(1980 + i), f"Page {i} of a zoo", f"animals number {i}") for i in range(10)]
    documents += [("7", "1984", "a novel by orwell"), ("8", "1985", "a novel by burgess")]
    queries = [(f"q{i}", asked(f"novel 1984 {'really ' * i}")) for i in range(6)]
    write_beir(tmp_path / "one", documents, queries, [(f"q{i}", "7") for i in range(6)])
    prepare(recipe_of("title", "one"), tmp_path, tmp_path / "out")
    pool, items = load(tmp_path / "out/train")
    assert items
    for item in items:
        assert [pool[place] for place in item.golds] == ["1984"]
        assert "Page 4 of a zoo" not in [pool[place] for place in item.candidates]


def test_a_held_out_id_is_not_another_source_s(tmp_path):
    write_words(tmp_path / "one", ANIMALS, ["dev"] * 9 + ["train"])
    write_words(tmp_path / "two", METALS, ["train"] * 9 + ["dev"])
    prepare(recipe_of("title", "one", "two"), tmp_path, tmp_path / "out")
    _, items = load(tmp_path / "out/train")
    wanted = {asked(word) for word in [*METALS[:9], ANIMALS[9]]}
    assert {item.query for item in items} == wanted


def test_what_is_held_out_by_its_id_comes_in_under_no_other(tmp_path):
    write_words(tmp_path / "one", ANIMALS)
    queries = [(f"again {i}", asked(word)) for i, word in enumerate(ANIMALS)]
    documents = [("a", "animals described", "a cat, a dog, an eagle")]
    write_beir(tmp_path / "two", documents, queries, [(id, "a") for id, _ in queries])
    write_lines(tmp_path / "more.jsonl", [{"id": f"no {id}", "text": t} for id, t in queries])
    changes = {"augment": {"queries": ["more.jsonl"]}}
    recipe = changed(recipe_of("passage", "one", "two"), **changes)
    prepare(recipe, tmp_path, tmp_path / "out", ["0", "1"])
    wanted = {text for _, text in queries[2:]}
    assert {item.query for item in load(tmp_path / "out/train")[1]} == wanted
    assert set(json.loads((tmp_path / "out/unlabelled.json").read_text("utf-8"))) == wanted
    seen = {fingerprint(text) for text in wanted}
    assert set(np.load(tmp_path / "out/trained-on.npy").tolist()) == seen


def test_what_would_give_a_claim_away_comes_in_under_no_other_id(tmp_path):
    texts = write_claims(tmp_path)
    write_lines(tmp_path / "more.jsonl", [{"id": f"no {id}", "text": t} for id, t in texts.items()])
    recipe = changed(families(), augment={"queries": ["more.jsonl"]})
    prepare(recipe, tmp_path, tmp_path / "out")
    trained = set(np.load(tmp_path / "out/trained-on.npy").tolist())
    wanted = {id for i in range(5, 10) for id in (f"k{i}", f"h{i}-0", f"h{i}-1")}
    assert trained == {fingerprint(texts[id]) for id in wanted}


def test_what_is_to_be_left_out_is_read_by_id_and_text(tmp_path):
    lines = [
        '{"_id": "a", "text": "b c"}',
        "",
        '{"id": 4, "input": "e"}',
        '{"uid": "f", "claim": "g"}',
        '{"query_id": "h", "question": "i"}',
        '{"query": "j"}',
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines), "utf-8")
    with gzip.open(tmp_path / "q.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    wanted = ["a", "b c", "4", "e", "f", "g", "h", "i", "j"]
    assert sources_of([tmp_path / "q.jsonl"]) == wanted
    assert sources_of([tmp_path / "q.jsonl.gz"]) == wanted


@pytest.mark.parametrize("line", ['{"qid": "a"}', '{"text": ""}', '["a"]', "{broken"])
def test_a_line_that_excludes_nothing_is_named(tmp_path, line):
    (tmp_path / "q.jsonl").write_text(f'{{"_id": "a"}}\n{line}\n', "utf-8")
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2"):
        sources_of([tmp_path / "q.jsonl"])


def test_a_prepared_folder_keeps_what_it_was_made_of(tmp_path):
    sides = ["dev", *["train"] * 9]
    write_words(tmp_path / "data/one", ANIMALS, sides)
    write_words(tmp_path / "other/one", ANIMALS, sides)
    recipe = recipe_of("title", "one")
    assert prepare_once(recipe, tmp_path / "data", tmp_path / "out", ["3", "4"])
    assert not prepare_once(recipe, tmp_path / "data", tmp_path / "out", ["4", "3", "3"])
    with pytest.raises(ValueError, match="another --exclude; give the same one, or another --out"):
        prepare_once(recipe, tmp_path / "data", tmp_path / "out")
    with pytest.raises(ValueError, match="another --data"):
        prepare_once(recipe, tmp_path / "other", tmp_path / "out", ["3", "4"])


@pytest.mark.parametrize("part", ["corpora", "unlabelled", "keep", "queries", "sources"])
def test_what_the_data_lack_is_named_before_anything_is_read(tmp_path, monkeypatch, part):
    monkeypatch.setattr("reranker.training.prepare.prepare", None)  # nor is a hub asked
    monkeypatch.setattr("reranker.training.prepare.find_encoder", None)
    (tmp_path / "one").mkdir()
    data: dict[str, Any] = {"sources": [{"path": "one"}], "dense": 5}
    recipe: dict[str, Any] = {"task": "title", "data": data}
    if part == "keep":
        recipe["keep"] = {"corpora": ["gone"]}
    elif part == "queries":
        recipe |= {"task": "passage", "augment": {"queries": ["gone"]}}
    elif part == "unlabelled":
        recipe |= {"task": "passage", "taught_by": {}}
        data["unlabelled"] = ["gone"]
    else:
        data[part] = ["gone"] if part == "corpora" else [{"path": "gone"}]
    with pytest.raises(FileNotFoundError, match=r"There is no .*gone, which the recipe names"):
        prepare_once(Recipe.model_validate(recipe), tmp_path, tmp_path / "out")


class Asked:
    """A model that remembers what it was asked."""

    tokenizer = SimpleNamespace(vocabulary={"the": 0, "described": 1})

    def __init__(self) -> None:
        self.queries: set[str] = set()

    def read(self, query: str) -> Query:
        self.queries.add(query)
        return Query(None, False, 10)

    def score_read(self, query: Query, titles: list[str]) -> Scores:
        return Scores(np.zeros(len(titles), dtype=np.float32), 0, 0)

    def score(self, query: str, titles: list[str], passages: list[str]) -> np.ndarray:
        assert query in self.queries
        return np.zeros(len(titles))

    @property
    def scorer(self) -> Scorer:
        return Scorer(self, self)  # type: ignore[arg-type]


@pytest.mark.parametrize("by_text", [False, True])
def test_the_fusion_is_not_fitted_on_excluded_queries(tmp_path, by_text):
    write_words(tmp_path / "one", ANIMALS, ["dev"] * 10)
    excluded = [asked(ANIMALS[3], "dev") if by_text else "3"]
    title = Asked()
    recipe = recipe_of("passage", "one")
    score_windows(recipe, tmp_path, title.scorer, exclude=excluded)
    assert title.queries == {asked(word, "dev") for word in ANIMALS if word != ANIMALS[3]}


SENTENCES = ["The red fox ran over the hills.", "It saw seven geese in the river.", "They flew."]


def test_sentences_are_taken_out_of_the_documents_that_they_ask_for():
    long = [Document(str(i), "", " ".join(SENTENCES)) for i in range(5)]
    short = [Document("a", "A title", SENTENCES[0]), Document("b", "", "")]
    corpus, asked = taken_out([*long, *short], 3)
    assert list(corpus) == ["0", "1", "2", "3", "4", "a", "b"]
    assert len(asked) == 3
    for id, sentence in asked.items():
        assert sentence in SENTENCES[:2]  # two words are no query
        assert corpus[id].text == " ".join(one for one in SENTENCES if one != sentence)
    untouched = set(corpus) - set(asked)
    assert all(corpus[one.id] == one for one in [*long, *short] if one.id in untouched)
    assert set(taken_out([*long, *short], 99)[1]) == {"0", "1", "2", "3", "4"}


def eats(word: str, metal: str) -> str:
    return f"The {word} eats {metal} all day."


def likes(word: str, metal: str) -> str:
    return f"Nobody knows why any {word} likes {metal} all day."


def test_the_fusion_is_fitted_on_sentences_too(tmp_path):
    write_words(tmp_path / "one", ANIMALS, ["dev"] * 10)
    write_lines(
        tmp_path / "texts/corpus.jsonl",  # a corpus alone will do
        [
            {"_id": str(i), "title": "", "text": f"{eats(word, metal)} {likes(word, metal)}"}
            for i, (word, metal) in enumerate(zip(ANIMALS, METALS, strict=True))
        ],
    )
    model = Asked()
    windows = score_windows(
        recipe_of("passage", "one"), tmp_path, model.scorer, sentences=["texts"]
    )
    assert list(windows) == ["one/train", "sentences of texts"]
    found = windows["sentences of texts"]
    assert all(window.gold.sum() == 1 for window in found)
    made = model.queries - {asked(word, "dev") for word in ANIMALS}
    pairs = list(zip(ANIMALS, METALS, strict=True))
    assert made <= {make(*pair) for pair in pairs for make in (eats, likes)}
    assert len(made) == len(ANIMALS)


def write_claims(folder: Path) -> dict[str, str]:
    """Questions, and claims made from them, two of each; gives all texts by their ids."""
    questions, claims = [], []
    for i, word in enumerate(ANIMALS):
        title = f"{word} described"  # every query has one of its words
        output = [{"provenance": [{"title": title, "wikipedia_id": str(i)}]}]
        questions.append({"id": f"k{i}", "input": asked(word), "output": output})
        for n in (0, 1):  # the first claims of the first five are for choices
            text = asked(f"{word} claim {n}", "dev" if i < 5 and n == 0 else "train")
            facts = [[title, 0]]
            claims.append({"uid": f"h{i}-{n}", "claim": text, "supporting_facts": facts})
            claims[-1]["from"] = f"k{i}"
    write_lines(folder / "kilt.jsonl", questions)
    write_lines(folder / "hover.jsonl", claims)
    texts = {str(one["id"]): str(one["input"]) for one in questions}
    return texts | {str(one["uid"]): str(one["claim"]) for one in claims}


def families() -> Recipe:
    sources = [
        {"path": "kilt.jsonl", "format": "kilt"},
        {"path": "hover.jsonl", "format": "hover", "made_from": "from"},
    ]
    return Recipe.model_validate({"task": "title", "data": {"window": 5, "sources": sources}})


def test_a_family_of_queries_is_on_one_side(tmp_path):
    texts = write_claims(tmp_path)
    recipe = families()
    prepare(recipe, tmp_path, tmp_path / "out")
    trained = np.load(tmp_path / "out/trained-on.npy").tolist()
    held_out = {id for i in range(5) for id in (f"k{i}", f"h{i}-0", f"h{i}-1")}
    assert not {fingerprint(texts[id]) for id in held_out} & set(trained)
    assert {fingerprint(text) for id, text in texts.items() if id not in held_out} == set(trained)


@pytest.mark.parametrize(
    ("seen", "left"), [(["h0-1", "h7-1"], [1, 2, 3, 4]), ([], [0, 1, 2, 3, 4]), (None, [])]
)
def test_the_fusion_is_not_fitted_where_the_rest_of_a_family_was_trained_on(tmp_path, seen, left):
    texts = write_claims(tmp_path)
    prints = None if seen is None else frozenset(fingerprint(texts[id]) for id in seen)
    title = Asked()
    score_windows(families(), tmp_path, title.scorer, seen=prints)
    assert title.queries == {texts[f"h{i}-0"] for i in left}


@pytest.mark.parametrize("task", ["title", "passage"])
def test_judgements_of_documents_that_are_not_there_are_counted(tmp_path, caplog, task):
    write_words(tmp_path / "one", ANIMALS)
    with (tmp_path / "one/qrels/train.tsv").open("a", encoding="utf-8") as file:
        file.write("3\t999\t1\n4\t998\t1\n")
    prepare(recipe_of(task, "one"), tmp_path, tmp_path / "out")
    assert "2 judgements are left out, for the corpus lacks their documents: the" in caplog.text
    _, items = load(tmp_path / "out/train")
    assert len({item.query for item in items}) == len(ANIMALS)


def test_queries_that_nobody_judged_have_candidates_and_no_gold_text(data, backbone, tmp_path):
    lines = (data / "beir/all-queries.jsonl").read_text("utf-8").splitlines()
    judged = list(map(json.loads, lines))
    more: list[dict[str, object]] = [
        {"id": f"u{place}", "input": f"nobody judged {one['text']}"}
        for place, one in enumerate(judged)
    ]
    left_out = str(more[3]["input"])
    # One that is judged is no query without judgements, and one of a held-out id is held out.
    held_out = next(one for one in judged if side(one["text"]) != "train")
    more += [{"id": "again", "input": judged[0]["text"]}]
    more += [{"id": held_out["_id"], "input": "in other words w1 w2"}]
    write_lines(tmp_path / "data/more.jsonl", more)
    shutil.copytree(data, tmp_path / "data", dirs_exist_ok=True)
    text = recipe_text("passage", backbone).replace(
        "[data]", '[data]\nunlabelled = ["more.jsonl"]\ndense = 4'
    )
    text += f'[taught_by]\nencoder = "{backbone}"\n'
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    prepare_once(recipe, tmp_path / "data", tmp_path / "out", [left_out])
    _, items = load(tmp_path / "out/train")
    found = [item for item in items if item.source == UNLABELLED]
    wanted = {str(one["input"]) for one in more[: len(judged)]}
    wanted = {text for text in wanted if side(text) == "train"}
    assert {item.query for item in found} == wanted - {left_out}
    assert all(not item.golds and item.candidates for item in found)
    assert all(len(item.taught) == len(item.texts) for item in found)
    assert UNLABELLED not in {item.source for item in load(tmp_path / "out/dev")[1]}
    seen = set(np.load(tmp_path / "out" / FILE).tolist())
    assert {fingerprint(item.query) for item in found} <= seen
    state = torch.load(train(recipe, tmp_path / "out", stop_at=4), weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_queries_without_judgements_need_a_teacher(backbone, tmp_path):
    text = recipe_text("passage", backbone).replace("[data]", '[data]\nunlabelled = ["x.jsonl"]')
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    with pytest.raises(ValueError, match="give taught_by"):
        read_recipe(tmp_path / "recipe.toml")
