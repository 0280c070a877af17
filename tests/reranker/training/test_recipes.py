"""Every recipe in the repository runs, on small generated data in the formats that it names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from reranker.evaluation.split import side
from reranker.stages import SHIPPED
from reranker.tokens import kept_tokens
from reranker.training.config import RECIPES, Recipe, SourceConfig, read_recipe
from reranker.training.loop import train
from reranker.training.prepare import prepare_once
from tests.reranker.conftest import WORDS
from tests.reranker.training.conftest import prepared, recipe_text

PATHS = sorted(path for path in RECIPES.rglob("*.toml") if path.stem != "adapt")
DOCUMENTS = 40


def documents() -> list[tuple[str, str, str]]:
    """Id, title and text."""
    rng = np.random.default_rng(0)
    found = []
    for place in range(DOCUMENTS):
        title = " ".join(rng.choice(WORDS, 3, replace=False)) + f" {place}"
        text = ". ".join(" ".join(rng.choice(WORDS, 6)).capitalize() for _ in range(3))
        found.append((f"d{place}", title, f"{text}."))
    return found


def queries(name: str, count: int = DOCUMENTS) -> list[str]:
    """Queries, of which at least one is for training and one for the dev split."""
    rng = np.random.default_rng(len(name))
    found: list[str] = []
    for place in range(count):
        for attempt in range(1000):
            text = f"{' '.join(rng.choice(WORDS, 3))} {name} {place} {attempt}"
            if side(text) == ("dev" if place % 8 == 0 else "train"):
                found.append(text)
                break
    return found


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def write_source(data: Path, source: SourceConfig) -> None:
    """A source's files as their publishers write them."""
    path = data / source.path
    asked = queries(f"{source.path} {source.queries}".replace("/", " "))
    pages = documents()
    if source.format in ("kilt", "hover"):
        lines = []
        for place, (text, (_, title, _)) in enumerate(zip(asked, pages, strict=True)):
            if source.format == "kilt":
                given = [{"wikipedia_id": str(place), "title": title}]
                record = {"id": f"k{place}", "input": text, "output": [{"provenance": given}]}
            else:
                facts = [[title, 0]]
                record = {"uid": f"h{place}", "claim": text, "supporting_facts": facts}
                record[source.made_from or "hpqa_id"] = f"k{place}x"
            lines.append(json.dumps(record))
        write_lines(path, lines)
    elif source.format == "msmarco":
        name = source.queries or "train"
        write_lines(
            path / f"msmarco-{name}-queries.tsv", [f"{i}\t{q}" for i, q in enumerate(asked)]
        )
        pairs = [f"{i} 0 {id} 1" for i, (id, _, _) in enumerate(pages)]
        write_lines(path / f"msmarco-{name}-qrels.tsv", pairs)
        rows = [f"{id}\thttp://x/{id}\t{title}\t{text}" for id, title, text in pages]
        write_lines(path / "msmarco-docs.tsv", rows)
    else:
        corpus = [json.dumps({"_id": id, "title": t, "text": x}) for id, t, x in pages]
        write_lines(path / "corpus.jsonl", corpus)
        named = source.queries or "test"
        split = "qrels" in named or path.name == "nq-train"
        lines = [json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(asked)]
        judged = ["query-id\tcorpus-id\tscore"]
        judged += [f"q{i}\t{id}\t1" for i, (id, _, _) in enumerate(pages)]
        write_lines(path / ("queries.jsonl" if split else f"{named}-queries.jsonl"), lines)
        qrels = path / "qrels" / f"{named}.tsv" if split else path / f"{named}-qrels.tsv"
        write_lines(qrels, judged)


def write_data(data: Path, recipe: Recipe) -> None:
    for source in recipe.data.sources:
        write_source(data, source)
    for corpus in [*recipe.data.corpora, *(recipe.keep.corpora if recipe.keep else [])]:
        if (data / corpus).exists():
            continue
        if "knowledgesource" in corpus:
            pages = [
                {"wikipedia_id": i, "wikipedia_title": title, "text": [title, text]}
                for i, (_, title, text) in enumerate(documents())
            ]
            write_lines(data / corpus, [json.dumps(page) for page in pages])
        else:
            kind = next((name for name in ("kilt", "hover") if corpus.startswith(name)), "beir")
            write_source(data, SourceConfig(path=corpus, format=kind))
    for path in [*recipe.data.unlabelled, *(recipe.augment.queries if recipe.augment else [])]:
        if not (data / path).exists():
            asked = queries(path.replace("/", " "))
            write_lines(data / path, [json.dumps({"text": text}) for text in asked])


