"""Models that `bench_rerank` measures beside the shipped ones: WORK MODELS OUT CONTENDER …

All start from the shipped models' backbone and are not trained: the time does not depend on it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from reranker.models.backbone import Backbone, load_backbone, load_tokenizer
from reranker.models.broadcast import BroadcastEncoder, from_bert
from reranker.models.export import Precision, export, measure_ranges
from reranker.models.pair import PairEncoder
from reranker.runtime import first_query_layer
from tests.benchmarks.contenders import Work

LIMITS: dict[str, dict[str, int]] = {
    "title": {"max_text_tokens": 48},
    "passage": {"max_passage_tokens": 256, "stride": 32, "max_windows": 4},
}


def main() -> None:
    """Write the models that the named contenders need."""
    work, models, out = Work(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
    needed = sys.argv[4:]
    below = first_query_layer(models / "title")
    if any(name.startswith("plain") for name in needed):
        plain(out)
    backbone = load_backbone()
    if "pair-int8" in needed:
        write(out / "pair-int8", "passage", PairEncoder(start(backbone)), "int8", work)
    if "etr-fp32" in needed:
        ours = start(backbone, first_query_layer=below)
        write(out / "etr-fp32", "title", ours, "fp32", work)
    if "etr-small" in needed:
        small = start(backbone, layers=3, first_query_layer=min(below, 1))
        write(out / "etr-small", "title", small, "int8", work)


def start(backbone: Backbone, **changes: Any) -> BroadcastEncoder:
    """A network from the backbone."""
    torch.manual_seed(0)
    return from_bert(backbone.state, backbone.config, **changes).eval()


def write(
    folder: Path,
    task: str,
    model: BroadcastEncoder | PairEncoder,
    precision: Precision,
    work: Work,
) -> None:
    """A model folder that serving loads; int8's ranges are those of some of the hits."""
    kind = "passages" if task == "passage" else "titles"
    own = load_tokenizer()
    tokenizer = Tokenizer.from_str(own)
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    query = torch.tensor([tokenizer.encode(work.query).ids])
    lists = []
    for text in work.texts(kind, 8):
        ids = torch.tensor([tokenizer.encode(text).ids])
        lists.append((query, ids, torch.ones_like(ids, dtype=torch.bool)))
    export(model.eval(), folder, precision, measure_ranges(model, lists))
    (folder / "tokenizer.json").write_text(own, "utf-8")
    config = {
        "name": folder.name,
        "task": task,
        "architecture": "pair" if isinstance(model, PairEncoder) else "broadcast",
        "precision": precision,
        "max_query_tokens": 64,
        **LIMITS[task],
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def plain(out: Path) -> None:
    """The same cross-encoder as torch exports it, and its dynamic quantization."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    from reranker.models.backbone import DEFAULT_BACKBONE, find_backbone

    model = AutoModelForSequenceClassification.from_pretrained(
        str(find_backbone(DEFAULT_BACKBONE)), num_labels=1, attn_implementation="eager"
    ).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = tuple(torch.ones(2, 16, dtype=torch.long) for _ in names)
    torch.onnx.export(
        model,
        example,
        str(out / "plain.onnx"),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names},
        dynamo=False,
        opset_version=17,
    )
    quantize_dynamic(out / "plain.onnx", out / "plain-int8.onnx", weight_type=QuantType.QUInt8)


if __name__ == "__main__":
    main()
