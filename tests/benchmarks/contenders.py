"""The contenders of `bench_rerank`, each in a process of its own.

A contender is told on standard input, line by line, what to do (`titles 100`, `passages 100`,
`cascade 20`, `search 3` for the hits of the fourth of several searches), and answers on standard
output with one line of JSON: the milliseconds that one run took, the processor's time, the most
memory that the process ever had, and of a cascade how many passages it read.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DEPTH = 20  # passages that a cascade may read of a search

Run = Callable[[], object]


class Search(NamedTuple):
    """One of several searches, with its hits in the first stage's order."""

    query: str
    ids: list[str]
    titles: list[str]
    passages: list[str]
    scores: list[float]


class Work:
    """The hits of one query: what every contender reranks; and those of several, for some."""

    def __init__(self, path: Path) -> None:
        read = json.loads(path.read_text("utf-8"))
        self.query: str = read["query"]
        self.ids: list[str] = read["ids"]
        self.titles: list[str] = read["titles"]  # of the hits, all different
        self.passages: list[str] = read["passages"]  # of the hits
        self.many: list[str] = read["many"]  # more titles, all different
        self.searches = [Search(**search) for search in read.get("searches", [])]

    def texts(self, kind: str, count: int) -> list[str]:
        """The first `count` titles, or title and passage of the hits."""
        if kind == "titles":
            return (self.titles + self.many)[:count]
        pairs = zip(self.titles, self.passages, strict=True)
        return [f"{title}. {passage}" for title, passage in pairs][:count]


def cross_encoder(work: Work, threads: int, folder: Path, backend: str = "torch") -> Any:
    """sentence-transformers' CrossEncoder, as its users run it, on our backbone."""
    import torch
    from sentence_transformers import CrossEncoder

    from reranker.models.backbone import DEFAULT_BACKBONE, find_backbone

    torch.set_num_threads(threads)
    options: dict[str, Any] = {}
    name = str(find_backbone(DEFAULT_BACKBONE))
    if backend != "torch":
        runtime = backend.removesuffix("-int8")
        options = {"backend": runtime}
        if runtime == "onnx":
            import onnxruntime

            session = onnxruntime.SessionOptions()
            session.intra_op_num_threads = threads
            options["model_kwargs"] = {"session_options": session}
        if backend == "onnx-int8":
            from sentence_transformers import export_dynamic_quantized_onnx_model

            target = folder / "st-onnx-int8"
            model = CrossEncoder(name, num_labels=1, device="cpu", backend="onnx")
            model.save_pretrained(str(target))
            export_dynamic_quantized_onnx_model(model, "avx2", str(target))
            name = str(target)
            options["model_kwargs"]["file_name"] = "onnx/model_qint8_avx2.onnx"
    model = CrossEncoder(name, num_labels=1, device="cpu", **options)
    return lambda kind, count: model.predict(
        [(work.query, text) for text in work.texts(kind, count)], batch_size=32
    )


