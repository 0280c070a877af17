"""Preparing: several sources' ids kept apart, held-out queries kept out, bad data refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reranker.evaluation.split import side
from reranker.training.config import Recipe
from reranker.training.examples import load
from reranker.training.prepare import prepare

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
