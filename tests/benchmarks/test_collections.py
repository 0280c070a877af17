"""The makers of judged collections: no query's own words are left in what answers it."""

from __future__ import annotations

import json
from pathlib import Path

from indexing.records import Document
from reranker.evaluation.collections import read_collection
from tests.benchmarks import (
    abstract_collections,
    positive_collection,
    summary_collection,
    wordnet_collection,
)
from tests.benchmarks.collection_folder import write_beir

REST = "takes an iterable of sorted lists and a key function, and returns one iterator over all"


def test_a_summary_is_taken_out_of_its_entry(tmp_path: Path) -> None:
    summary = "Merge many sorted inputs"
    documents = [
        Document("heapq.merge", f"heapq.merge: {summary}", f"merge(*x)\n{summary}. It {REST}"),
        Document("short", "short: Says nearly nothing at all", "short()"),
        Document("one", "one: Return the same old thing", f"one {REST}"),
        Document("two", "two: Return the same old thing", f"two {REST}"),
    ]
    corpus, queries = summary_collection.collect(documents)
    assert queries == {"heapq.merge": summary}
    assert [d.title for d in corpus] == ["heapq.merge", "short", "one", "two"]
    assert summary not in corpus[0].passage
    assert REST in corpus[0].passage
    write_beir(tmp_path, corpus, [(id, text, [id]) for id, text in queries.items()])
    read = read_collection(tmp_path)
    assert len(read.corpus) == 4
    assert [query.text for query in read.judged] == [summary]
    assert read.qrels == {"heapq.merge": {"heapq.merge": 1}}


def test_judgements_that_queries_carry(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    corpus = [{"_id": id, "title": "", "text": f"abstract {id}"} for id in "abc"]
    queries = [{"_id": "q", "text": "what?", "positive": ["a", "c"]}]
    for name, items in (("corpus", corpus), ("queries", queries)):
        (source / f"{name}.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items), "utf-8")
    positive_collection.main(source, tmp_path / "out")
    read = read_collection(tmp_path / "out")
    assert read.qrels == {"q": {"a": 1, "c": 1}}
    assert len(read.corpus) == 3


def test_a_sentence_is_taken_out_of_its_abstract_and_words_out_of_a_question(
    tmp_path: Path,
) -> None:
    sentences = [f"The {word} of all lace plants was measured twice." for word in ("size", "age")]
    last = "Old plants were the largest of all that were measured."
    source = tmp_path / "source"
    source.mkdir()
    corpus = [("a", " ".join([*sentences, "Briefly so.", last])), ("b", sentences[0])]
    asked = [("a", "Do (old) lace plants grow to the largest size of all?"), ("b", "Is it?")]
    records = {
        "corpus": [{"_id": id, "title": "", "text": text} for id, text in corpus],
        "queries": [{"_id": id, "text": text, "positive": [id]} for id, text in asked],
    }
    for name, items in records.items():
        (source / f"{name}.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items), "utf-8")
    abstract_collections.main(source, tmp_path)
    by_sentence = read_collection(tmp_path / "sentences")
    assert [query.text for query in by_sentence.judged] == [last]
    paper = by_sentence.corpus["a"]
    assert (paper.title, paper.text) == (asked[0][1], " ".join(sentences))
    by_word = read_collection(tmp_path / "words")
    assert by_word.corpus["a"].text == corpus[0][1]
    words = {query.id: query.text.split() for query in by_word.queries}
    assert set(words["qa"]) <= {"Do", "old", "lace", "plants", "grow", "largest", "size", "all"}
    assert len(words["qa"]) == 3
    assert "qb" not in words  # of stop words alone


def test_a_word_has_the_sentences_of_all_its_senses(tmp_path: Path) -> None:
    source = tmp_path / "dict"
    source.mkdir()
    parts = {
        "noun": "  1 This software is licensed\n"
        '00001 03 n 02 hot_dog 0 frank 0 001 @ 00002 n 0000 | a sausage; "he ate two;" \n',
        "verb": '00003 30 v 01 melt 0 000 01 + 02 00 | become liquid; "ice melts."  \n',
        "adj": "00004 00 a 01 awake(p) 0 000 | not asleep  \n",
        "adv": '00005 02 r 01 hot_dog 0 000 | with style; ""; yes  \n',
    }
    for part, lines in parts.items():
        (source / f"data.{part}").write_text(lines, "utf-8")
    wordnet_collection.main(source, tmp_path / "out")
    read = read_collection(tmp_path / "out")
    assert [(page.title, page.text) for page in read.corpus.values()] == [
        ("hot dog", "A sausage. He ate two. With style. Yes."),
        ("melt", "Become liquid. Ice melts."),
        ("awake", "Not asleep."),
    ]
    assert list(read.queries) == []
