"""What the demo searches for and how it measures; where the searches go is its caller's choice.

A search is a function `(query, size) -> Comparison`: that of a cluster with its search pipeline,
or `Embedded.compare`, which needs no search engine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from opensearchpy.exceptions import ConnectionError as NoConnectionError
from opensearchpy.exceptions import TransportError

from plugin.cli.search import Comparison, Found, Stage
from reranker import Cascade, Hit
from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import (
    Collection,
    Document,
    Query,
    read_beir_queries,
    read_qrels,
)
from reranker.evaluation.contamination import fingerprint
from reranker.evaluation.hybrid import Hybrid
from reranker.evaluation.measures import measure_rankings
from reranker.evaluation.runs import Searcher

Compare: TypeAlias = Callable[[str, int], Comparison]  # query, hits on the page

WINDOW = 100
MEASURES = ("nDCG@10", "R@10", "R@100")

# What people look for in the standard library, in their words rather than in its.
SEARCHES = (
    "merge several sorted lists",
    "run a command and capture its output",
    "parse command line arguments",
    "temporary directory that is deleted afterwards",
    "read a zip archive",
    "count occurrences of items",
    "compare two files line by line",
    "remember results of expensive function calls",
    "generate a cryptographically secure random token",
    "split a string into words like a shell",
    "pretty print nested data",
    "send an email through a mail server",
)


class Embedded:
    """BM25 and the cascade in this process, in the shape of a cluster's searches."""

    def __init__(
        self,
        cascade: Cascade,
        corpus: Mapping[str, Document],
        name: str,
        dense: Searcher | None = None,
    ) -> None:
        """Index the corpus; with a `dense` searcher over it, candidates are hybrid."""
        self._cascade = cascade
        self._corpus = corpus
        self._name = name
        bm25 = BM25.over(corpus)
        self._first: Searcher = Hybrid([bm25, dense]) if dense else bm25

    def compare(self, query: str, size: int) -> Comparison:
        """Search by the first stage, then rerank what it found."""
        started = time.perf_counter()
        found = self._first.search(query, WINDOW)
        searched = time.perf_counter()
        documents = [self._corpus[key] for key, _ in found]
        hits = [
            Hit(document.id, document.title, document.text, score)
            for document, (_, score) in zip(documents, found, strict=True)
        ]
        result = self._cascade.rerank(query, hits)
        ended = time.perf_counter()
        return Comparison(
            index=self._name,
            query=query,
            size=size,
            before=tuple(Found(hit.id, hit.title, hit.score) for hit in hits),
            after=tuple(
                Found(hit.id, hits[hit.index].title, hit.score) for hit in result.hits[:size]
            ),
            applied=True,
            reason="",
            complete=result.complete,
            stages=tuple(
                Stage(one.name, one.scored, one.milliseconds, one.truncated, one.skipped)
                for one in result.stages
            ),
            model=self._cascade.name,
            took_before=round((searched - started) * 1000),
            took_after=round((ended - started) * 1000),
            rerank_ms=(ended - searched) * 1000,
        )


class QuerySet(NamedTuple):
    """Judged queries of a BEIR folder, less those that the models were trained on."""

    name: str
    read: int  # queries in the file
    judged: int  # of them with a relevant document
    trained_on: int  # of the judged: left out
    queries: tuple[Query, ...]  # of the others: all of them, or a sample
    qrels: Mapping[str, Mapping[str, int]]


class Measured(NamedTuple):
    """A query set's searches before and after; means over the queries that did not fail."""

    name: str
    run: int
    failed: int
    reason: str  # why the first of the failed did
    in_part: int  # of those measured: a stage ran out of time
    before: Mapping[str, float]  # measure -> mean
    after: Mapping[str, float]
    ms_before: float  # medians of what the engine says it took
    ms_after: float
    ms_rerank: float


