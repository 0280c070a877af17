"""From a model folder that serving loads back to a network in torch, to train it further.

An int8 folder gives the weights that its 7 bits stand for; an fp32 folder gives back what was
exported, up to scales that the export moved from one linear map into the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from reranker.models.broadcast import BroadcastConfig, BroadcastEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


_LATE = ("token_match", "mean_match")


def restore(folder: Path) -> BroadcastEncoder:
    """The network of an exported folder of the broadcast architecture, in fp32.

    The folder is all it needs: what the backbone had besides, two embeddings of token types, is
    part of the positions there. Raises FileNotFoundError for a folder without graphs, ValueError
    for another architecture.
    """
    tensors = read_tensors(folder)
    biases = {int(n.split(".")[1]): tensors[n] for n in tensors if n.startswith("query_bias.")}
    if not biases:
        raise ValueError(f"{folder} holds no model of the broadcast architecture")
    scratch = "positions.1" in tensors
    late = "constant.token_match" in tensors
    matches: dict[str, Any] = {name: float(tensors[f"constant.{name}"]) for name in _LATE if late}
    sinks = "sink_keys.0" in tensors
    words = _words(tensors)
    model = BroadcastEncoder(
        BroadcastConfig(
            layers=max(biases) + 1,
            hidden=words.shape[1],
            heads=biases[max(biases)].size,
            intermediate=len(tensors["layers.0.up.bias"]),
            vocabulary=len(words),
            positions=len(tensors["positions.0"]),
            norm_epsilon=_epsilon(folder),
            first_query_layer=min(biases),
            start="scratch" if scratch else "bi-encoder",
            sinks=sinks,
            **matches,
        )
    )
    state = model.state_dict()
    hidden, heads = model.config.hidden, model.config.heads

    def put(name: str, value: NDArray[Any]) -> None:
        if name not in state or tuple(value.shape) != tuple(state[name].shape):
            raise ValueError(f"{folder} holds a model that does not fit together: {name}")
        state[name] = torch.from_numpy(np.array(value, dtype=np.float32))

    put("words.weight", words)
    # A graph has the sums of positions and types.
    put("positions.weight", tensors["positions.0"])
    types = np.zeros(state["types.weight"].shape)
    if scratch:
        types[1] = (tensors["positions.1"] - tensors["positions.0"])[0]
    put("types.weight", types)
    for name in ("embedding_norm", "head"):
        for part in ("weight", "bias"):
            put(f"{name}.{part}", tensors[f"{name}.{part}"].T)
    if not scratch:
        put("scale", _scale(folder, tensors))
    if late:  # its scales are in the configuration
        put("token_weight", tensors["token_weight"].reshape(-1))
    if sinks:
        layers = range(model.config.layers)
        keys = [tensors[f"sink_keys.{depth}"].transpose(0, 2, 1) for depth in layers]
        put("sink_keys", np.stack(keys))
        put("sink_values", np.stack([tensors[f"sink_values.{depth}"] for depth in layers]))
    bias = state["query_bias"].clone()
    for depth, row in biases.items():
        bias[depth] = torch.from_numpy(row.reshape(-1).copy())
    state["query_bias"] = bias
    root = (hidden // heads) ** 0.5  # which the export divides the query's map by
    for depth in range(model.config.layers):
        layer = f"layers.{depth}"
        weight, shift = _linear(tensors, f"{layer}.qkv")
        parts = zip(("query", "key", "value"), (root, 1.0, 1.0), strict=True)
        for place, (part, factor) in enumerate(parts):
            columns = slice(place * hidden, (place + 1) * hidden)
            put(f"{layer}.{part}.weight", weight[:, columns].T * factor)
            put(f"{layer}.{part}.bias", shift[columns] * factor)
        for part in ("output", "up", "down"):
            weight, shift = _linear(tensors, f"{layer}.{part}")
            put(f"{layer}.{part}.weight", weight.T)
            put(f"{layer}.{part}.bias", shift)
        for part in ("attention_norm", "norm"):
            for kind_ in ("weight", "bias"):
                put(f"{layer}.{part}.{kind_}", tensors[f"{layer}.{part}.{kind_}"])
    model.load_state_dict(state)
    return model.eval()


def read_tensors(folder: Path) -> dict[str, NDArray[Any]]:
    """The initializers of all graphs of a folder, by name.

    Raises FileNotFoundError where there is no graph.
    """
    paths = sorted(folder.glob("*.onnx"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no model: give a folder of `titlecast export`")
    return {
        tensor.name: numpy_helper.to_array(tensor, str(folder))
        for path in paths
        for tensor in onnx.load(path).graph.initializer
    }


def _epsilon(folder: Path) -> float:
    """What the graph's layer norms add to the variance."""
    for path in sorted(folder.glob("*.onnx")):
        for node in onnx.load(path, load_external_data=False).graph.node:
            for fact in node.attribute:
                if fact.name == "epsilon":
                    return float(f"{fact.f:.3g}")  # from float32
    raise ValueError(f"{folder} holds no graph with a layer norm")


def _scale(folder: Path, tensors: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The cosine's scale; beside the graph where only the dual encoder has it."""
    if "constant.scale" in tensors:
        return tensors["constant.scale"]
    facts = {p.key: p.value for p in onnx.load(folder / "upper.onnx").metadata_props}
    return np.asarray(float(facts["scale"]))


def _words(tensors: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if "words" in tensors:
        return tensors["words"]
    words: NDArray[Any] = tensors["words.int8"].astype(np.float32) * tensors["words.scale"]
    return words


def _linear(tensors: dict[str, NDArray[Any]], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight (I, O) and bias (O,) of a linear map."""
    bias = tensors[f"{name}.bias"]
    if f"{name}.weight" in tensors:
        return tensors[f"{name}.weight"], bias
    weight = tensors[f"{name}.int8"].astype(np.float32) * tensors[f"{name}.columns"]
    if f"{name}.smooth" in tensors:  # what the graph multiplies the map's input by
        weight = weight * tensors[f"{name}.smooth"][:, None]
    return weight, bias
