"""Where each millisecond of a search through the pipeline goes.

It needs a node with the plugin, a sidecar, and an index with a pipeline of Titlecast's:

    titlecast node start && titlecast serve &
    titlecast index pydoc --index docs && titlecast pipeline install --index docs
    python -m tests.benchmarks.bench_node --index docs

The searches take turns: the engine alone for a page and for the window, through the pipeline,
the sidecar called directly with the same hits, and the same models in this process, as they are
and, part by part, in one thread. So whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from opensearchpy import OpenSearch
from rich.console import Console
from rich.table import Table

from plugin.cli.options import Url
from plugin.clusters import connect
from plugin.demo import SEARCHES
from plugin.pipelines import Pipeline
from reranker import Cascade, Hit, PassageReranker, TitleReranker
from reranker.runtime import Graph

Times = dict[str, list[float]]


def main(
    url: Url,
    index: Annotated[str, typer.Option(help="An index whose default is the pipeline.")] = "docs",
    sidecar: Annotated[str, typer.Option(help="The sidecar.")] = "http://127.0.0.1:8900",
    queries: Annotated[Path | None, typer.Option(help="A text file, one query a line.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    model: Annotated[Path | None, typer.Option(help="The sidecar's models.")] = None,
) -> None:
    """Print the profile of searches through the pipeline, medians over all of them."""
    texts = queries.read_text("utf-8").split("\n") if queries else list(SEARCHES)
    texts = [text for text in texts if text.strip()]
    pipeline = Pipeline()
    fields = [pipeline.title_field, *pipeline.passage_fields]
    cascades = Cascade.load(model), Cascade.load(model, threads=1)
    times: Times = defaultdict(list)
    client = connect(url)
    address = urlsplit(sidecar)
    caller = http.client.HTTPConnection(address.hostname or "", address.port or 80)
    try:
        for number in range(rounds + 1):
            found: Times = defaultdict(list)
            for text in texts:
                search(client, caller, cascades, index, text, pipeline, fields, found)
            if number:  # the first warms up: caches, the engine's compiler
                for name, values in found.items():
                    times[name] += values
    finally:
        caller.close()
        client.close()
    show(times, len(texts), rounds)


def search(
    client: OpenSearch,
    caller: http.client.HTTPConnection,
    cascades: tuple[Cascade, Cascade],
    index: str,
    text: str,
    pipeline: Pipeline,
    fields: list[str],
    times: Times,
) -> None:
    """Search once in every way."""
    query = {"multi_match": {"query": text, "fields": fields}}
    none = {"search_pipeline": "_none"}
    page = {"query": query, "size": 10, "_source": [pipeline.title_field]}
    alone, _ = timed(lambda: client.search(index=index, body=page, params=none))
    body = {"query": query, "size": pipeline.window, "_source": fields}
    window, response = timed(lambda: client.search(index=index, body=body, params=none))
    whole, reranked = timed(lambda: client.search(index=index, body=page))
    told = reranked.get("ext", {}).get("title_rerank", {})
    if not told.get("applied"):
        raise RuntimeError(
            f"not reranked: {told.get('reason', 'no pipeline')}; install one on {index}, with a "
            "timeout that is long enough"
        )
    if not told["complete"]:
        raise RuntimeError("a stage was cut short: give the pipeline a longer timeout")
    stages = sum(stage["milliseconds"] for stage in told["stages"])
    times["engine alone, a page of 10"].append(alone)
    times["engine alone, the window"].append(window)
    times["through the pipeline"].append(whole)
    times["  the models, as the sidecar says"].append(stages)
    times["  the plugin's call, as it says"].append(float(told["took_ms"]))
    times["  beyond engine and models"].append(whole - alone - stages)

    hits = [
        {
            "id": hit["_id"],
            "title": str(hit["_source"].get(pipeline.title_field, "")),
            "passage": str(hit["_source"].get(pipeline.passage_fields[0], "")),
            "score": hit["_score"],
        }
        for hit in response["hits"]["hits"]
    ]
    asked = {"query": text, "hits": hits, "passage_depth": pipeline.passage_depth}
    writing, payload = timed(lambda: json.dumps(asked).encode())
    calling, raw = timed(lambda: call(caller, payload))
    answer = json.loads(raw)
    models = sum(stage["milliseconds"] for stage in answer["stages"])
    times["sidecar called directly"].append(calling)
    times["  the models"].append(models)
    times["  its line and the order"].append(answer["milliseconds"] - models)
    times["  HTTP and JSON"].append(calling - answer["milliseconds"])
    times["the request written, here"].append(writing)

    records = [Hit(hit["id"], hit["title"], hit["passage"], hit["score"]) for hit in hits]
    inside(*cascades, text, records, pipeline.passage_depth, times)


def inside(
    cascade: Cascade, one: Cascade, text: str, hits: list[Hit], depth: int, times: Times
) -> None:
    """The models in this process; part by part in one thread, all `depth` passages read."""
    took, _ = timed(lambda: cascade.rerank(text, hits, depth))
    times["in this process"].append(took)
    titles, passages = [hit.title for hit in hits], [hit.passage for hit in hits]
    parts: list[tuple[TitleReranker | PassageReranker, Callable[[], object]]] = [
        (one.title, lambda: one.title.score(text, titles)),
        (one.passage, lambda: one.passage.score(text, titles[:depth], passages[:depth])),
    ]
    for stage, score in parts:
        graphs = _graphs(stage)
        before = {graph: taken.total for graph, taken in graphs.items()}
        scoring, _ = timed(score)
        ran = {graph: taken.total - before[graph] for graph, taken in graphs.items()}
        for graph, value in ran.items():
            times[f"  {stage.task}, one thread: the graph {graph}"].append(value)
        rest = f"  {stage.task}, one thread: tokens, packing, the rest"
        times[rest].append(scoring - sum(ran.values()))


class Watched:
    """A graph that counts the milliseconds of its runs."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.total = 0.0

    def run(self, outputs: Any, feed: Any) -> list[Any]:
        """Run it."""
        took, found = timed(lambda: self._graph.run(outputs, feed))
        self.total += took
        return found


def _graphs(stage: TitleReranker | PassageReranker) -> dict[str, Watched]:
    """The stage's graphs, watched from the first call on."""
    model = vars(stage._model)
    for name, value in model.items():
        if isinstance(value, Graph):
            model[name] = Watched(value)
    return {name.strip("_"): value for name, value in model.items() if isinstance(value, Watched)}


def call(caller: http.client.HTTPConnection, payload: bytes) -> bytes:
    """POST /rerank."""
    caller.request("POST", "/rerank", payload, {"Content-Type": "application/json"})
    response = caller.getresponse()
    raw = response.read()
    if response.status != 200:
        raise RuntimeError(f"the sidecar answered {response.status}: {raw[:300]!r}")
    return raw


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what came out."""
    started = time.perf_counter()
    found = run()
    return (time.perf_counter() - started) * 1000, found


def show(times: Times, queries: int, rounds: int) -> None:
    """Print medians and spread."""
    table = Table(f"{queries} queries, {rounds} rounds", "median ms", "a tenth below", "above")
    for name, values in times.items():
        tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
        numbers = (statistics.median(values), tenths[0], tenths[-1])
        table.add_row(name, *(f"{number:.2f}" for number in numbers))
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