def plain_onnx(work: Work, threads: int, path: Path, tokenizer_json: Path) -> Any:
    """The cross-encoder as torch exports it, on onnxruntime."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(512)

    def run(kind: str, count: int) -> object:
        texts = sorted(work.texts(kind, count), key=len)
        scores = []
        for start in range(0, len(texts), 32):
            pairs = [(work.query, text) for text in texts[start : start + 32]]
            encoded = tokenizer.encode_batch(pairs)
            feed = {
                "input_ids": np.array([one.ids for one in encoded]),
                "attention_mask": np.array([one.attention_mask for one in encoded]),
                "token_type_ids": np.array([one.type_ids for one in encoded]),
            }
            scores.append(session.run(None, feed)[0])
        return np.concatenate(scores)

    return run


def etr(work: Work, threads: int, folder: Path, cache_mb: float = 0.0) -> Any:
    """The title stage."""
    from reranker import TitleReranker

    model = TitleReranker.load(folder, threads, cache_mb)
    return lambda kind, count: model.score(work.query, work.texts(kind, count))


def passage_model(work: Work, threads: int, folder: Path) -> Any:
    """A model of the passage stage, broadcasting or pairwise; titles are passages to it."""
    from reranker import PassageReranker

    model = PassageReranker.load(folder, threads)

    def run(kind: str, count: int) -> object:
        if kind == "search":
            search = work.searches[count]
            return model.score(search.query, search.titles, search.passages)
        titles = work.texts("titles", count)
        passages = work.passages[:count] if kind == "passages" else [""] * len(titles)
        return model.score(work.query, titles, passages)

    return run


def cascade(work: Work, threads: int, folder: Path, cache_mb: float = 0.0) -> Any:
    """Both stages: all titles, then the best passages."""
    from reranker import Cascade, Hit

    model = Cascade.load(folder, threads, cache_mb)
    scores = [1.0 / (at + 1) for at in range(len(work.ids))]
    one = Search(work.query, work.ids, work.titles, work.passages, scores)

    def hits(search: Search) -> list[Hit]:
        return [Hit(*hit) for hit in zip(*search[1:], strict=True)]

    asked = hits(one), [hits(search) for search in work.searches]

    def run(kind: str, count: int) -> dict[str, int]:
        if kind == "search":
            result = model.rerank(work.searches[count].query, asked[1][count], DEPTH)
        else:
            result = model.rerank(work.query, asked[0], count)
        return {"read": sum(stage.scored for stage in result.stages if stage.name == "passage")}

    return run


def limit(threads: int) -> Any:
    """Matrix products of the models' shapes alone, in the same runtime: FLOP/s as `run`'s answer.

    `int8` is the operator and the kind of numbers that the models use, `fp32` the plain one.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    tokens, hidden, wide = 2048, 384, 1536
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden)]
    rng = np.random.default_rng(0)
    nodes: dict[str, list[Any]] = {"int8": [], "fp32": []}
    constants: dict[str, Any] = {"scale": np.float32(0.1), "zero": np.uint8(128)}
    for place, (rows, columns) in enumerate(shapes):
        constants[f"f{place}"] = rng.normal(size=(rows, columns)).astype(np.float32)
        constants[f"i{place}"] = rng.integers(-63, 64, (rows, columns)).astype(np.int8)
        constants[f"s{place}"] = np.full(columns, 0.1, np.float32)
        nodes["fp32"].append(helper.make_node("MatMul", [f"x{rows}", f"f{place}"], [f"y{place}"]))
        nodes["int8"].append(
            helper.make_node(
                "MatMulIntegerToFloat",
                [f"x{rows}", f"i{place}", "scale", f"s{place}", "zero"],
                [f"y{place}"],
                domain="com.microsoft",
            )
        )
    sessions = {}
    for kind, found in nodes.items():
        entry = TensorProto.UINT8 if kind == "int8" else TensorProto.FLOAT
        used = {name for node in found for name in node.input}
        graph = helper.make_graph(
            found,
            "limit",
            [helper.make_tensor_value_info(f"x{n}", entry, ["M", n]) for n in (hidden, wide)],
            [
                helper.make_tensor_value_info(f"y{at}", TensorProto.FLOAT, ["M", columns])
                for at, (_, columns) in enumerate(shapes)
            ],
            [
                onnx.numpy_helper.from_array(np.asarray(value), name)
                for name, value in constants.items()
                if name in used
            ],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        made = helper.make_model(graph, opset_imports=opsets)
        made.ir_version = 8
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        sessions[kind] = onnxruntime.InferenceSession(
            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    feeds = {
        "fp32": {f"x{n}": rng.normal(size=(tokens, n)).astype(np.float32) for n in (hidden, wide)},
        "int8": {
            f"x{n}": rng.integers(0, 256, (tokens, n)).astype(np.uint8) for n in (hidden, wide)
        },
    }
    values = {
        kind: {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()
        }
        for kind, feed in feeds.items()
    }
    outputs = [f"y{place}" for place in range(len(shapes))]
    return lambda kind, count: [
        sessions[kind].run_with_ort_values(outputs, values[kind]) for _ in range(count)
    ]


def build(name: str, work: Work, threads: int, models: Path, made: Path) -> Any:
    """A contender's `run(kind, count)`."""
    tokenizer = models / "title" / "tokenizer.json"
    builders: dict[str, Callable[[], Any]] = {
        "ce-torch": lambda: cross_encoder(work, threads, made),
        "ce-onnx": lambda: cross_encoder(work, threads, made, "onnx"),
        "ce-onnx-int8": lambda: cross_encoder(work, threads, made, "onnx-int8"),
        "ce-openvino": lambda: cross_encoder(work, threads, made, "openvino"),
        "plain-onnx": lambda: plain_onnx(work, threads, made / "plain.onnx", tokenizer),
        "plain-onnx-int8": lambda: plain_onnx(work, threads, made / "plain-int8.onnx", tokenizer),
        "pair-int8": lambda: passage_model(work, threads, made / "pair-int8"),
        "passage": lambda: passage_model(work, threads, models / "passage"),
        "etr": lambda: etr(work, threads, models / "title"),
        "etr-cached": lambda: etr(work, threads, models / "title", 256.0),
        "etr-fp32": lambda: etr(work, threads, made / "etr-fp32"),
        "etr-small": lambda: etr(work, threads, made / "etr-small"),
        "cascade": lambda: cascade(work, threads, models),
        "cascade-cached": lambda: cascade(work, threads, models, 256.0),
        "limit": lambda: limit(threads),
    }
    return builders[name]()


def main() -> None:
    """Serve one contender: NAME THREADS WORK MODELS MADE."""
    began = time.perf_counter()
    name, threads, path, models, made = sys.argv[1:]
    answer = sys.stdout
    sys.stdout = sys.stderr  # libraries that print
    run = build(name, Work(Path(path)), int(threads), Path(models), Path(made))
    ready: dict[str, Any] = {"load_ms": (time.perf_counter() - began) * 1000}
    print(json.dumps(ready), file=answer, flush=True)
    for line in sys.stdin:
        kind, count = line.split()
        started, cpu = time.perf_counter(), time.process_time()
        found = run(kind, int(count))
        done = {
            **(found if isinstance(found, dict) else {}),
            "ms": (time.perf_counter() - started) * 1000,
            "cpu_ms": (time.process_time() - cpu) * 1000,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(done), file=answer, flush=True)


if __name__ == "__main__":
    main()