def read_query_sets(
    folder: Path,
    name: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    seen: Iterable[int] = (),
) -> list[QuerySet]:
    """Read a BEIR folder's query sets: `queries.jsonl` with `qrels/`, or `NAME-queries.jsonl`.

    `name` chooses one of several; `seen` are the fingerprints of queries to leave out; `sample`
    keeps so many of each set, drawn by `seed`. Raises `ValueError` where there are none.
    """
    known = frozenset(seen)
    sets = []
    for label, queries_path, qrels_path in _files(folder, name):
        collection = Collection.from_qrels(
            label, read_beir_queries(queries_path), read_qrels(qrels_path), ()
        )
        judged = collection.judged
        fresh = tuple(query for query in judged if fingerprint(query.text) not in known)
        chosen = fresh
        if sample is not None and len(fresh) > sample:
            drawn = np.random.default_rng(seed).choice(len(fresh), size=sample, replace=False)
            chosen = tuple(fresh[place] for place in sorted(drawn.tolist()))
        sets.append(
            QuerySet(
                name=label,
                read=len(collection.queries),
                judged=len(judged),
                trained_on=len(judged) - len(fresh),
                queries=chosen,
                qrels=collection.qrels,
            )
        )
    return sets


def measure(
    query_set: QuerySet, compare: Compare, progress: Callable[[], None] = lambda: None
) -> Measured:
    """Search every query of a set and measure the engine's order and the new one.

    A search that the cluster refuses, or does not rerank, has failed and is measured on neither
    side. Raises opensearchpy's exception where the cluster is gone.
    """
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    done: list[Comparison] = []
    reasons: list[str] = []
    for query in query_set.queries:
        try:
            comparison = compare(query.text, WINDOW)
        except NoConnectionError:
            raise
        except TransportError as error:
            reasons.append(f"{query.id}: {error}")
        else:
            # Where nothing was found there is nothing to rerank.
            if comparison.applied or not comparison.before:
                done.append(comparison)
                before[query.id] = [hit.id for hit in comparison.before]
                after[query.id] = [hit.id for hit in comparison.after]
            else:
                reasons.append(f"{query.id}: {comparison.reason or 'not reranked'}")
        progress()
    return Measured(
        name=query_set.name,
        run=len(query_set.queries),
        failed=len(reasons),
        reason=reasons[0] if reasons else "",
        in_part=sum(one.applied and not one.complete for one in done),
        before=_means(before, query_set.qrels),
        after=_means(after, query_set.qrels),
        ms_before=_median(one.took_before for one in done),
        ms_after=_median(one.took_after for one in done),
        ms_rerank=_median(one.rerank_ms for one in done),
    )


def _means(
    rankings: Mapping[str, list[str]], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    if not rankings:
        return dict.fromkeys(MEASURES, float("nan"))
    values = measure_rankings(rankings, qrels, {}, MEASURES, list(rankings))
    return {name: float(per_query.mean()) for name, per_query in values.items()}


def _median(values: Iterable[float]) -> float:
    numbers = list(values)
    return statistics.median(numbers) if numbers else float("nan")


def _files(folder: Path, name: str | None) -> list[tuple[str, Path, Path]]:
    """Find (name, queries, judgements) of each set, or of the one that is asked for."""
    end = "-queries.jsonl"
    sets = {
        path.name[: -len(end)]: (path, folder / f"{path.name[: -len(end)]}-qrels.tsv")
        for path in sorted(folder.glob(f"*{end}"))
    }
    if (folder / "queries.jsonl").is_file():
        own = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
        if name is None and "test" in own:  # BEIR reports on that one
            own = {"test": own["test"]}
        sets |= {split: (folder / "queries.jsonl", path) for split, path in own.items()}
    if name is not None and name not in sets:
        raise ValueError(
            f"{folder} has no query set {name!r}: choose one of {', '.join(sets) or 'none'}"
        )
    if not sets:
        raise ValueError(
            f"{folder} holds no judged queries: it needs queries.jsonl with qrels/test.tsv, or "
            "NAME-queries.jsonl with NAME-qrels.tsv"
        )
    chosen = sets if name is None else {name: sets[name]}
    for _, qrels in chosen.values():
        if not qrels.is_file():
            raise ValueError(f"{qrels} is missing: put the judgements of these queries there")
    return [(label, *paths) for label, paths in chosen.items()]
