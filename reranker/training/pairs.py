"""Queries made from documents that nobody judged: their own sentences and headings.

A sentence is taken out of its document before anything is compared with it, as in the inverse
cloze task (Lee et al. 2019, arXiv 1906.00300), so that finding it again is not a matter of words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from reranker.evaluation.bm25 import BM25
from reranker.evaluation.collections import Document
from reranker.mentions import without_aside
from reranker.training import examples

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_HEADING = re.compile(
    r"^\s{0,3}(?:#{1,6}\s+(?P<marked>.+?)\s*#*|(?P<ruled>\S.*?)\s*\n[=\-~]{3,})\s*$", re.M
)
_LEAST_WORDS, _MOST_WORDS = 4, 24  # of a sentence that can stand for a query
_MOST_HEADING_WORDS = 12
_MOST_CHARACTERS = 20_000  # of a document that are looked at


class Made(NamedTuple):
    """A query made from a document."""

    query: str
    document: str  # its id
    rest: str  # the document's text without the query


def make_queries(
    documents: Iterable[Document], rng: np.random.Generator, most: int = 2, cut: bool = False
) -> list[Made]:
    """At most `most` queries of each document, drawn at random among headings and sentences.

    What only repeats the title is no query; a sentence of more than 24 words is none either, or,
    with `cut`, its first 24 words are one.
    """
    found: list[Made] = []
    for document in documents:
        if not document.title:
            continue
        text = document.text[:_MOST_CHARACTERS]
        headings = [(m["marked"] or m["ruled"]).strip() for m in _HEADING.finditer(text)]
        headings = [h for h in headings if len(h.split()) <= _MOST_HEADING_WORDS]
        sentences = sentences_of(_HEADING.sub("\n", text))
        if cut:
            sentences = [" ".join(s.split()[:_MOST_WORDS]) for s in sentences]
        sentences = [s for s in sentences if _LEAST_WORDS <= len(s.split()) <= _MOST_WORDS]
        title = document.title.casefold()
        spans = [s for s in dict.fromkeys(headings + sentences) if s.casefold() != title]
        whole = " ".join(text.split())
        for place in sorted(rng.permutation(len(spans))[:most].tolist()):
            rest = " ".join(whole.replace(spans[place], " ").split())
            found.append(Made(spans[place], document.id, rest))
    return found


def sentences_of(text: str) -> list[str]:
    """A text's sentences, without line breaks."""
    cut = (" ".join(part.split()) for part in _SENTENCE.split(text[:_MOST_CHARACTERS]))
    return [sentence for sentence in cut if sentence]


def phrase(sentence: str, rng: np.random.Generator, most: int) -> str:
    """One to `most` neighbouring words of a sentence that has one."""
    words = sentence.split()
    number = int(rng.integers(1, min(most, len(words)) + 1))
    first = int(rng.integers(len(words) - number + 1))
    return " ".join(words[first : first + number])


def without_title(query: str, title: str) -> str:
    """A query made from a document without the document's title, which would give it away.

    Empty where too little is left to be a query.
    """
    name = without_aside(title)
    if name:
        whole = rf"(?<!\w){re.escape(name)}(?!\w)"
        query = " ".join(re.sub(whole, " ", query, flags=re.IGNORECASE).split())
    return query if len(query.split()) >= _LEAST_WORDS else ""


def against_own_title(
    name: str,
    query: str,
    own: int,
    at: Mapping[str, int],
    by_title: BM25,
    window: int,
    others: Iterable[int] = (),
) -> examples.Example:
    """A made query's example: its document's title against those that share words with it.

    `at` gives each title's place in the pool, `own` is the gold one's. No candidates: none does.
    """
    found = by_title.search(query, window)
    return examples.example(
        name,
        query,
        golds=[own],
        window=[at[title] for title, _ in found],
        scores=[score for _, score in found],
        others=others,
    )


def against_titles(
    name: str,
    made: Iterable[Made],
    corpus: Mapping[str, Document],
    rng: np.random.Generator,
    window: int = 60,
    random: int = 40,
) -> tuple[list[str], list[examples.Example]]:
    """The corpus's distinct titles, and for every query an example against them.

    The gold title is the query's own document's; candidates are BM25's over titles and over
    documents, and `random` others.
    """
    pool = list(dict.fromkeys(d.title for d in corpus.values() if d.title))
    at = {title: place for place, title in enumerate(pool)}
    by_title, by_text = BM25(pool, pool), BM25.over(corpus)
    items = []
    for one in made:
        near = (corpus[id].title for id, _ in by_text.search(one.query, window // 2))
        others = [at[title] for title in near if title]
        others += rng.integers(len(pool), size=random).tolist()
        own = at[corpus[one.document].title]
        item = against_own_title(name, one.query, own, at, by_title, window, others)
        if not item.candidates:  # no title has one of the query's words
            item.candidates, item.others = item.others, []
            item.first_stage = [0.0] * len(item.candidates)
        if item.candidates:
            items.append(item)
    return pool, items
