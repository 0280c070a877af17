"""Which operators of onnxruntime the exported graphs should be made of, on this machine.

One thread and processor time, so that it can run on a machine that is busy; the fastest of
several runs. Shapes are a layer's of a model with 384 units over 768 tokens.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import onnx

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as reranker/runtime.py does, and says why
import onnxruntime
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

TOKENS, HIDDEN, WIDE = 768, 384, 1536
OURS = "com.microsoft"
RNG = np.random.default_rng(0)


def main() -> None:
    """Print both tables."""
    console = Console(width=90)
    products = Table("a product (768, 384) x (384, 1536)", "GFLOP/s")
    work = 2 * TOKENS * HIDDEN * WIDE
    for name, (nodes, constants, entry) in _products().items():
        products.add_row(name, f"{work / _seconds(nodes, constants, [entry]) / 1e9:.0f}")
    console.print(products)
    others = Table("element by element, over (768, 1536)", "ns an element")
    floats = [RNG.normal(size=(TOKENS, WIDE)).astype(np.float32) for _ in range(2)]
    for name, (nodes, constants, count) in _elementwise().items():
        seconds = _seconds(nodes, constants, floats[:count])
        others.add_row(name, f"{seconds / floats[0].size * 1e9:.2f}")
    console.print(others)


def _products() -> dict[str, tuple[list[Any], dict[str, Any], Any]]:
    weight = RNG.normal(size=(HIDDEN, WIDE)).astype(np.float32)
    floats = RNG.normal(size=(TOKENS, HIDDEN)).astype(np.float32)
    bytes_ = RNG.integers(0, 256, (TOKENS, HIDDEN)).astype(np.uint8)
    scales = {"s": np.float32(0.1), "z": np.uint8(128), "cs": np.full(WIDE, 0.1, np.float32)}
    signed = {"w": RNG.integers(-63, 64, (HIDDEN, WIDE)).astype(np.int8), **scales}
    unsigned = {
        "w": RNG.integers(0, 256, (HIDDEN, WIDE)).astype(np.uint8),
        "wz": np.full(WIDE, 128, np.uint8),
        **scales,
    }
    whole = ["x0", "w", "s", "cs", "z"]
    found = {
        "fp32": ([_node("MatMul", ["x0", "w"])], {"w": weight}, floats),
        "int8 weights of 7 bits, as exported": (
            [_node("MatMulIntegerToFloat", whole, OURS)],
            signed,
            bytes_,
        ),
        "uint8 weights of 8 bits": (
            [_node("MatMulIntegerToFloat", [*whole, "wz"], OURS)],
            unsigned,
            bytes_,
        ),
    }
    for bits in (8, 4):
        blocks = HIDDEN // 128
        constants = {
            "w": RNG.integers(0, 256, (WIDE, blocks, 128 * bits // 8)).astype(np.uint8),
            "s": np.full(WIDE * blocks, 0.1, np.float32),
        }
        options = {"K": HIDDEN, "N": WIDE, "bits": bits, "block_size": 128, "accuracy_level": 4}
        node = _node("MatMulNBits", ["x0", "w", "s"], OURS, **options)
        found[f"blocks of {bits}-bit weights (MatMulNBits)"] = ([node], constants, floats)
    return found


def _elementwise() -> dict[str, tuple[list[Any], dict[str, Any], int]]:
    norm = {"w": np.ones(WIDE, np.float32), "b": np.zeros(WIDE, np.float32)}
    scale = {"s": np.float32(0.1), "z": np.uint8(128)}
    each = {"s": np.full(WIDE, 0.1, np.float32), "z": np.full(WIDE, 128, np.uint8)}
    return {
        "SkipLayerNormalization": (
            [_node("SkipLayerNormalization", ["x0", "x1", "w", "b"], OURS)],
            norm,
            2,
        ),
        "Add, LayerNormalization": (
            [
                helper.make_node("Add", ["x0", "x1"], ["sum"]),
                _node("LayerNormalization", ["sum", "w", "b"], axis=-1),
            ],
            norm,
            2,
        ),
        "Gelu": ([_node("Gelu", ["x0"], OURS)], {}, 1),
        "FastGelu (by tanh, not the same)": ([_node("FastGelu", ["x0"], OURS)], {}, 1),
        "Mul, QuantizeLinear": (
            [
                helper.make_node("Mul", ["x0", "w"], ["scaled"]),
                _node("QuantizeLinear", ["scaled", "s", "z"]),
            ],
            {"w": norm["w"], **scale},
            1,
        ),
        "QuantizeLinear by channel": ([_node("QuantizeLinear", ["x0", "s", "z"], axis=1)], each, 1),
    }


def _node(kind: str, inputs: list[str], domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, ["y"], domain=domain, **attributes)


def _seconds(nodes: list[Any], constants: dict[str, Any], entries: list[Any]) -> float:
    feed = {f"x{place}": entry for place, entry in enumerate(entries)}
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    last = TensorProto.UINT8 if nodes[-1].op_type == "QuantizeLinear" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "operators",
        [helper.make_tensor_value_info(n, types[e.dtype], e.shape) for n, e in feed.items()],
        [helper.make_tensor_value_info("y", last, None)],
        [
            onnx.numpy_helper.from_array(np.asarray(value), name)
            for name, value in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(OURS, 1)]
    made = helper.make_model(graph, opset_imports=opsets)
    made.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        made.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )
    values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(e) for n, e in feed.items()}
    session.run_with_ort_values(["y"], values)
    times = []
    for _ in range(9):
        started = time.process_time()
        session.run_with_ort_values(["y"], values)
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    main()
