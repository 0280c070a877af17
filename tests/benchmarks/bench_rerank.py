"""How much faster titles are than passages: `make bench`.

All contenders start from the same backbone and rerank the same 100 hits, in one process and
interleaved rounds, so that whatever else the machine does falls on all of them. The first table
has ratios, which carry over to other machines; the second the times, which do not.

The hits are BM25's for a real query over a BEIR folder (`--beir`), else over the documentation
of the running Python's standard library.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from indexing.sources import open_source
from reranker import Cascade, Hit, PassageReranker, TitleReranker
from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import Document, read_corpus
from reranker.runtime import usable_cores

QUERY = "Which writer of the country's first novel was also a member of its parliament?"
PYTHON_QUERY = "write the rows of a list to a text file and read them again line by line"


def main(
    beir: Annotated[Path | None, typer.Option(help="A BEIR folder to take the hits from.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads. Without: all cores.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder with title/ and passage/.")] = None,
) -> None:
    """Measure reranking of 100 hits: titles by ETR, titles and passages by a CrossEncoder."""
    console = Console(width=100)
    threads = threads or usable_cores()
    query, hits, many = find_hits(beir)
    titles = [hit.title for hit in hits]
    passages = [hit.passage for hit in hits]
    texts = [f"{hit.title}. {hit.passage}" for hit in hits]

    slow = cross_encoder(threads)
    folder = model
    title = TitleReranker.load(folder and folder / "title", threads)
    passage = PassageReranker.load(folder and folder / "passage", threads)
    cascade = Cascade.load(folder, threads)
    ours = f"ETR, {title.config['precision']}"
    slow_passages = "CrossEncoder (torch), 100 passages"
    slow_titles = "CrossEncoder (torch), 100 titles"
    contenders: dict[str, Callable[[], object]] = {
        slow_passages: lambda: slow(query, texts),
        slow_titles: lambda: slow(query, titles),
        "passage model, 100 passages": lambda: passage.score(query, titles, passages),
        "cascade, 100 titles + 20 passages": lambda: cascade.rerank(query, hits, 20),
        f"{ours}, 10 titles": lambda: title.score(query, titles[:10]),
        f"{ours}, 100 titles": lambda: title.score(query, titles),
        f"{ours}, 1000 titles": lambda: title.score(query, many),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()  # warm
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1000)
    median = {name: statistics.median(values) for name, values in times.items()}

    lengths = token_lengths(title, titles), token_lengths(title, texts)
    console.print(
        f"{platform.machine()}, {threads} threads of {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} at the end; {len(hits)} hits; tokens per title "
        f"{lengths[0]:.1f}, per passage {lengths[1]:.1f} (means); {rounds} rounds, medians"
    )
    fast = median[f"{ours}, 100 titles"]
    ratios = Table("over the same 100 hits", "times the time of ETR over 100 titles")
    for name, value in median.items():
        ratios.add_row(name, f"{value / fast:.2f}")
    console.print(ratios)
    absolute = Table("", "median ms", "fastest", "slowest")
    for name, values in times.items():
        absolute.add_row(name, f"{median[name]:.1f}", f"{min(values):.1f}", f"{max(values):.1f}")
    console.print(absolute)
    thousand = median[f"{ours}, 1000 titles"]
    console.print(
        f"ETR over 100 titles: {median[slow_passages] / fast:.1f}x faster than CrossEncoder over "
        f"the hits' passages, {median[slow_titles] / fast:.1f}x than over the titles; 1000 titles "
        f"cost {thousand / fast:.1f}x of 100, 10 titles "
        f"{100 * median[f'{ours}, 10 titles'] / fast:.0f}%"
    )


def find_hits(beir: Path | None) -> tuple[str, list[Hit], list[str]]:
    """A query, BM25's first 100 hits for it, and the first 1000 distinct titles."""
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
    found = BM25.over(corpus).search(query, 5000)
    hits = [Hit(id, corpus[id].title, corpus[id].text, score) for id, score in found]
    titles = list(dict.fromkeys(hit.title for hit in hits if hit.title))
    titles += [document.title for document in documents if document.title not in set(titles)]
    return query, hits[:100], list(dict.fromkeys(titles))[:1000]


def cross_encoder(threads: int) -> Callable[[str, list[str]], object]:
    """sentence-transformers' CrossEncoder on torch, as its users run it, on our backbone."""
    import torch
    from sentence_transformers import CrossEncoder

    from reranker.models.backbone import DEFAULT_BACKBONE, find_backbone

    torch.set_num_threads(threads)
    model = CrossEncoder(str(find_backbone(DEFAULT_BACKBONE)), num_labels=1, device="cpu")
    return lambda query, texts: model.predict([(query, text) for text in texts], batch_size=32)


def token_lengths(title: TitleReranker, texts: list[str]) -> float:
    """Mean number of tokens."""
    encoded = title._tokenizer.encode(texts, 512)
    return float(np.mean([len(item.ids) for item in encoded]))


if __name__ == "__main__":
    typer.run(main)
