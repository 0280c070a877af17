"""Small real models: the architectures at a fraction of their size, and a tokenizer made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from reranker.models.broadcast import BroadcastConfig, BroadcastEncoder
from reranker.models.export import export, has_dual, measure_ranges

# fmt: off
WORDS = [
    "merge", "sorted", "list", "lists", "python", "heap", "queue", "module", "file", "files",
    "read", "write", "line", "lines", "open", "close", "number", "numbers", "string", "strings",
    "the", "a", "of", "to", "in", "and", "for", "with", "by", "search", "engine", "title",
]
# fmt: on

SMALL = BroadcastConfig(
    layers=3,
    hidden=32,
    heads=4,
    intermediate=64,
    vocabulary=64,
    positions=96,
    query_bias=-1.0,
    first_query_layer=1,
)


def small_tokenizer() -> str:
    """The JSON of a BERT-style WordPiece tokenizer over `WORDS` and the alphabet."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    vocabulary = {word: place for place, word in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


def random_encoder(config: BroadcastConfig, seed: int = 0) -> BroadcastEncoder:
    """An untrained network whose every parameter matters (no zero head, no equal biases)."""
    torch.manual_seed(seed)
    model = BroadcastEncoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or name == "query_bias":
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.normal_(std=0.15 if "weight" in name else 0.1)
    return model


def write_model(folder: Path, task: str, model: torch.nn.Module, precision: str = "fp32") -> Path:
    """A model folder as serving loads it."""
    dual = task == "passage" and has_dual(model)  # type: ignore[arg-type]
    ranges = None
    if precision == "int8":
        generator = torch.Generator().manual_seed(1)
        lists = []
        for width in range(4, 24):
            ids = torch.randint(4, 64, (6, width), generator=generator)
            query = torch.randint(4, 64, (1, 3 + width % 5), generator=generator)
            lists.append((query, ids, torch.ones_like(ids, dtype=torch.bool)))
        ranges = measure_ranges(model, lists, dual)  # type: ignore[arg-type]
    export(model, folder, precision, ranges, dual)  # type: ignore[arg-type]
    (folder / "tokenizer.json").write_text(small_tokenizer(), "utf-8")
    kind = "broadcast" if isinstance(model, BroadcastEncoder) else "pair"
    limits = (
        {"max_text_tokens": 12}
        if task == "title"
        else {"max_passage_tokens": 24, "stride": 4, "max_windows": 3}
    )
    config = {"name": f"small-{task}", "task": task, "architecture": kind, "max_query_tokens": 12}
    (folder / "config.json").write_text(json.dumps(config | limits), "utf-8")
    return folder


def write_models(folder: Path) -> Path:
    """A folder with `title/`, `passage/` and `fusion.json`, from small random networks."""
    for seed, task in enumerate(("title", "passage")):
        write_model(folder / task, task, random_encoder(SMALL, seed))
    (folder / "fusion.json").write_text(
        json.dumps(
            {
                "title": 0.5,
                "title_first_stage": 1.0,
                "passage": 0.5,
                "passage_title": 0.1,
                "passage_first_stage": 1.0,
                "title_only": 1.0,
                "title_only_first_stage": 0.25,
                "title_coverage": 1.5,
                "passage_coverage": 2.5,
            }
        )
    )
    return folder


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `write_models` makes, once for all tests that only read it."""
    return write_models(tmp_path_factory.mktemp("models"))
