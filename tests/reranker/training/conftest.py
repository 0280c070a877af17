"""A small collection and a tiny backbone, as trainings in the tests use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from reranker.training.config import Recipe, read_recipe
from reranker.training.prepare import prepare
from tests.reranker.conftest import WORDS, small_tokenizer

QUERIES = 160


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder, a KILT and a HoVer file in which a query repeats words of its document."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    beir = folder / "beir"
    beir.mkdir()
    documents, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for place in range(QUERIES):
        title = " ".join(rng.choice(WORDS, 3, replace=False)) + f" {place}"
        text = " ".join(rng.choice(WORDS, 10))
        documents.append({"_id": f"d{place}", "title": title, "text": text})
        asked = " ".join([*title.split()[:2], str(rng.choice(WORDS)), "?" * (place % 3)])
        queries.append({"_id": f"q{place}", "text": f"{asked} {place % 7}"})
        qrels.append(f"q{place}\td{place}\t1")
    lines = "\n".join(map(json.dumps, documents))
    (beir / "corpus.jsonl").write_text(lines, "utf-8")
    (beir / "all-queries.jsonl").write_text("\n".join(map(json.dumps, queries)), "utf-8")
    (beir / "all-qrels.tsv").write_text("\n".join(qrels), "utf-8")
    kilt, hover = [], []
    for place, document in enumerate(documents):
        provenance = [{"title": document["title"], "wikipedia_id": str(place)}]
        text = f"{queries[place]['text']} exactly"
        kilt.append({"id": f"k{place}", "input": text, "output": [{"provenance": provenance}]})
        facts = [[document["title"], 0]]
        claim = f"claim {queries[place]['text']}"
        hover.append(
            {"uid": f"h{place}", "claim": claim, "supporting_facts": facts, "from": f"k{place}"}
        )
    (folder / "kilt.jsonl").write_text("\n".join(map(json.dumps, kilt)), "utf-8")
    (folder / "hover.jsonl").write_text("\n".join(map(json.dumps, hover)), "utf-8")
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT in Hugging Face's own format."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer.from_str(small_tokenizer())
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return folder


def recipe_text(task: str, backbone: Path, **changes: str) -> str:
    beir = '{ path = "beir", queries = "all" }'
    more = (
        ', { path = "kilt.jsonl", format = "kilt" }'
        ', { path = "hover.jsonl", format = "hover", made_from = "from" }'
    )
    extra = "\n".join(f"{key} = {value}" for key, value in changes.items())
    return f"""
task = "{task}"
backbone = "{backbone}"
steps = 12
queries_per_step = 2
check_every = 4
check_queries = 8
save_every = 2
{extra}
[data]
window = 20
corpora = ["beir"]
sources = [{beir}{more if task == "title" else ""}]
[lists]
size = 6
near = 2
"""


def prepared(folder: Path, data: Path, text: str, exclude: list[str] | None = None) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(text, "utf-8")
    recipe = read_recipe(folder / "recipe.toml")
    prepare(recipe, data, folder, exclude or [])
    return recipe