def shrunk(recipe: Recipe, backbone: Path, teacher: Path) -> Recipe:
    """The same recipe for a tiny network, two steps and short lists."""
    model = {k: v for k, v in recipe.model.items() if k != "layers"} | {"first_query_layer": 0}
    if "intermediate" in model:
        model["intermediate"] = 24
    changes: dict[str, object] = {
        "backbone": str(backbone),
        "steps": 2,
        "queries_per_step": 2,
        "workers": 0,
        "accumulate": 1,
        "frozen_layers": min(recipe.frozen_layers, 1),
        "model": model,
        "check_every": 2,
        "check_queries": 4,
        "save_every": 2,
        "data": recipe.data.model_copy(update={"window": 10, "dense": min(recipe.data.dense, 3)}),
        "lists": recipe.lists.model_copy(
            update={
                "size": 5,
                "near": min(recipe.lists.near, 2),
                "mined": min(recipe.lists.mined, 1),
                "max_text_tokens": min(recipe.lists.max_text_tokens, 24),
                # Those of a real vocabulary are not in the tiny one.
                "left_out": recipe.lists.left_out and ["the"],
            }
        ),
    }
    if recipe.taught_by:
        few: dict[str, object] = {}
        if recipe.taught_by.encoder:
            few = {"encoder": str(backbone)}
        elif recipe.taught_by.layers:
            few = {"folder": str(teacher), "layers": [0]}
            changes["model"] = model | {"layers": 1}
        elif recipe.taught_by.folder:
            few = {"folder": str(teacher)}
        changes["taught_by"] = recipe.taught_by.model_copy(update=few)
    if recipe.start:
        changes["start"] = str(teacher)
    if recipe.keep:
        few_lists = {"queries": 5, "phrases": 5, "words": 5, "queries_per_step": 2, "size": 5}
        changes["keep"] = recipe.keep.model_copy(update=few_lists)
    if recipe.augment:
        small = {"every": 1, "first": 0, "labelled": 4, "made": 2, "pool": 30, "depth": 5}
        small |= {"unlabelled": min(recipe.augment.unlabelled, 2)}
        changes["augment"] = recipe.augment.model_copy(update=small)
    return recipe.model_copy(update=changes)


@pytest.fixture(scope="module")
def teachers(data, backbone, tmp_path_factory) -> dict[str, Path]:
    """A training of either task, for recipes that start from one or are taught by one."""
    folders = {task: tmp_path_factory.mktemp(task) for task in ("title", "passage")}
    for task, folder in folders.items():
        train(prepared(folder, data, recipe_text(task, backbone)), folder, stop_at=4)
    return folders


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(RECIPES).stem)
def test_every_recipe_runs_on_data_of_its_formats(path, backbone, teachers, tmp_path):
    recipe = read_recipe(path)
    write_data(tmp_path / "data", recipe)
    small = shrunk(recipe, backbone, teachers[recipe.task])
    assert prepare_once(small, tmp_path / "data", tmp_path / "out")
    best = train(small, tmp_path / "out")
    state = torch.load(best, weights_only=True)
    assert state["step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_a_recipe_leaves_out_is_in_the_shipped_vocabulary(path):
    left_out = read_recipe(path).lists.left_out or []
    kept = kept_tokens(Tokenizer.from_file(str(SHIPPED / "title/tokenizer.json")), left_out)
    assert kept is None or (~kept).sum() == len(left_out)


def test_kilt_has_all_eleven_tasks():
    sources = read_recipe(RECIPES / "kilt.toml").data.sources
    names = {Path(source.path).name.split("-")[0] for source in sources}
    assert names == {
        *("fever", "aidayago2", "wned", "cweb", "trex", "structured_zeroshot"),
        *("nq", "hotpotqa", "triviaqa", "eli5", "wow"),
    }
