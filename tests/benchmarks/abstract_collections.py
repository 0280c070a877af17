"""Write two BEIR folders from questions and the abstracts that answer them (PubMedQA).

`sentences`: an abstract's last sentence searches for the paper, whose title is the question.
`words`: two fifths of a question's words, in their order, search for the abstract, without title.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from indexing.records import Document
from reranker.evaluation.bm25 import STOP_WORDS
from reranker.evaluation.collections import json_objects, read_corpus
from tests.benchmarks.collection_folder import write_beir

_SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
_LEAST_WORDS = 8  # of a sentence
_LEAST_SENTENCES = 3
_SHARE = 0.4  # of a question's words


def main(
    source: Annotated[Path, typer.Argument(help="Folder with corpus.jsonl and queries.jsonl.")],
    out: Annotated[Path, typer.Argument(help="Where the two folders are written.")],
) -> None:
    """Make queries of other kinds than questions, judged by what they were made from."""
    texts = {document.id: document.text for document in read_corpus(source)}
    asked = {
        str(record["positive"][0]): str(record["text"])
        for _, record in json_objects(source / "queries.jsonl")
    }
    write(out / "sentences", *by_sentences(texts, asked))
    untitled = [Document(id, "", text) for id, text in texts.items()]
    write(out / "words", untitled, by_words(asked))


def by_sentences(
    texts: Mapping[str, str], asked: Mapping[str, str]
) -> tuple[list[Document], dict[str, str]]:
    """Papers without their last sentences, and these as queries by the paper's id."""
    papers, queries = [], {}
    for id, question in asked.items():
        found = [s for s in _SENTENCE.split(texts[id]) if len(s.split()) >= _LEAST_WORDS]
        if len(found) >= _LEAST_SENTENCES:
            *rest, queries[id] = found
            papers.append(Document(id, question, " ".join(rest)))
    return papers, queries


def by_words(asked: Mapping[str, str]) -> dict[str, str]:
    """Some words of each question, by id; two at least, and none of Lucene's stop words."""
    rng = np.random.default_rng(0)
    queries = {}
    for id, question in asked.items():
        stripped = [part.strip("?:.,;\"'()") for part in question.split()]
        words = [word for word in stripped if word and word.lower() not in STOP_WORDS]
        chosen = rng.permutation(len(words))[: max(2, round(len(words) * _SHARE))]
        if words:
            queries[id] = " ".join(words[place] for place in sorted(chosen.tolist()))
    return queries


def write(folder: Path, documents: list[Document], queries: Mapping[str, str]) -> None:
    """Write a folder whose queries are answered by the document of their id."""
    write_beir(folder, documents, [(f"q{id}", text, [id]) for id, text in queries.items()])


if __name__ == "__main__":
    typer.run(main)
