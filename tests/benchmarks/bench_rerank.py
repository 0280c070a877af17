"""How much faster titles are than passages, and how close to the machine's limit: `make bench`.

All contenders start from the same backbone and rerank the same 100 hits. Each has a process of
its own; they take turns, round after round, so that whatever else the machine does falls on all
of them. The first table has ratios, which carry over to other machines; the second the times,
which do not; the third the share of what the machine can multiply at all.

The hits are BM25's for a real query over a BEIR folder (`--beir`), else over the documentation
of the running Python's standard library; of several with the same title the first counts.

One search says little of the cascade, which reads as many passages as each needs: with
`--searches N` it and all passages are measured over the hits of so many judged queries as well.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from indexing.sources import open_source
from reranker import PassageReranker, TitleReranker
from reranker.cores import usable_cores
from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import Document, read_collection, read_corpus
from reranker.runtime import open_session
from reranker.stages import SHIPPED
from tests.benchmarks.contenders import DEPTH
from tests.benchmarks.pydoc_collection import QUERIES

QUERY = "Which writer of the country's first novel was also a member of its parliament?"
PYTHON_QUERY = "write the rows of a list to a text file and read them again line by line"
ROOT = Path(__file__).parents[2]


class Row(NamedTuple):
    """One line of the tables: a contender at one piece of work."""

    contender: str
    kind: str
    count: int
    label: str
    rarely: bool = False  # slow: in the first rounds only


ETR_100 = "ETR int8, 100 titles"
CE_PASSAGES = "CrossEncoder (torch), 100 passages"
PAIR_PASSAGES = "pairwise int8 in our runtime, 100 passages"
PAIR_TITLES = "pairwise int8 in our runtime, 100 titles"
PASSAGE_MODEL = "our passage model, 100 passages"
CASCADE = "cascade, 100 titles + 20 passages"

ROWS = [
    Row("ce-torch", "passages", 100, CE_PASSAGES, rarely=True),
    Row("ce-torch", "titles", 100, "CrossEncoder (torch), 100 titles"),
    Row("ce-onnx", "passages", 100, "CrossEncoder (onnx), 100 passages", rarely=True),
    Row("ce-onnx-int8", "passages", 100, "CrossEncoder (onnx int8), 100 passages", rarely=True),
    Row("ce-openvino", "passages", 100, "CrossEncoder (openvino), 100 passages", rarely=True),
    Row("plain-onnx", "passages", 100, "plain ONNX export, 100 passages", rarely=True),
    Row("plain-onnx-int8", "passages", 100, "its dynamic int8, 100 passages", rarely=True),
    Row("pair-int8", "passages", 100, PAIR_PASSAGES, rarely=True),
    Row("pair-int8", "titles", 100, PAIR_TITLES),
    Row("passage", "passages", 100, PASSAGE_MODEL, rarely=True),
    Row("cascade", "cascade", 20, CASCADE),
    Row("cascade-cached", "cascade", 20, "the same, titles seen before"),
    Row("etr-fp32", "titles", 100, "ETR fp32, 100 titles"),
    Row("etr", "titles", 10, "ETR int8, 10 titles"),
    Row("etr", "titles", 100, ETR_100),
    Row("etr", "titles", 1000, "ETR int8, 1000 titles"),
    Row("etr", "titles", 5000, "ETR int8, 5000 titles", rarely=True),
    Row("etr-cached", "titles", 10, "ETR int8, 10 titles seen before"),
    Row("etr-cached", "titles", 100, "ETR int8, 100 titles seen before"),
    Row("etr-cached", "titles", 1000, "ETR int8, 1000 titles seen before"),
    Row("etr-small", "titles", 100, "ETR int8 with 3 layers, 100 titles"),
]
# Measured over several searches as well.
SEARCHERS = {
    "passage": "our passage model, all passages",
    "cascade": "cascade, titles + at most 20 passages",
    "cascade-cached": "the same, with a cache of titles",
}
Unit = Literal["ms", "cpu_ms"]
# The machine's own: count is how often the four products of a layer over 2048 tokens are made.
LIMIT_FLOPS = 2 * 2048 * (384 * 3 * 384 + 384 * 384 + 2 * 384 * 1536)
LIMITS = [Row("limit", "int8", 3, "int8 products"), Row("limit", "fp32", 2, "fp32 products")]


def main(
    beir: Annotated[Path | None, typer.Option(help="A BEIR folder to take the hits from.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 7,
    threads: Annotated[int | None, typer.Option(help="Threads. Without: all cores.")] = None,
    model: Annotated[Path, typer.Option(help="Folder with title/ and passage/.")] = SHIPPED,
    only: Annotated[str, typer.Option(help="Contenders whose name this expression finds.")] = "",
    one_thread: Annotated[bool, typer.Option(help="Measure one thread, too.")] = True,
    cpu: Annotated[bool, typer.Option(help="Processor time: for a machine that is busy.")] = False,
    searches: Annotated[
        int, typer.Option(min=0, help="Judged queries over which the cascade is measured, too.")
    ] = 0,
    query_set: Annotated[
        str | None, typer.Option(help="Which queries of the BEIR folder, where it has several.")
    ] = None,
) -> None:
    """Measure reranking of 100 hits, by titles and by passages, against other ways to do it."""
    console = Console(width=100)
    threads = threads or usable_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = folder / "work.json"
        work.write_text(json.dumps(find_work(beir, searches, query_set)), "utf-8")
        made = folder / "models"
        made.mkdir()
        call = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.prepare_models"]
        names = {row.contender for row in ROWS if re.search(only, row.contender)}
        subprocess.run([*call, str(work), str(model), str(made), *names], check=True, cwd=ROOT)
        describe(console, work, model, threads)
        measure(console, work, model, made, threads, rounds, only, cpu)
        if one_thread and threads > 1:
            few = "^(ce-torch|pair-int8|etr|etr-cached|cascade|limit)$"
            console.rule("one thread")
            measure(console, work, model, made, 1, max(rounds // 2, 1), only or few, cpu)
        console.print(f"load average at the end: {os.getloadavg()[0]:.1f}")


def measure(
    console: Console,
    work: Path,
    models: Path,
    made: Path,
    threads: int,
    rounds: int,
    only: str,
    cpu: bool,
) -> None:
    """Let the contenders take turns, and print what they took."""
    rows = [row for row in [*LIMITS, *ROWS] if re.search(only, row.contender)]
    running: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    try:
        for name in dict.fromkeys(row.contender for row in rows):
            try:
                running[name] = Contender(name, threads, work, models, made)
            except ContenderError as error:  # noqa: PERF203 - one process each is far slower
                left_out[name] = str(error)
        rows = [row for row in rows if row.contender in running]
        taken: dict[str, list[dict[str, float]]] = {row.label: [] for row in rows}
        first: dict[str, float] = {}
        for row in rows:  # warm; what the very first run of a process takes is its cold start
            time_taken = running[row.contender].run(row)["ms"]
            first.setdefault(row.contender, running[row.contender].load_ms + time_taken)
        for number in range(rounds):
            for row in rows:
                if not row.rarely or number < max(3, rounds // 2):
                    taken[row.label].append(running[row.contender].run(row))
        several = over_searches(work, running, min(rounds, 3))
    finally:
        for contender in running.values():
            contender.close()
    unit: Unit = "cpu_ms" if cpu else "ms"
    times = {label: [one[unit] for one in many] for label, many in taken.items()}
    median = {label: statistics.median(values) for label, values in times.items()}
    kind = f"{threads} threads, {'processor' if cpu else 'wall'} time, medians of {rounds} rounds"
    reference = times.get(ETR_100)
    if reference:
        ratios = Table(f"over the same hits; {kind}", "times ETR int8, 100 titles")
        for row in rows:
            if row not in LIMITS:
                ratios.add_row(row.label, f"{ratio(times[row.label], reference):.2f}")
        console.print(ratios)
    absolute = Table("", "median ms", "fastest", "slowest", "cold start s", "peak MB")
    for row in rows:
        values, peak = times[row.label], taken[row.label][-1]["peak_mb"]
        numbers = [median[row.label], min(values), max(values)]
        cold = first[row.contender] / 1000
        absolute.add_row(row.label, *(f"{n:.1f}" for n in numbers), f"{cold:.2f}", f"{peak:.0f}")
    console.print(absolute)
    limits = {
        row.kind: LIMIT_FLOPS * row.count / median[row.label] * 1000
        for row in LIMITS
        if row.label in median
    }
    shares(console, work, models, rows, median, limits)
    verdicts(console, times)
    if several:
        show_searches(console, several, unit)
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}", soft_wrap=True)


def over_searches(
    work: Path, running: dict[str, Contender], rounds: int
) -> dict[str, list[list[dict[str, float]]]]:
    """What all passages and the cascade take, by label, search and round; empty where none are."""
    count = len(json.loads(work.read_text("utf-8")).get("searches", []))
    labels = {name: label for name, label in SEARCHERS.items() if name in running}
    if not count:
        return {}
    taken: dict[str, list[list[dict[str, float]]]] = {
        label: [[] for _ in range(count)] for label in labels.values()
    }
    for _ in range(rounds):
        for search in range(count):
            for name, label in labels.items():
                taken[label][search].append(running[name].run(Row(name, "search", search, label)))
    return taken


def show_searches(
    console: Console, taken: dict[str, list[list[dict[str, float]]]], unit: Unit
) -> None:
    """Means over the searches of each one's median, and the ratio that the project promises."""
    times = {
        label: [statistics.median(one[unit] for one in runs) for runs in searches]
        for label, searches in taken.items()
    }
    count = len(next(iter(times.values())))
    table = Table(f"over {count} searches", "mean ms", "least", "most", "passages read")
    for label, values in times.items():
        read = [runs[0]["read"] for runs in taken[label] if "read" in runs[0]]
        numbers = (statistics.fmean(values), min(values), max(values))
        said = f"{statistics.fmean(read):.1f} of {DEPTH}" if read else "all"
        table.add_row(label, *(f"{number:.1f}" for number in numbers), said)
    console.print(table)
    slow, fast = times.get(SEARCHERS["passage"]), times.get(SEARCHERS["cascade"])
    if slow and fast:
        each = [one / other for one, other in zip(slow, fast, strict=True)]
        console.print(
            f"the cascade against all passages, mean against mean: "
            f"{sum(slow) / sum(fast):.2f} times as fast (wanted: 6); single searches "
            f"{min(each):.2f} to {max(each):.2f}",
            soft_wrap=True,
        )


