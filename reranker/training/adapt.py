"""Adapting the title model to documents that nobody judged.

Their own sentences and headings are the queries, their titles what is to be found. The passage
reranker is the teacher: it reads the candidates' passages (the query's own document without the
sentence), so that a title is not taken for wrong only because another document holds the sentence.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reranker.evaluation.contamination import FILE, fingerprint, fingerprints
from reranker.evaluation.measures import bootstrap_interval
from reranker.fusion import standardise
from reranker.stages import TitleReranker
from reranker.training import examples
from reranker.training.pairs import Made, against_titles, make_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from reranker.evaluation.collections import Collection, Document
    from reranker.stages import PassageReranker
    from reranker.training.examples import Example

log = logging.getLogger(__name__)

_HELD_BACK = 5  # one document in so many is for measuring


class Quality(NamedTuple):
    """Mean reciprocal rank of the answer's title among its candidates, and its 95 % interval."""

    mean: float
    low: float
    high: float


def prepare_documents(
    corpus: Mapping[str, Document],
    out: Path,
    teacher: PassageReranker | None,
    most: int = 2000,
    per_document: int = 2,
    depth: int = 20,
    seed: int = 0,
) -> None:
    """Write `train` and `dev` examples made from the documents.

    At most `most` queries, `per_document` of each; the teacher scores the first `depth`
    candidates. One document in five, by its title, is held back: its queries are `dev`.
    Raises ValueError where nothing can be made of the documents.
    """
    rng = np.random.default_rng(seed)
    ids = list(corpus)
    made: list[Made] = []
    for i in rng.permutation(len(ids)).tolist():
        made += make_queries([corpus[ids[i]]], rng, per_document)
        if len(made) >= most:
            break
    made = list({one.query: one for one in made[:most]}.values())
    pool, items = against_titles("documents", made, corpus, rng)
    by_query = {one.query: one for one in made}
    document_of = {document.title: document for document in reversed([*corpus.values()])}
    kept: dict[str, list[Example]] = {"train": [], "dev": []}
    for number, item in enumerate(items, start=1):
        one = by_query[item.query]
        if teacher is not None:
            teach(item, one, pool, document_of, teacher, depth)
        held_back = fingerprint(corpus[one.document].title) % _HELD_BACK == 0
        kept["dev" if held_back else "train"].append(item)
        if teacher is not None and number % 100 == 0:
            log.info("%d of %d queries scored by the teacher", number, len(items))
    if not kept["train"] or not kept["dev"]:
        raise ValueError(
            f"{len(corpus)} documents gave {len(kept['train'])} queries to train on and "
            f"{len(kept['dev'])} to measure with; give more documents that have a title and a text"
        )
    for name, chosen in kept.items():
        examples.save(out / name, pool, chosen)
    np.save(out / FILE, fingerprints(item.query for item in kept["train"]))


def teach(
    item: Example,
    made: Made,
    pool: Sequence[str],
    document_of: Mapping[str, Document],
    teacher: PassageReranker,
    depth: int,
) -> None:
    """Add the passage reranker's scores to an example."""
    seen = [*item.golds, *item.candidates[:depth]]
    titles = [pool[place] for place in seen]
    texts = [made.rest, *(document_of[title].text for title in titles[1:])]
    scores = teacher.score(item.query, titles, texts).tolist()
    unseen = len(item.candidates) + 1 - len(seen)
    item.taught = [round(float(score), 3) for score in scores] + [None] * unseen


def held_back_quality(model: TitleReranker, folder: Path, most: int = 300) -> Quality:
    """Quality on the `dev` examples of a folder, through the runtime that serves."""
    pool, items = examples.load(folder / "dev")
    values = []
    for item in items[:most]:
        scores = model.score(item.query, [pool[place] for place in item.texts])
        values.append(reciprocal_rank(scores, len(item.golds)))
    return quality(values)


def guard_quality(
    model: TitleReranker, collection: Collection, most: int = 200, depth: int = 50
) -> tuple[Quality, Quality]:
    """Quality on a judged collection's titles: alone, and with BM25's score added.

    Candidates are BM25's over titles and texts; those without the answer count 0.
    """
    from reranker.evaluation.bm25 import BM25

    engine = BM25.over(collection.corpus)
    alone, fused = [], []
    for query in collection.sample(most).judged:
        window = engine.search(query.text, depth)
        judged = collection.qrels[query.id]
        gold = np.array([judged.get(id, 0) > 0 for id, _ in window], dtype=bool)
        if not gold.any():
            alone.append(0.0)
            fused.append(0.0)
            continue
        logits = model.score(query.text, [collection.corpus[id].title for id, _ in window])
        first = standardise(np.array([score for _, score in window], dtype=np.float64))
        order = np.argsort(~gold, kind="stable")  # the answers first, as reciprocal_rank wants it
        alone.append(reciprocal_rank(logits[order], int(gold.sum())))
        fused.append(reciprocal_rank((logits + first)[order], int(gold.sum())))
    return quality(alone), quality(fused)


def reciprocal_rank(scores: NDArray[np.floating], golds: int) -> float:
    """1 / rank of the best of the first `golds` scores; a tie counts as lost, NaN is last."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    return 1.0 / (1 + int((scores[golds:] >= scores[:golds].max()).sum()))


def quality(values: Sequence[float]) -> Quality:
    """Mean and bootstrap interval. Raises ValueError without values."""
    array = np.array(values, dtype=np.float64)
    interval = bootstrap_interval(array)
    return Quality(float(array.mean()), interval.low, interval.high)


def write_report(path: Path, report: Mapping[str, Mapping[str, Quality]]) -> None:
    """Write before and after, by what was measured, as JSON."""
    plain = {
        name: {when: value._asdict() for when, value in both.items()}
        for name, both in report.items()
    }
    path.write_text(json.dumps(plain, indent=2) + "\n", "utf-8")
