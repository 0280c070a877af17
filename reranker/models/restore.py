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

from reranker.models.backbone import load_backbone
from reranker.models.broadcast import BroadcastEncoder, from_bert

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


_LATE = ("token_match", "mean_match")


def restore(folder: Path, backbone: str) -> BroadcastEncoder:
    """The network of an exported folder of the broadcast architecture, in fp32.

    `backbone` is the one it was trained from; it gives what no graph holds (token types are part
    of the positions there). Raises ValueError where the folder holds another architecture.
    """
    tensors = read_tensors(folder)
    if "query_bias.0" not in tensors and not any(n.startswith("query_bias.") for n in tensors):
        raise ValueError(f"{folder} holds no model of the broadcast architecture")
    found = load_backbone(backbone)
    biases = sorted(int(n.split(".")[1]) for n in tensors if n.startswith("query_bias."))
    if biases[-1] >= int(found.config["num_hidden_layers"]):
        raise ValueError(f"{folder} does not fit the backbone {backbone}: it has more layers")
    scratch = "positions.1" in tensors
    late = "constant.token_match" in tensors
    sinks = "sink_keys.0" in tensors
    model = from_bert(
        found.state,
        found.config,
        layers=biases[-1] + 1,
        first_query_layer=biases[0],
        start="scratch" if scratch else "bi-encoder",
        sinks=sinks,
        **{name: float(tensors[f"constant.{name}"]) for name in _LATE if late},
    )
    state = model.state_dict()
    hidden, heads = model.config.hidden, model.config.heads

    def put(name: str, value: NDArray[Any]) -> None:
        if name not in state or tuple(value.shape) != tuple(state[name].shape):
            raise ValueError(f"{folder} does not fit the backbone {backbone}: {name}")
        state[name] = torch.from_numpy(np.array(value, dtype=np.float32))

    put("words.weight", _words(tensors))
    for kind in (0, 1) if scratch else (0,):
        # The sum is all the graph needs of both; the types stay the backbone's.
        positions = tensors["positions.0"] - state["types.weight"][0].numpy()
        put("positions.weight", positions)
        if kind:
            types = state["types.weight"].clone()
            types[1] = (
                types[0] + torch.from_numpy(tensors["positions.1"] - tensors["positions.0"])[0]
            )
            state["types.weight"] = types
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
    for depth in biases:
        bias[depth] = torch.from_numpy(tensors[f"query_bias.{depth}"].reshape(-1).copy())
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
