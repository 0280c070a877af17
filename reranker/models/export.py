"""From a trained network in torch to ONNX graphs that share one file of weights.

The graphs are written out operator by operator instead of traced, so that they hold exactly the
fused operators of onnxruntime that fit (`com.microsoft`: Gelu, MatMulIntegerToFloat,
FusedMatMul; not SkipLayerNormalization, several times slower on CPUs than its two parts) and
nothing is copied per text:

- `query.onnx`: ids (1, Q) -> keys (L, A, D, Q), values (L, A, Q, D), pooled (1, H), and for the
  late interaction tokens (Q, H) of length 1, weights (Q, 1)
- `lower.onnx`: ids, places, owner (R, W) -> states (R*W, H) after the layers below
  `first_query_layer`, which see the text alone, so that their result can be kept
- `upper.onnx`: all that `query` gives, states (R*W, H), owner (R, W), starts (N,) -> scores (N,)
- `dual.onnx`: states (R*W, H), owner (R, W), starts (N,) -> vectors (N, H) of length 1: the same
  upper layers with the attention to the query left out, which is the dual encoder; a query's
  vector is its `pooled`, scaled to length 1
- `pairs.onnx` (the pairwise model): ids, types (N, T), lengths (N,) -> scores (N,)

`lower` and `upper` read texts packed into R rows of W tokens, several short ones to a row:
`owner` says which text each token belongs to (-1: none), `places` is its position in that text,
and a token attends within its own text. With sinks texts come without their special tokens, and
the sinks are the first of the query's keys and values. `states` are half floats where the weights
are int8.

Int8: weights are quantized per output column to 7 bits (on CPUs without VNNI onnxruntime's
u8 x s8 kernel would overflow with 8), activations per tensor with *fixed* scales measured on
real text. Scales that followed each batch would make a text's score depend on its neighbours.
BERT's activations have a few channels far larger than the rest; as in SmoothQuant (Xiao et al.
2023, arXiv 2211.10438) each channel is divided by a factor that its weights are multiplied by,
so that both sides are about equally hard to quantize.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from reranker.models.broadcast import SINKS, BroadcastEncoder, without_special
from reranker.models.pair import PairEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from reranker.models.broadcast import List

Precision = Literal["fp32", "int8"]
# Name of a linear map -> lowest and highest value of each channel of its input, (2, I).
Ranges = dict[str, "NDArray[np.float32]"]

_OPSET = 18  # the first whose ScatterElements takes a maximum
_HIDDEN = -1e4  # added to the logit of a token that must not be seen
_ALIGNMENT = 4096  # of a tensor in the file of weights, so that it can be mapped as it lies

_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int64): TensorProto.INT64,
}


def export(
    model: BroadcastEncoder | PairEncoder,
    folder: Path,
    precision: Precision = "fp32",
    ranges: Ranges | None = None,
    dual: bool = False,
) -> None:
    """Write the model's graphs and its `weights.bin` into `folder`.

    `ranges` are the linear maps' input ranges (`measure_ranges`), needed for int8. `dual` adds
    the dual encoder's graph.
    """
    if dual and not has_dual(model):
        raise ValueError("only a broadcasting model started as a bi-encoder has a dual encoder")
    if precision == "int8" and not ranges:
        raise ValueError("int8 needs the activations' ranges: measure them with measure_ranges")
    folder.mkdir(parents=True, exist_ok=True)
    weights = _Weights()
    encoder = model.encoder if isinstance(model, PairEncoder) else model
    maps = ranges if precision == "int8" else None
    if isinstance(model, PairEncoder):
        graphs = {"pairs": _Graph(encoder, weights, maps, "text").pairs()}
    else:
        graphs = broadcast_graphs(encoder, maps, weights)
        if dual:
            graphs["dual"] = _Graph(encoder, weights, maps, "dual").dual()
    weights.write(folder / "weights.bin")
    for name, graph in graphs.items():
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString())


def broadcast_graphs(
    encoder: BroadcastEncoder, ranges: Ranges | None, weights: _Weights | None = None
) -> dict[str, onnx.ModelProto]:
    """The graphs `query`, `lower` and `upper`, whose tensors `weights` then holds."""
    weights = weights or _Weights()
    return {
        "query": _Graph(encoder, weights, ranges, "query").query(),
        "lower": _Graph(encoder, weights, ranges, "text").lower(),
        "upper": _Graph(encoder, weights, ranges, "text").upper(),
    }


class _Weights:
    """The tensors of all graphs, each stored once, laid out for memory mapping."""

    def __init__(self) -> None:
        self._tensors: dict[str, tuple[NDArray[Any], int]] = {}
        self._end = 0

    def place(self, name: str, array: NDArray[Any]) -> TensorProto:
        """Store the array under the name, if it is not there yet; its initializer."""
        if name not in self._tensors:
            self._tensors[name] = (np.ascontiguousarray(array), self._end)
            self._end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        kept, offset = self._tensors[name]
        tensor = TensorProto(name=name, data_type=_TYPES[kept.dtype], dims=kept.shape)
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": "weights.bin", "offset": str(offset), "length": str(kept.nbytes)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            for array, offset in self._tensors.values():
                file.seek(offset)
                file.write(array.tobytes())
            file.truncate(self._end)


class _Graph:
    """One graph under construction: every method adds nodes and returns its output's name."""

    def __init__(
        self,
        encoder: BroadcastEncoder,
        weights: _Weights,
        ranges: Ranges | None,
        reader: Literal["query", "text", "dual"],
    ) -> None:
        self.config = encoder.config
        self.state = {
            name: value.detach().to(torch.float32).cpu().numpy()
            for name, value in encoder.state_dict().items()
        }
        self.weights = weights
        self.ranges = ranges
        self.reader = reader  # whose activations' ranges apply
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}

    # The graphs.

    def query(self) -> onnx.ModelProto:
        c = self.config
        self.rows("ids")
        x = self.embedding("ids")
        keys, values = [], []
        for depth in range(c.layers):
            q, k, v = self.split_heads(x, depth)  # (A, Q, D) each
            logits = self.op("FusedMatMul", [q, k], domain="com.microsoft", transB=1)
            weights = self.op("Softmax", [logits], axis=-1)
            turned = self.op("Transpose", [k], perm=[0, 2, 1])  # (A, D, Q)
            if c.sinks:  # so that the texts read both in one product
                sinks = self.sinks(depth)
                keys.append(self.op("Concat", [sinks[0], turned], axis=2))
                values.append(self.op("Concat", [sinks[1], v], axis=1))
            else:
                keys.append(turned)
                values.append(v)
            x = self.finish(x, self.op("MatMul", [weights, v]), depth)
        for name, parts in (("keys", keys), ("values", values)):
            stacked = [self.op("Unsqueeze", [part, self.ints("axis0", [0])]) for part in parts]
            self.op("Concat", stacked, output=name, axis=0)
        self.op("ReduceMean", [x, self.ints("axis0", [0])], output="pooled", keepdims=1)
        if c.token_match is not None:
            self.op("Div", [x, self.length(x)], output="tokens")
            heed = self.tensor("token_weight", self.state["token_weight"][:, None])  # (H, 1)
            self.op("Softmax", [self.op("MatMul", [x, heed])], output="weights", axis=0)
        return self.model([("ids", TensorProto.INT64, [1, "Q"])], self.query_states())

    def lower(self) -> onnx.ModelProto:
        c = self.config
        scratch = c.start == "scratch"
        self.rows("ids")
        x = self.embedding("ids", "places", 1 if scratch else 0)
        x = self.own_layers(x, range(c.first_query_layer))
        self.op("Cast", [x], output="states", to=self.states_type())
        packed = [(name, TensorProto.INT64, ["R", "W"]) for name in ("ids", "places", "owner")]
        made = self.model(packed, [("states", self.states_type(), ["P", c.hidden])])
        # Where a text's positions start decides whether its states can be kept for other queries,
        # and whether it is read with its special tokens.
        places = "query" if scratch else "1" if c.sinks else "0"
        facts = {"first_query_layer": c.first_query_layer, "places": places}
        helper.set_model_props(made, {name: str(value) for name, value in facts.items()})
        return made

    def upper(self) -> onnx.ModelProto:
        c = self.config
        query_width = self.op("Gather", [self.op("Shape", ["keys"]), self.ints("three", 3)])
        self.rows("owner")
        x = self.op("Cast", ["states"], to=TensorProto.FLOAT)
        shared = self.attention_to_all(query_width)
        for depth in range(c.first_query_layer, c.layers):
            place = self.ints(f"layer{depth}", depth)
            keys = self.op("Gather", ["keys", place], axis=0)  # (A, D, Q)
            values = self.op("Gather", ["values", place], axis=0)  # (A, Q, D)
            bias = self.state["query_bias"][depth][:, None, None]  # (A, 1, 1)
            bias = self.tensor(f"query_bias.{depth}", bias)
            if c.sinks:  # they come before the query and have no bias
                none = self.tensor("no bias", np.zeros((c.heads, 1, SINKS)))
                words = self.op("Sub", [query_width, self.ints("sinks", SINKS)])
                one = self.ints("one", 1)
                shape = self.concat([self.ints("heads", c.heads), one, words])
                bias = self.op("Concat", [none, self.op("Expand", [bias, shape])], axis=2)
            x = self.finish(x, shared(x, depth, keys, values, bias), depth)
        self.score(x)
        made = self.model(
            [
                *self.query_states(),
                ("states", self.states_type(), ["P", c.hidden]),
                ("owner", TensorProto.INT64, ["R", "W"]),
                ("starts", TensorProto.INT64, ["N"]),
            ],
            [("scores", TensorProto.FLOAT, ["N"])],
        )
        # No graph needs the dual encoder's scale, but training further does.
        helper.set_model_props(made, {"scale": repr(float(self.state["scale"]))})
        return made

    def dual(self) -> onnx.ModelProto:
        c = self.config
        self.rows("owner")
        x = self.op("Cast", ["states"], to=TensorProto.FLOAT)
        pooled = self.mean(self.own_layers(x, range(c.first_query_layer, c.layers)))
        self.op("Div", [pooled, self.length(pooled)], output="vectors")
        return self.model(
            [
                ("states", self.states_type(), ["P", c.hidden]),
                ("owner", TensorProto.INT64, ["R", "W"]),
                ("starts", TensorProto.INT64, ["N"]),
            ],
            [("vectors", TensorProto.FLOAT, ["N", c.hidden])],
        )

    def pairs(self) -> onnx.ModelProto:
        self.rows("ids")
        x = self.embedding("ids", types="types")
        mask, apart, flat = self.padding_mask(), self.apart(), self.flat()
        for depth in range(self.config.layers):
            q, k, v = self.split_heads(x, depth)
            q, k, v = (self.op("Reshape", [t, apart]) for t in (q, k, v))  # (A, N, T, D)
            logits = self.op("FusedMatMul", [q, k], domain="com.microsoft", transB=1)
            weights = self.op("Softmax", [self.op("Add", [logits, mask])], axis=-1)
            context = self.op("Reshape", [self.op("MatMul", [weights, v]), flat])
            x = self.finish(x, context, depth)
        span = self.op("Range", [self.ints("zero", 0), "batch", self.ints("one", 1)])
        first = self.op("Gather", [x, self.op("Mul", [span, "width"])], axis=0)  # (N, H)
        self.op("Reshape", [self.head(first), self.ints("line", [-1])], output="scores")
        return self.model(
            [
                ("ids", TensorProto.INT64, ["N", "T"]),
                ("types", TensorProto.INT64, ["N", "T"]),
                ("lengths", TensorProto.INT64, ["N"]),
            ],
            [("scores", TensorProto.FLOAT, ["N"])],
        )

    # Their parts. P = R*W tokens are one flat list but for the attention within rows.

    def query_states(self) -> list[tuple[str, int, list[Any]]]:
        c = self.config
        size = c.hidden // c.heads
        late: list[tuple[str, int, list[Any]]] = [
            ("tokens", TensorProto.FLOAT, ["Q", c.hidden]),
            ("weights", TensorProto.FLOAT, ["Q", 1]),
        ]
        return [
            ("keys", TensorProto.FLOAT, [c.layers, c.heads, size, "Q"]),
            ("values", TensorProto.FLOAT, [c.layers, c.heads, "Q", size]),
            ("pooled", TensorProto.FLOAT, [1, c.hidden]),
            *(late if c.token_match is not None else []),
        ]

    def states_type(self) -> int:
        kind: int = TensorProto.FLOAT if self.ranges is None else TensorProto.FLOAT16
        return kind

    def rows(self, name: str) -> None:
        """Name the two dimensions of an input: batch, width."""
        shape = self.op("Shape", [name])
        self.op("Gather", [shape, self.ints("zero", 0)], output="batch")
        self.op("Gather", [shape, self.ints("one", 1)], output="width")

    def embedding(
        self, ids: str, places: str | None = None, token_type: int = 0, types: str | None = None
    ) -> str:
        """Ids (R, W) -> (R*W, H); positions count from 0 in each row where none are given."""
        words = self.state["words.weight"]
        if self.ranges is None:
            x = self.op("Gather", [self.tensor("words", words), ids])
        else:
            scale = np.maximum(np.abs(words).max(1, keepdims=True) / 127, 1e-12)
            table = self.tensor("words.int8", np.rint(words / scale).astype(np.int8))
            rows = self.op("Cast", [self.op("Gather", [table, ids])], to=TensorProto.FLOAT)
            scales = self.tensor("words.scale", scale.astype(np.float32))
            x = self.op("Mul", [rows, self.op("Gather", [scales, ids])])
        kinds = self.state["types.weight"]
        positions = self.state["positions.weight"]
        if types is None:
            positions = positions + kinds[token_type]
            name = f"positions.{token_type}"
        else:
            name = "positions"
            x = self.op("Add", [x, self.op("Gather", [self.tensor("types.table", kinds), types])])
        if places is None:
            places = self.op("Range", [self.ints("zero", 0), "width", self.ints("one", 1)])
        x = self.op("Add", [x, self.op("Gather", [self.tensor(name, positions), places])])
        x = self.op("Reshape", [x, self.ints("tokens", [-1, self.config.hidden])])
        return self.norm(x, "embedding_norm")

    def own_mask(self) -> str:
        """Owner (R, W) -> what is added to the logits of a row's tokens, (R, W, W)."""
        readers, read = (
            self.op("Unsqueeze", ["owner", self.ints(f"axis{axis}", [axis])]) for axis in (2, 1)
        )
        zero, hidden = self.float("0", 0.0), self.float("hidden", _HIDDEN)
        return self.op("Where", [self.op("Equal", [readers, read]), zero, hidden])

    def padding_mask(self) -> str:
        """Lengths (N,) -> what is added to the logits of a row's tokens, (N, 1, T)."""
        span = self.op("Range", [self.ints("zero", 0), "width", self.ints("one", 1)])
        lengths = self.op("Unsqueeze", ["lengths", self.ints("axis1", [1])])
        zero, hidden = self.float("0", 0.0), self.float("hidden", _HIDDEN)
        mask = self.op("Where", [self.op("Less", [span, lengths]), zero, hidden])
        return self.op("Unsqueeze", [mask, self.ints("axis1", [1])])

    def apart(self) -> str:
        """The shape (A, R, W, rest)."""
        heads = self.ints("heads", self.config.heads)
        return self.concat([heads, "batch", "width", self.ints("rest", -1)])

    def flat(self) -> str:
        """The shape (A, P, rest)."""
        heads = self.ints("heads", self.config.heads)
        tokens = self.op("Mul", ["batch", "width"])
        return self.concat([heads, tokens, self.ints("rest", -1)])

    def own_layers(self, x: str, depths: range) -> str:
        """Layers in which a text's tokens read each other only: x (P, H) -> (P, H)."""
        if self.config.sinks:
            shared = self.attention_to_all(self.ints("sinks", SINKS))
            for depth in depths:
                x = self.finish(x, shared(x, depth, *self.sinks(depth)), depth)
            return x
        mask, apart, flat = self.own_mask(), self.apart(), self.flat()
        for depth in depths:
            q, k, v = self.split_heads(x, depth)  # (A, P, D) each
            qs, ks, vs = (self.op("Reshape", [t, apart]) for t in (q, k, v))  # (A, R, W, D)
            own = self.op("FusedMatMul", [qs, ks], domain="com.microsoft", transB=1)
            weights = self.op("Softmax", [self.op("Add", [own, mask])], axis=-1)
            context = self.op("Reshape", [self.op("MatMul", [weights, vs]), flat])
            x = self.finish(x, context, depth)
        return x

    def attention_to_all(self, width: str) -> Callable[..., str]:
        """What gives the context (A, P, D) of tokens that attend to their own text and to more.

        `shared(x, depth, keys (A, D, Y), values (A, Y, D), bias)`: the Y of `width` are the same
        for all texts; `bias` is added to their logits.
        """
        mask, apart, flat = self.own_mask(), self.apart(), self.flat()
        cut = self.concat(["width", width])

        def shared(x: str, depth: int, keys: str, values: str, bias: str = "") -> str:
            q, k, v = self.split_heads(x, depth)  # (A, P, D) each
            qs, ks, vs = (self.op("Reshape", [t, apart]) for t in (q, k, v))  # (A, R, W, D)
            own = self.op("FusedMatMul", [qs, ks], domain="com.microsoft", transB=1)
            own = self.op("Reshape", [self.op("Add", [own, mask]), flat])  # (A, P, W)
            read = self.op("MatMul", [q, keys])  # (A, P, Y): one matmul for all texts
            if bias:
                read = self.op("Add", [read, bias])
            both = self.op("Softmax", [self.op("Concat", [own, read], axis=-1)], axis=-1)
            ours, theirs = self.ops("Split", [both, cut], 2, axis=-1)  # (A, P, W), (A, P, Y)
            ours = self.op("MatMul", [self.op("Reshape", [ours, apart]), vs])
            context = self.op("Reshape", [ours, flat])  # (A, P, D)
            return self.op("Add", [context, self.op("MatMul", [theirs, values])])

        return shared

    def sinks(self, depth: int) -> tuple[str, str]:
        """A layer's sinks: keys (A, D, 2), values (A, 2, D) scaled as `split_heads` does."""
        c = self.config
        name = f"layers.{depth}.output"
        factors = self.factors(name, self.state[f"{name}.weight"].T).reshape(c.heads, 1, -1)
        keys = self.state["sink_keys"][depth].transpose(0, 2, 1)
        values = self.state["sink_values"][depth] / factors
        return self.tensor(f"sink_keys.{depth}", keys), self.tensor(f"sink_values.{depth}", values)

    def split_heads(self, x: str, depth: int) -> list[str]:
        """X (P, H) -> query, key, value, each (A, P, D).

        1/sqrt(D) is in the query's map, and in the value's what `linear` would have to divide
        the context by.
        """
        c = self.config
        root = (c.hidden // c.heads) ** 0.5
        name = f"layers.{depth}.output"
        factors = self.factors(name, self.state[f"{name}.weight"].T)
        parts = [f"layers.{depth}.{kind}" for kind in ("query", "key", "value")]
        scales = (1 / root, 1.0, 1 / factors)
        pairs = list(zip(parts, scales, strict=True))
        weight = np.concatenate([self.state[f"{p}.weight"].T * s for p, s in pairs], axis=1)
        bias = np.concatenate([self.state[f"{p}.bias"] * s for p, s in pairs])
        mixed = self.linear(x, f"layers.{depth}.qkv", weight, bias)  # (P, 3H)
        shape = self.ints("split heads", [-1, 3 * c.heads, c.hidden // c.heads])
        heads = self.op("Transpose", [self.op("Reshape", [mixed, shape])], perm=[1, 0, 2])
        return self.ops("Split", [heads, self.ints("three heads", [c.heads] * 3)], 3, axis=0)

    def finish(self, x: str, context: str, depth: int) -> str:
        """All that follows the attention: x (P, H), context (A, P, D) -> (P, H)."""
        name = f"layers.{depth}"
        merged = self.op("Transpose", [context], perm=[1, 0, 2])
        merged = self.op("Reshape", [merged, self.ints("tokens", [-1, self.config.hidden])])
        out = self.named_linear(merged, f"{name}.output", smooth=False)
        x = self.norm(self.op("Add", [x, out]), f"{name}.attention_norm")
        # The form by tanh is within 0.0005 of the exact one, a small part of int8's step.
        gelu = "Gelu" if self.ranges is None else "FastGelu"
        up = self.op(gelu, [self.named_linear(x, f"{name}.up")], domain="com.microsoft")
        return self.norm(self.op("Add", [x, self.named_linear(up, f"{name}.down")]), f"{name}.norm")

    def score(self, x: str) -> None:
        """The head: x (P, H) -> scores (N,)."""
        line = self.ints("line", [-1])
        if self.config.start == "scratch":
            pooled = self.op("Gather", [x, "starts"], axis=0)
            self.op("Reshape", [self.head(pooled), line], output="scores")
            return
        pooled = self.mean(x)
        dot = self.op("FusedMatMul", [pooled, "pooled"], domain="com.microsoft", transB=1)  # (N, 1)
        norms = [self.length(name) for name in (pooled, "pooled")]
        cosine = self.op("Div", [dot, self.op("Mul", norms)])
        late = self.config.token_match is not None
        scale = "mean_match" if late else "scale"
        scaled = self.op("Mul", [cosine, self.float(scale, float(self.state[scale]))])
        logits = self.op("Add", [scaled, self.head(pooled)])
        if late:
            matches = self.token_matches(x)
            factor = self.float("token_match", float(self.state["token_match"]))
            logits = self.op("Add", [logits, self.op("Mul", [matches, factor])])
        self.op("Reshape", [logits, line], output="scores")

    def token_matches(self, x: str) -> str:
        """How near some token of each text comes to each of the query's: x (P, H) -> (N, 1)."""
        unit = self.op("Div", [x, self.length(x)])
        near = self.op("FusedMatMul", [unit, "tokens"], domain="com.microsoft", transB=1)  # (P, Q)
        width = self.op("Gather", [self.op("Shape", [near]), self.ints("one", 1)])
        texts = self.op("Gather", [self.op("Shape", ["starts"]), self.ints("zero", 0)])
        # One row more than texts: where an owner is -1, which is the last row, there is no token.
        rows = self.op("Add", [texts, self.ints("one", 1)])
        floor = self.op("Expand", [self.float("-1", -1.0), self.concat([rows, width])])
        owners = self.op("Reshape", ["owner", self.ints("column", [-1, 1])])
        owners = self.op("Expand", [owners, self.op("Shape", [near])])  # (P, Q)
        nearest = self.op("ScatterElements", [floor, owners, near], axis=0, reduction="max")
        end = self.op("Unsqueeze", [texts, self.ints("axis0", [0])])
        nearest = self.op("Slice", [nearest, self.ints("axis0", [0]), end])  # (N, Q)
        return self.op("MatMul", [nearest, "weights"])

    def length(self, x: str) -> str:
        """The lengths of vectors, x (N, H) -> (N, 1), never quite zero."""
        norms = self.op("ReduceL2", [x, self.ints("axis1", [1])], keepdims=1)
        return self.op("Max", [norms, self.float("tiny", 1e-8)])

    def mean(self, x: str) -> str:
        """The mean state of each text: x (P, H) -> (N, H)."""
        count = self.op("Gather", [self.op("Shape", ["starts"]), self.ints("zero", 0)])
        texts = self.op("Range", [self.ints("zero", 0), count, self.ints("one", 1)])
        texts = self.op("Unsqueeze", [texts, self.ints("axis1", [1])])  # (N, 1)
        owners = self.op("Reshape", ["owner", self.ints("row", [1, -1])])  # (1, P)
        seen = self.op("Cast", [self.op("Equal", [texts, owners])], to=TensorProto.FLOAT)
        lengths = self.op("ReduceSum", [seen, self.ints("axis1", [1])], keepdims=1)
        return self.op("Div", [self.op("MatMul", [seen, x]), lengths])

    def head(self, pooled: str) -> str:
        weight = self.tensor("head.weight", self.state["head.weight"].T)
        bias = self.tensor("head.bias", self.state["head.bias"])
        return self.op("Add", [self.op("MatMul", [pooled, weight]), bias])

    # Their building blocks.

    def named_linear(self, x: str, name: str, smooth: bool = True) -> str:
        weight, bias = self.state[f"{name}.weight"].T, self.state[f"{name}.bias"]
        return self.linear(x, name, weight, bias, smooth)

    def linear(
        self, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any], smooth: bool = True
    ) -> str:
        """X (P, I) times weight (I, O) plus bias (O,); not `smooth`: x is divided already."""
        if self.ranges is None:
            product = self.op("MatMul", [x, self.tensor(f"{name}.weight", weight)])
            return self.op("Add", [product, self.tensor(f"{name}.bias", bias)])
        ranges = self.ranges[f"{self.reader}.{name}"]  # (2, I)
        factors = self.factors(name, weight)
        weight = weight * factors[:, None]
        low, high = float((ranges[0] / factors).min()), float((ranges[1] / factors).max())
        step = max((max(high, 0.0) - min(low, 0.0)) / 255, 1e-12)
        zero = int(np.clip(round(-min(low, 0.0) / step), 0, 255))
        columns = np.maximum(np.abs(weight).max(0) / 63, 1e-12)  # (O,)
        small = np.rint(weight / columns).astype(np.int8)
        mine = f"{self.reader}.{name}"
        a_scale = self.float(f"{mine}.scale", step)
        a_zero = self.small(f"{mine}.zero", np.uint8(zero))
        if smooth:
            x = self.op("Mul", [x, self.tensor(f"{name}.smooth", 1 / factors)])
        quantized = self.op("QuantizeLinear", [x, a_scale, a_zero])
        inputs = [
            quantized,
            self.tensor(f"{name}.int8", small),
            a_scale,
            self.tensor(f"{name}.columns", columns.astype(np.float32)),
            a_zero,
            "",  # the weights' zero point is 0
            self.tensor(f"{name}.bias", bias),
        ]
        return self.op("MatMulIntegerToFloat", inputs, domain="com.microsoft")

    def factors(self, name: str, weight: NDArray[Any]) -> NDArray[np.float32]:
        """What each channel of a linear map's input is divided by, (I,); ones where not int8.

        They are of all readers together, so that the graphs share the scaled weights.
        """
        if self.ranges is None:
            return np.ones(len(weight), dtype=np.float32)
        seen = [self.ranges[key] for key in self.ranges if key.endswith(f".{name}")]
        return smoothing(np.concatenate(seen), weight)

    def norm(self, x: str, name: str) -> str:
        parts = [f"{name}.{kind}" for kind in ("weight", "bias")]
        return self.op(
            "LayerNormalization",
            [x, *(self.tensor(part, self.state[part]) for part in parts)],
            axis=-1,
            epsilon=self.config.norm_epsilon,
        )

    def concat(self, scalars: Sequence[str]) -> str:
        """Several scalars as one vector, for example a shape."""
        axis = self.ints("axis0", [0])
        return self.op("Concat", [self.op("Unsqueeze", [s, axis]) for s in scalars], axis=0)

    def op(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node with one output; its name."""
        return self.ops(kind, inputs, 1, output, **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[str], count: int, output: str = "", **attributes: Any
    ) -> list[str]:
        names = [output or f"{kind.lower()}_{len(self.nodes)}"]
        names += [f"{names[0]}_{place}" for place in range(1, count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def tensor(self, name: str, array: NDArray[Any]) -> str:
        """A large constant, in the shared file."""
        if name not in self.initializers:
            if array.dtype.kind == "f":
                array = array.astype(np.float32)
            self.initializers[name] = self.weights.place(name, array)
        return name

    def small(self, name: str, value: Any) -> str:
        """A small constant, in the graph itself."""
        name = f"constant.{name}"
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def ints(self, name: str, value: int | Sequence[int]) -> str:
        return self.small(name, np.asarray(value, dtype=np.int64))

    def float(self, name: str, value: float) -> str:
        return self.small(name, np.float32(value))

    def model(
        self,
        inputs: Sequence[tuple[str, int, list[Any]]],
        outputs: Sequence[tuple[str, int, list[Any]]],
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "titlecast",
            [helper.make_tensor_value_info(*item) for item in inputs],
            [helper.make_tensor_value_info(*item) for item in outputs],
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        made = helper.make_model(graph, opset_imports=opsets, producer_name="titlecast")
        made.ir_version = 8
        return made


def has_dual(model: BroadcastEncoder | PairEncoder) -> bool:
    """Whether the network without the query's attention is a bi-encoder."""
    return isinstance(model, BroadcastEncoder) and model.config.start == "bi-encoder"


def smoothing(ranges: NDArray[np.float32], weight: NDArray[Any]) -> NDArray[np.float32]:
    """What each input channel is divided by: ranges (R, I), weight (I, O) -> (I,).

    SmoothQuant's equation 4; 0.8 kept the order of scores best on held-back lists.
    """
    inputs = np.maximum(np.abs(ranges).max(0), 1e-5)
    outputs = np.maximum(np.abs(weight).max(1), 1e-5)
    factors: NDArray[np.float32] = (inputs**0.8 / outputs**0.2).astype(np.float32)
    return factors


@torch.no_grad()
def measure_ranges(
    model: BroadcastEncoder | PairEncoder,
    lists: Sequence[List],
    dual: bool = False,
) -> Ranges:
    """The range of every linear map's input, channel by channel, over real lists.

    Padding does not count. `dual` also measures the texts read without a query, for the dual
    encoder's graph.
    """
    encoder = model.encoder if isinstance(model, PairEncoder) else model
    found: Ranges = {}
    current: dict[str, Any] = {"reader": "text", "mask": None}

    def watch(name: str) -> Any:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x, mask = inputs[0], current["mask"]
            if mask is not None and mask.shape == x.shape[:2]:
                x = x[mask]
            rows = x.flatten(0, -2)
            seen = torch.stack([rows.amin(0), rows.amax(0)]).numpy()
            known = found.setdefault(f"{current['reader']}.{name}", seen)
            np.minimum(known[0], seen[0], out=known[0])
            np.maximum(known[1], seen[1], out=known[1])

        return hook

    hooks = []
    for depth, layer in enumerate(encoder.layers):
        parts: Mapping[str, str] = {"qkv": "query", "output": "output", "up": "up", "down": "down"}
        for ours, theirs in parts.items():
            module = getattr(layer, theirs)
            hooks.append(module.register_forward_pre_hook(watch(f"layers.{depth}.{ours}")))
    try:
        for query_ids, ids, mask in lists:
            current.update(reader="query", mask=None)
            read = model.encode_query(query_ids, torch.ones_like(query_ids, dtype=torch.bool))
            seen = without_special(ids, mask)[1] if encoder.config.sinks else mask
            current.update(reader="text", mask=seen)
            model.score(read, ids, mask)  # type: ignore[arg-type]
            if dual and isinstance(model, BroadcastEncoder):
                current.update(reader="dual", mask=seen)
                model.encode_text(None, ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return found
