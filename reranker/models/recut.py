"""A model whose texts begin to read the query in a later layer: `python -m reranker.models.recut`.

More of the layers are then computed beside the reading of the query, and kept by a cache. The
weights, their scales and the file that holds them stay as they are, so that nothing is quantized
anew; `kendall_tau` of the configuration is still the old model's.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import typer

from reranker.models.broadcast import BroadcastEncoder
from reranker.models.export import broadcast_graphs
from reranker.models.restore import restore
from reranker.runtime import read_config


def recut(folder: Path, target: Path, first_query_layer: int, name: str) -> None:
    """Write the model of `folder` into `target` with another first layer that reads the query.

    Raises ValueError for a layer that is not above the model's own, and for a model folder with a
    dual encoder, whose scales are its own; FileExistsError where `target` is there already.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists already; give a folder that does not")
    model = restore(folder)
    config = replace(model.config, first_query_layer=first_query_layer)
    if not model.config.first_query_layer < first_query_layer < config.layers:
        raise ValueError(
            f"first_query_layer is {first_query_layer}; give one above the model's own, "
            f"{model.config.first_query_layer}, and below its {config.layers} layers"
        )
    if (folder / "dual.onnx").is_file():
        raise ValueError(f"{folder} has a dual encoder; train it with the layer you want")
    blind = BroadcastEncoder(config).eval()
    blind.load_state_dict(model.state_dict())
    known = {
        tensor.name: tensor
        for path in folder.glob("*.onnx")
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
    }
    # Any ranges do for the graphs' shape: the scales that follow from them are replaced.
    ranges = {
        f"{reader}.layers.{depth}.{kind}": np.ones((2, size), dtype=np.float32)
        for reader in ("query", "text")
        for depth in range(config.layers)
        for kind, size in (
            *((kind, config.hidden) for kind in ("qkv", "output", "up")),
            ("down", config.intermediate),
        )
    }
    graphs = broadcast_graphs(blind, ranges if "words.int8" in known else None)
    shutil.copytree(folder, target)
    for graph, made in graphs.items():
        for tensor in made.graph.initializer:
            tensor.CopyFrom(known[tensor.name])
        (target / f"{graph}.onnx").write_bytes(made.SerializeToString())
    facts = {**read_config(folder), "name": name}
    (target / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main(folder: Path, target: Path, first_query_layer: int, name: str) -> None:
    """Write the model of a folder into another, with a later first layer that reads the query."""
    try:
        recut(folder, target, first_query_layer, name)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
