"""Where each millisecond of a search through the pipeline goes.

It needs a node with the plugin, a sidecar, and an index with a pipeline of Titlecast's:

    titlecast node start && titlecast serve &
    titlecast index pydoc --index docs && titlecast pipeline install --index docs --timeout 5s
    python -m tests.benchmarks.bench_node --index docs

First the node is pointed at a sidecar whose models answer at once, by a transient setting, and
then back: some hundred searches in a short time, the first half of them for the engine's compiler,
show what surrounds the models. Then the models take part, which leave nothing of the rest in the
processor's caches. The searches take turns: the engine alone for a page and for the window,
through the pipeline, the sidecar called directly with the same hits, and the same models in this
process, as they are and, part by part, in one thread. So whatever else the machine does falls on
all of them.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple
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
from tests.benchmarks import instant_sidecar

Times = dict[str, list[float]]

URLS = "title_rerank.sidecar.urls"
PLUGIN = ("reading", "calling", "ordering")  # as its statistics name a search's parts


class Target(NamedTuple):
    """What is searched."""

    client: OpenSearch
    name: str  # of the index
    pipeline: Pipeline

    @property
    def fields(self) -> list[str]:
        """What is read of a document."""
        return [self.pipeline.title_field, *self.pipeline.passage_fields]


def main(
    url: Url,
    index: Annotated[str, typer.Option(help="An index whose default is the pipeline.")] = "docs",
    sidecar: Annotated[str, typer.Option(help="The sidecar.")] = "http://127.0.0.1:8900",
    queries: Annotated[Path | None, typer.Option(help="A text file, one query a line.")] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds with the models.")] = 5,
    still: Annotated[
        int, typer.Option(min=0, help="Rounds with models that answer at once; half warm up.")
    ] = 50,
    model: Annotated[Path | None, typer.Option(help="The sidecar's models.")] = None,
) -> None:
    """Print the profile of searches through the pipeline, medians over all of them."""
    texts = queries.read_text("utf-8").split("\n") if queries else list(SEARCHES)
    texts = [text for text in texts if text.strip()]
    client = connect(url)
    target = Target(client, index, Pipeline())
    load = f"load average {os.getloadavg()[0]:.1f}"
    try:
        if still:
            with instant_sidecar.running() as address, asking(client, address):
                times = measure(target, address, texts, still, still // 2)
            show(times, f"models that answer at once: {len(texts)} queries, {still} rounds, {load}")
        if rounds:
            cascades = Cascade.load(model), Cascade.load(model, threads=1)
            times = measure(target, sidecar, texts, rounds + 1, 1, cascades)
            show(times, f"with the models: {len(texts)} queries, {rounds} rounds, {load}")
    finally:
        client.close()


@contextmanager
def asking(client: OpenSearch, address: str) -> Iterator[None]:
    """For the block, all nodes ask this sidecar."""
    before = client.cluster.get_settings(params={"flat_settings": "true"})["transient"].get(URLS)
    client.cluster.put_settings(body={"transient": {URLS: [address]}})
    try:
        yield
    finally:
        client.cluster.put_settings(body={"transient": {URLS: before}})


def measure(
    target: Target,
    sidecar: str,
    texts: list[str],
    rounds: int,
    warm_up: int,
    cascades: tuple[Cascade, Cascade] | None = None,
) -> Times:
    """Search for all texts, round after round; the first `warm_up` of them do not count."""
    times: Times = defaultdict(list)
    address = urlsplit(sidecar)
    caller = http.client.HTTPConnection(address.hostname or "", address.port or 80)
    try:
        for number in range(rounds):
            found: Times = defaultdict(list)
            for text in texts:
                hits = search(target, caller, text, cascades is not None, found)
                if cascades is not None:
                    inside(*cascades, text, hits, target.pipeline.passage_depth, found)
            if number >= warm_up:
                for name, values in found.items():
                    times[name] += values
    finally:
        caller.close()
    return times


def search(
    target: Target,
    caller: http.client.HTTPConnection,
    text: str,
    with_models: bool,
    times: Times,
) -> list[Hit]:
    """Search once in every way; gives the window's hits."""
    client, index, pipeline = target
    query = {"multi_match": {"query": text, "fields": target.fields}}
    none = {"search_pipeline": "_none"}
    page = {"query": query, "size": 10, "_source": [pipeline.title_field]}
    alone, _ = timed(lambda: client.search(index=index, body=page, params=none))
    body = {"query": query, "size": pipeline.window, "_source": target.fields}
    window, response = timed(lambda: client.search(index=index, body=body, params=none))
    before = plugin_ms(client)
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
    plugin = {part: ms - before[part] for part, ms in plugin_ms(client).items()}
    times["engine alone, a page of 10"].append(alone)
    times["engine alone, the window"].append(window)
    times["through the pipeline"].append(whole)
    if with_models:
        times["  the models, as the sidecar says"].append(stages)
    times["  beyond engine and models"].append(whole - alone - stages)
    times["    the window instead of the page"].append(window - alone)
    times["    plugin: texts out of the hits"].append(plugin["reading"])
    times["    plugin: calling the sidecar, less models"].append(plugin["calling"] - stages)
    times["    plugin: the page"].append(plugin["ordering"])
    times["    the rest of the node"].append(whole - window - sum(plugin.values()))

    hits = [
        Hit(
            hit["_id"],
            str(hit["_source"].get(pipeline.title_field, "")),
            str(hit["_source"].get(pipeline.passage_fields[0], "")),
            hit["_score"],
        )
        for hit in response["hits"]["hits"]
    ]
    sent = [hit._asdict() for hit in hits]
    asked = {"query": text, "hits": sent, "passage_depth": pipeline.passage_depth, "brief": True}
    payload = json.dumps(asked).encode()  # as the plugin asks
    calling, raw = timed(lambda: call(caller, payload))
    answer = json.loads(raw)
    models = sum(stage["milliseconds"] for stage in answer["stages"])
    times["sidecar called directly"].append(calling)
    if with_models:
        times["  the models"].append(models)
    times["  its line and the order"].append(answer["milliseconds"] - models)
    times["  HTTP and JSON"].append(calling - answer["milliseconds"])
    return hits


def plugin_ms(client: OpenSearch) -> dict[str, float]:
    """What the plugin spent on all searches so far, part by part, on all nodes together."""
    found = client.transport.perform_request("GET", "/_plugins/_title_rerank/stats")
    nodes = [node["time"]["reranked_ms"] for node in found["nodes"].values()]
    return {part: sum(node[part] for node in nodes) for part in PLUGIN}


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


def show(times: Times, title: str) -> None:
    """Print medians and spread."""
    table = Table(title, "median ms", "a tenth below", "above")
    for name, values in times.items():
        tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
        numbers = (statistics.median(values), tenths[0], tenths[-1])
        table.add_row(name, *(f"{number:.2f}" for number in numbers))
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