def shares(
    console: Console,
    work: Path,
    models: Path,
    rows: list[Row],
    median: dict[str, float],
    limits: dict[str, float],
) -> None:
    """What the linear maps of ETR need at least, against what the machine can multiply."""
    if not limits:
        return
    texts = json.loads(work.read_text("utf-8"))
    titles = texts["titles"] + texts["many"]
    model = TitleReranker.load(models / "title", 1)
    per_token = flops_per_token(models / "title")
    query = model._tokenizer.encode([texts["query"]], 64)[0]
    facts = open_session(models / "title" / "lower.onnx").get_modelmeta().custom_metadata_map
    special = 2 if facts["places"] == "1" else 0  # tokens that a network with sinks leaves out
    table = Table("ETR", "GFLOP needed", "GFLOP/s", *(f"of the {name} limit" for name in limits))
    for row in rows:
        if row.contender != "etr":
            continue
        encoded = model._tokenizer.encode(titles[: row.count], 48)
        tokens = sum(len(one.ids) - special for one in encoded)
        needed = (tokens + len(query.ids)) * per_token
        speed = needed / median[row.label] * 1000
        cells = [f"{100 * speed / limit:.0f} %" for limit in limits.values()]
        table.add_row(row.label, f"{needed / 1e9:.2f}", f"{speed / 1e9:.0f}", *cells)
    console.print(table)
    speeds = (f"{name} {limit / 1e9:.0f} GFLOP/s" for name, limit in limits.items())
    console.print(f"what the machine can multiply: {', '.join(speeds)}")


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of each round's own ratio.

    A machine that others share may run a third slower for some seconds: both sides of a round
    mostly meet with the same, the medians of two contenders need not.
    """
    return statistics.median(a / b for a, b in zip(slow, fast, strict=False))


def verdicts(console: Console, times: dict[str, list[float]]) -> None:
    """The ratios that the project promises."""
    promises = [
        ("ETR over 100 titles against CrossEncoder over the passages", CE_PASSAGES, ETR_100, 100),
        ("... against pairwise int8 over the passages", PAIR_PASSAGES, ETR_100, 40),
        ("... against pairwise int8 over the same titles", PAIR_TITLES, ETR_100, 4),
        ("100 titles to 1000", ETR_100, "ETR int8, 1000 titles", 0.1),
        ("100 titles to 10", ETR_100, "ETR int8, 10 titles", 4),
        ("the cascade against 100 passages in our runtime", PASSAGE_MODEL, CASCADE, 6),
    ]
    table = Table("", "times as fast", "wanted")
    for label, slow, fast, wanted in promises:
        if slow in times and fast in times:
            table.add_row(label, f"{ratio(times[slow], times[fast]):.2f}", f"{wanted}")
    if table.rows:
        console.print(table)


class ContenderError(Exception):
    """A contender that cannot run here; the text says why."""


class Contender:
    """One process, asked for one run at a time."""

    def __init__(self, name: str, threads: int, work: Path, models: Path, made: Path) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - see close
        call = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.contenders"]
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [*call, name, str(threads), str(work), str(models), str(made)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"},
        )
        try:
            self._answer()
        except ContenderError:
            self.close()
            raise
        self.load_ms = (time.perf_counter() - began) * 1000  # the process's start included

    def run(self, row: Row) -> dict[str, float]:
        """Milliseconds of one run, and the most memory so far."""
        asked = cast("IO[str]", self._process.stdin)
        asked.write(f"{row.kind} {row.count}\n")
        asked.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            raise ContenderError(said[-1] if said else "it ended without a word")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        with self._process as process:
            cast("IO[str]", process.stdin).close()
            process.terminate()
        self._errors.close()


def find_work(beir: Path | None, searches: int = 0, query_set: str | None = None) -> dict[str, Any]:
    """A query, BM25's first 100 hits with different titles, and further titles up to 5000.

    With `searches`, that many judged queries with their first 100 hits, whatever their titles.
    """
    if beir is not None:
        documents = list(read_corpus(beir))
        query = QUERY
    else:
        source = open_source("pydoc")
        documents = [
            Document(record.id, record.title, record.passage)
            for record in source.records
            if hasattr(record, "passage")
        ]
        query = PYTHON_QUERY
    corpus = {document.id: document for document in documents}
    bm25 = BM25.over(corpus)
    by_title: dict[str, Document] = {}
    for id, _ in bm25.search(query, 5000):
        by_title.setdefault(corpus[id].title, corpus[id])
    by_title.pop("", None)
    hits = list(by_title.values())[:100]
    titles = [*by_title, *(d.title for d in documents if d.title not in by_title and d.title)]
    return {
        "query": query,
        "ids": [hit.id for hit in hits],
        "titles": [hit.title for hit in hits],
        "passages": [hit.text for hit in hits],
        "many": list(dict.fromkeys(titles))[len(hits) : 5000],
        "searches": [
            find_search(bm25, corpus, text) for text in find_queries(beir, searches, query_set)
        ],
    }


def find_queries(beir: Path | None, count: int, query_set: str | None) -> list[str]:
    """So many judged queries, spread over all there are."""
    if not count:
        return []
    if beir is not None:
        return [query.text for query in read_collection(beir, name=query_set).sample(count).queries]
    lines = [line for line in QUERIES.read_text("utf-8").splitlines() if "\t" in line]
    count = min(count, len(lines))
    return [lines[place * len(lines) // count].split("\t")[0] for place in range(count)]


def find_search(bm25: BM25, corpus: dict[str, Document], query: str) -> dict[str, Any]:
    """A query with its hits, as `contenders.Search` is made of it."""
    found = bm25.search(query, 100)
    hits = [corpus[id] for id, _ in found]
    return {
        "query": query,
        "ids": [hit.id for hit in hits],
        "titles": [hit.title for hit in hits],
        "passages": [hit.text for hit in hits],
        "scores": [float(score) for _, score in found],
    }


def describe(console: Console, work: Path, models: Path, threads: int) -> None:
    """The machine, the texts and the model."""
    texts = json.loads(work.read_text("utf-8"))
    model = TitleReranker.load(models / "title", 1)
    titles, passages = texts["titles"], texts["passages"]
    both = [f"{title}. {passage}" for title, passage in zip(titles, passages, strict=True)]
    # Each model's own: the title model's leaves out signs that passages are read with.
    readers = (
        (model.tokenizer, titles),
        (PassageReranker.load(models / "passage", 1).tokenizer, both),
    )
    lengths = [[len(one.ids) for one in reader.encode(part, 512)] for reader, part in readers]
    console.print(
        f"{processor()}, {threads} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}; {model.name}; {len(titles)} hits, tokens per title "
        f"{np.mean(lengths[0]):.1f} (most {max(lengths[0])}), per passage "
        f"{np.mean(lengths[1]):.1f} (most {max(lengths[1])}); "
        f"{len(titles) + len(texts['many'])} titles in all",
        soft_wrap=True,
    )


def processor() -> str:
    """What the machine calls its processor, and what matters of its instructions."""
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8") if path.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = [flag for flag in ("avx2", "avx512f", "avx_vnni", "avx512_vnni") if f" {flag}" in text]
    return " ".join([name.group(1) if name else platform.machine(), *flags])


def flops_per_token(folder: Path) -> int:
    """Operations of the linear maps over one token of a text, from the exported graphs."""
    import onnx

    total = 0
    for path in folder.glob("*.onnx"):
        if path.stem == "query":
            continue
        graph = onnx.load(path, load_external_data=False).graph
        # Not the products of single heads with the sinks.
        shapes = {tensor.name: tensor.dims for tensor in graph.initializer if len(tensor.dims) == 2}
        for node in graph.node:
            if node.op_type in ("MatMul", "MatMulIntegerToFloat") and node.input[1] in shapes:
                rows, columns = shapes[node.input[1]]
                if columns > 1:  # the head works on texts, not tokens
                    total += 2 * rows * columns
    return total


if __name__ == "__main__":
    typer.run(main)
