"""How fast documents get into the index, and in how much memory, against a plain loop.

    python -m tests.benchmarks.bench_index --documents 1000000

Both sides send the same documents to a real node, four requests at a time, into a new index with
the same settings (one shard, no refreshes, no replicas), and end with a refresh. The plain loop
is opensearch-py's `parallel_bulk` over prepared dictionaries, as its documentation has it; ours
is `indexing.job.run` with all that it always does: checkpoints on the disk, dead letters, keys
of all ids, count and samples compared at the end, an alias switched. The sides take turns, each
time in a process of its own, so that whatever else the machine does falls on both.

The texts are real ones: of a source that `titlecast index` reads (`--source`, such as the output
of `apt-cache dumpavail`), by default the documentation of the running Python's standard library.
Where they are fewer than the documents asked for, they come again with their sentences turned.
"""

from __future__ import annotations

import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from opensearchpy.helpers import parallel_bulk
from rich.console import Console
from rich.table import Table

from indexing.job import Destination, run
from indexing.load import Options
from indexing.mapping import index_body
from indexing.records import Document
from indexing.sources import open_source
from indexing.target import make_index
from plugin.clusters import connect
from plugin.engines import choose_engine
from reranker.cores import usable_cores

ROOT = Path(__file__).parents[2]
NAME = "bench-index"
WORKERS = 4
SIDES = ("parallel_bulk", "titlecast")


def documents(texts: list[tuple[str, str]], count: int) -> Iterator[Document]:
    """So many documents of the texts, no two alike."""
    for number in range(count):
        turn, which = divmod(number, len(texts))
        title, passage = texts[which]
        if turn:
            title = f"{title} ({turn})"
            cut = passage.find(" ", turn * 37 % max(len(passage), 1)) + 1
            passage = f"{passage[cut:]} {passage[:cut]}"
        yield Document(f"{which}-{turn}", title, passage, page_id=str(which), position=turn)


def one_side(side: str, url: str, file: Path, count: int) -> dict[str, Any]:
    """Load once; tell seconds, of the processor too, and memory along the way."""
    with file.open() as lines:
        texts = [(one["title"], one["passage"]) for one in map(json.loads, lines)]
    memory: list[int] = []

    def counted() -> Iterator[Document]:
        for number, document in enumerate(documents(texts, count)):
            if number % max(1, count // 20) == 0:
                memory.append(_resident())
            yield document

    with connect(url, seconds=120, connections=WORKERS) as client:
        client.indices.delete(index=f"{NAME}-{side}*", ignore=[404])
        started, cpu = time.monotonic(), time.process_time()
        if side == "titlecast":
            with tempfile.TemporaryDirectory() as folder:
                result = run(
                    client,
                    counted(),
                    {"count": count},
                    Destination(alias=f"{NAME}-{side}", body=index_body()),
                    folder=Path(folder),
                    options=Options(workers=WORKERS),
                )
            if not result.summary.verified or result.summary.indexed != count:
                raise RuntimeError(f"not all got in: {result.summary}")
        else:
            make_index(client, f"{NAME}-{side}", index_body())
            actions = ({"_id": one.id, **one.fields()} for one in counted())
            deque(
                parallel_bulk(client, actions, thread_count=WORKERS, index=f"{NAME}-{side}"),
                maxlen=0,
            )
            client.indices.refresh(index=f"{NAME}-{side}")
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        size = sum(len(json.dumps(one.fields()).encode()) for one in documents(texts, 1000)) / 1000
        client.indices.delete(index=f"{NAME}-{side}*", ignore=[404])
    return {
        "seconds": seconds,
        "cpu": cpu,
        "megabytes": size * count / 1e6,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "middle": max(memory[: len(memory) // 2 + 1]),
        "end": max(memory),
    }


def main(
    documents: Annotated[int, typer.Option(min=100, help="How many.")] = 50_000,
    source: Annotated[str, typer.Option(help="What the texts are from.")] = "pydoc",
    rounds: Annotated[int, typer.Option(min=1, help="Loads of each side.")] = 3,
    url: Annotated[str | None, typer.Option(help="A cluster (default: one is started).")] = None,
    side: Annotated[str | None, typer.Option(hidden=True)] = None,
    texts: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and print."""
    if side and texts and url:
        sys.stdout.write(json.dumps(one_side(side, url, texts, documents)))
        return
    console = Console(width=100)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "texts.jsonl"
        with file.open("w") as lines:
            for record in open_source(source).records:
                if isinstance(record, Document) and record.passage:
                    fields = {"title": record.title, "passage": record.passage[:2000]}
                    lines.write(f"{json.dumps(fields)}\n")
        if url is None:
            url = stack.enter_context(choose_engine()).url
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
        # One round more, which does not count: the engine's compiler has to warm up as well.
        for number in range(rounds + 1):
            for name in SIDES if number % 2 else SIDES[::-1]:
                told = _child(name, url, file, documents)
                if number:
                    found[name].append(told)
    _print(console, found, documents, source)


def _child(side: str, url: str, texts: Path, count: int) -> dict[str, Any]:
    arguments = ["--side", side, "--url", url, "--texts", str(texts), "--documents", str(count)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_index", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _print(
    console: Console, found: dict[str, list[dict[str, Any]]], count: int, source: str
) -> None:
    size = found[SIDES[0]][0]["megabytes"]
    console.print(
        f"{count:,} documents, {size:,.0f} MB, of {source}; {platform.machine()},"
        f" {usable_cores()} cores, Python {platform.python_version()}; medians of"
        f" {len(found[SIDES[0]])} turns"
    )
    table = Table()
    for name in ("", "documents/s", "MB/s", "own CPU s", "RSS MiB: peak", "half-way", "end"):
        table.add_column(name, justify="left" if not name else "right")
    for name in SIDES:
        median = {key: statistics.median(one[key] for one in found[name]) for key in found[name][0]}
        table.add_row(
            name,
            f"{count / median['seconds']:,.0f}",
            f"{size / median['seconds']:.1f}",
            f"{median['cpu']:.1f}",
            f"{median['peak']:,.0f}",
            f"{median['middle']:,.0f}",
            f"{median['end']:,.0f}",
        )
    console.print(table)
    pairs = list(zip(found["parallel_bulk"], found["titlecast"], strict=True))
    rates = sorted(plain["seconds"] / ours["seconds"] for plain, ours in pairs)
    console.print(
        f"titlecast's rate is {statistics.median(rates):.0%} of parallel_bulk's"
        f" (between {rates[0]:.0%} and {rates[-1]:.0%}); its own CPU time"
        f" {statistics.median(ours['cpu'] / plain['cpu'] for plain, ours in pairs):.0%}."
    )


def _resident() -> int:
    """Resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


if __name__ == "__main__":
    typer.run(main)
