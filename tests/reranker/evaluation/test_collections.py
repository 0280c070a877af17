from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reranker.evaluation.collections import (
    Collection,
    Document,
    GoldQuery,
    Judgement,
    Query,
    guess_format,
    read_beir_queries,
    read_collection,
    read_corpus,
    read_hover,
    read_kilt,
    read_qrels,
    read_topics,
)


def write_lines(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_beir_folder(collection: Collection) -> None:
    assert collection.name == "tiny"
    assert len(collection.queries) == 4
    assert collection.corpus["d4"] == Document(
        "d4", "Heapsort", "Heapsort sorts with a binary heap."
    )
    assert collection.qrels["q1"] == {"d1": 2, "d2": 1}
    assert collection.gold_sets["q2"] == (frozenset({"d4"}),)  # d1 is judged, but not relevant
    assert [query.id for query in collection.judged] == ["q1", "q2", "q4"]
    assert not collection.pages


def test_beir_folder_with_several_query_sets(beir: Path) -> None:
    for name, text in (("one", "first"), ("two", "second")):
        write_lines(beir / f"{name}-queries.jsonl", [{"_id": "q1", "text": text}])
        (beir / f"{name}-qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert read_collection(beir, name="two").queries == (Query("q1", "second"),)
    assert read_collection(beir, name="two").name == "tiny/two"
    with pytest.raises(ValueError, match=r"--queries: one, two"):
        read_collection(beir)
    with pytest.raises(ValueError, match=r"--queries: one, two"):
        read_collection(beir, name="three")


def test_beir_split_that_is_not_there(beir: Path) -> None:
    with pytest.raises(ValueError, match=r"no judgements dev\.tsv.*: test"):
        read_collection(beir, name="dev")


def test_missing_path_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a BEIR folder"):
        read_collection(tmp_path / "nowhere")


def test_unknown_format_names_the_choices(beir: Path) -> None:
    with pytest.raises(ValueError, match="beir, kilt"):
        read_collection(beir, format="csv")


@pytest.mark.parametrize("kind", ["kilt", "hover"])
def test_a_file_of_one_set_of_queries_takes_no_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="leave out the name 'test'"):
        read_collection(write_lines(tmp_path / "x.jsonl", [{}]), kind, "test")


def test_pages_of_passages(collection: Collection) -> None:
    pages = collection.by_page()
    assert pages.pages
    assert list(pages.corpus) == ["Ed Wood", "Scott Derrickson", "Heapsort"]  # no empty title
    assert pages.corpus["Ed Wood"].text == "Edward Wood was an American filmmaker."
    assert pages.gold_sets["q1"] == (frozenset({"Ed Wood"}),)  # two passages, one page
    assert pages.qrels["q1"] == {"Ed Wood": 1}


def test_blanks_around_a_title_make_no_page_of_their_own(tmp_path: Path) -> None:
    documents = [Document("1", "Ed Wood ", "first"), Document("2", "Ed Wood"), Document("3", " ")]
    collection = Collection.from_qrels("x", [Query("q", "?")], [Judgement("q", "1", 1)], documents)
    pages = collection.by_page()
    assert pages.corpus == {"Ed Wood": Document("Ed Wood", "Ed Wood", "first")}
    assert pages.gold_sets["q"] == (frozenset({"Ed Wood"}),)
    corpus = write_lines(
        tmp_path / "c.jsonl", [{"_id": d.id, "title": d.title, "text": d.text} for d in documents]
    )
    record = {"id": "q", "input": "?", "output": [{"provenance": [{"title": "Ed Wood "}]}]}
    pooled = read_collection(write_lines(tmp_path / "kilt.jsonl", [record]), corpora=[corpus])
    assert (pooled.corpus, pooled.gold_sets) == (pages.corpus, pages.gold_sets)


def test_a_query_whose_relevant_passages_lack_titles_is_not_judged_by_page() -> None:
    collection = Collection.from_qrels(
        "x", [Query("q", "text")], [Judgement("q", "d", 1)], [Document("d", "", "passage")]
    )
    assert collection.judged
    assert not collection.by_page().judged


def test_sample_is_seeded_judged_and_ordered() -> None:
    queries = [Query(f"q{i}", "text") for i in range(50)]
    judgements = [Judgement(f"q{i}", "d", i % 2) for i in range(50)]
    collection = Collection.from_qrels("x", queries, judgements, [Document("d", "t")])
    sample = collection.sample(10, seed=1)
    numbers = [int(query.id[1:]) for query in sample.queries]
    assert len(numbers) == 10
    assert all(number % 2 for number in numbers)
    assert numbers == sorted(numbers)
    assert collection.sample(10, seed=1) == sample
    assert collection.sample(10, seed=2) != sample
    assert len(collection.sample(1000).queries) == 25


def test_two_queries_with_one_id_are_an_error() -> None:
    with pytest.raises(ValueError, match="make ids unique"):
        Collection.from_qrels("x", [Query("q", "a"), Query("q", "b")], [], [])


KILT = [
    {
        "id": 1,
        "input": "who?",
        "output": [
            {"answer": "without provenance"},
            {"answer": "a", "provenance": [{"title": " A ", "wikipedia_id": "10"}]},
            {
                "answer": "b",
                "provenance": [
                    {"title": "B", "wikipedia_id": "20"},
                    {"title": "C", "wikipedia_id": "30"},
                    {"title": "B", "wikipedia_id": "20"},
                ],
            },
            {"answer": "again", "provenance": [{"title": "A", "wikipedia_id": "10"}]},
            {"answer": "null", "provenance": None},
        ],
    },
    {"id": "2", "input": "a test query", "output": None},
    {"id": "3", "input": "another", "output": [None, {"meta": {}}]},
]


def test_kilt_gold_sets(tmp_path: Path) -> None:
    first, second, third = read_kilt(write_lines(tmp_path / "kilt.jsonl", KILT))
    sets = (frozenset("A"), frozenset("BC"))
    assert first == GoldQuery(Query("1", "who?"), sets)
    assert second.gold_sets == third.gold_sets == ()


def test_kilt_pages_by_wikipedia_id(tmp_path: Path) -> None:
    first, *_ = read_kilt(write_lines(tmp_path / "kilt.jsonl", KILT), page_key="wikipedia_id")
    assert first.gold_sets == (frozenset({"10"}), frozenset({"20", "30"}))


def test_kilt_empty_provenance_is_an_empty_gold_set(tmp_path: Path) -> None:
    record: dict[str, object] = {"id": "1", "input": "?", "output": [{"provenance": []}]}
    (query,) = read_kilt(write_lines(tmp_path / "kilt.jsonl", [record]))
    assert query.gold_sets == (frozenset(),)


def test_kilt_collection_pools_titles(tmp_path: Path, beir: Path) -> None:
    path = write_lines(tmp_path / "kilt.jsonl", KILT)
    collection = read_collection(path, corpora=[beir])
    assert set(collection.corpus) == {"Ed Wood", "Scott Derrickson", "Heapsort", "A", "B", "C"}
    assert collection.corpus["Ed Wood"].text.startswith("Edward")
    assert collection.qrels["1"] == {"A": 1, "B": 1, "C": 1}
    assert [query.id for query in collection.judged] == ["1"]
    assert collection.pages


def test_hover(tmp_path: Path) -> None:
    facts = [["Heapsort", 2], ["Ed Wood", 1], ["Heapsort", 0]]
    path = write_lines(
        tmp_path / "hover.jsonl", [{"uid": "u", "claim": "claim", "supporting_facts": facts}]
    )
    gold = GoldQuery(Query("u", "claim"), (frozenset({"Heapsort", "Ed Wood"}),))
    assert list(read_hover(path)) == [gold]
    assert read_collection(path).gold_sets["u"] == gold.gold_sets
    assert {document.id for document in read_corpus(path)} == {"Heapsort", "Ed Wood"}


def test_guessing_a_format(tmp_path: Path, beir: Path) -> None:
    assert guess_format(beir) == "beir"
    assert guess_format(write_lines(tmp_path / "k", KILT)) == "kilt"
    with pytest.raises(ValueError, match="--format"):
        guess_format(write_lines(tmp_path / "x", [{"a": 1}]))


def test_kilt_knowledge_source(tmp_path: Path) -> None:
    page: dict[str, object] = {
        "wikipedia_id": "7",
        "wikipedia_title": "Heapsort",
        "text": ["Heapsort\n", " ", "Sorts with a heap.\n", "More."],
    }
    assert list(read_corpus(write_lines(tmp_path / "ks.jsonl", [page]))) == [
        Document("7", "Heapsort", "Sorts with a heap.")
    ]


def test_msmarco_folder(tmp_path: Path) -> None:
    (tmp_path / "collection.tsv").write_text("0\tfirst passage\n1\tsecond passage\n")
    (tmp_path / "queries.dev.tsv").write_text("9\twhat is second\n")
    (tmp_path / "queries.train.tsv").write_text("8\tother\n")
    (tmp_path / "qrels.dev.tsv").write_text("9\t0\t1\t1\n")
    (tmp_path / "qrels.train.tsv").write_text("8\t0\t0\t1\n")
    collection = read_collection(tmp_path, name="dev")
    assert collection.queries == (Query("9", "what is second"),)
    assert collection.qrels == {"9": {"1": 1}}
    assert collection.corpus["1"] == Document("1", "", "second passage")
    with pytest.raises(ValueError, match="exactly one file of queries"):
        read_collection(tmp_path)


def test_msmarco_documents_have_titles(tmp_path: Path) -> None:
    path = tmp_path / "msmarco-docs.tsv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("D1\thttps://example.org\tTitle\tBody\n")
    assert list(read_corpus(path)) == [Document("D1", "Title", "Body")]
    (tmp_path / "bad.tsv").write_text("alone\n")
    with pytest.raises(ValueError, match="line 1"):
        list(read_corpus(tmp_path / "bad.tsv"))


def test_msmarco_documents_beside_their_lookup_table(tmp_path: Path) -> None:
    (tmp_path / "msmarco-docs.tsv").write_text("D1\thttps://example.org\tHeapsort\tBody\n")
    (tmp_path / "msmarco-docs-lookup.tsv").write_text("D1\t0\t0\n")
    (tmp_path / "msmarco-docdev-queries.tsv").write_text("1\theapsort\n")
    (tmp_path / "msmarco-docdev-qrels.tsv").write_text("1 0 D1 1\n")
    assert read_collection(tmp_path).corpus == {"D1": Document("D1", "Heapsort", "Body")}


TOPICS = """<top>
<num> Number: 301
<title> International Organized Crime

<desc> Description:
Identify organizations.
</top>
<top><num>302</num><title>Poliomyelitis
 and Post-Polio</title></top>
"""


def test_trec_folder(tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text(TOPICS)
    (tmp_path / "qrels.txt").write_text("301 0 FT911-1 1\n302 0 FT911-1 0\n")
    (tmp_path / "docs.tsv").write_text("FT911-1\tcrime\n")
    collection = read_collection(tmp_path)
    assert collection.queries == (
        Query("301", "International Organized Crime"),
        Query("302", "Poliomyelitis and Post-Polio"),
    )
    assert [query.id for query in collection.judged] == ["301"]


def test_topics_without_a_tab(tmp_path: Path) -> None:
    (tmp_path / "topics").write_text("1\tfine\nbroken\n")
    with pytest.raises(ValueError, match="line 2"):
        list(read_topics(tmp_path / "topics"))
    (tmp_path / "topics").write_text("<top>\n<num> 1\n</top>")
    with pytest.raises(ValueError, match="<title>"):
        list(read_topics(tmp_path / "topics"))


def test_qrels_formats(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    expected = [Judgement("q", "a page title", 1), Judgement("q", "d", -1)]
    path.write_text("query-id\tcorpus-id\tscore\nq\ta page title\t1\nq\td\t-1.0\n")
    assert list(read_qrels(path)) == expected
    path.write_text("q\t0\ta page title\t1\n\nq 0 d -1\n")
    assert list(read_qrels(path)) == expected
    path.write_text("q d 1\n")
    assert list(read_qrels(path)) == [Judgement("q", "d", 1)]


@pytest.mark.parametrize(
    "line",
    [
        *("q 0 d high", "q\td\t0.5", "q 0 d inf", "q 0 d nan", "q 1"),
        *("q 0 a page 1", "q\t0\td\t1\tmore\t3"),  # which of the columns is the document?
    ],
)
def test_what_is_no_judgement_names_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "qrels").write_text(f"q 0 d 1\n{line}\n")
    with pytest.raises(ValueError, match=r"qrels, line 2: expected query id.*a whole number"):
        list(read_qrels(tmp_path / "qrels"))


def test_broken_json_and_missing_fields_name_the_place(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    for broken in ("{", "[1]"):
        path.write_text('{"_id": "1"}\n' + broken + "\n")
        with pytest.raises(ValueError, match="line 2 is not a JSON object"):
            list(read_corpus(path))
    path.write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match="lacks '_id'"):
        list(read_corpus(path))


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (read_qrels, "q\td\t1\n", Judgement("q", "d", 1)),
        (read_topics, "1\ttext\n", Query("1", "text")),
        (read_beir_queries, '{"_id": "1", "text": "x"}\n', Query("1", "x")),
        (read_corpus, '{"_id": "1", "title": "x"}\n', Document("1", "x")),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_text(
    tmp_path: Path, read: Callable[[Path], Iterator[object]], text: str, expected: object
) -> None:
    (tmp_path / "file").write_text(text, encoding="utf-8-sig")
    assert list(read(tmp_path / "file")) == [expected]


def test_numbers_are_texts_and_null_is_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"_id": 7, "title": 1984, "text": None}])
    assert list(read_corpus(path)) == [Document("7", "1984")]
    page: dict[str, object] = {"wikipedia_id": 7, "wikipedia_title": None, "text": ["", None, "a"]}
    assert list(read_corpus(write_lines(path, [page]))) == [Document("7", "", "a")]
    assert list(read_corpus(write_lines(path, [page | {"text": None}]))) == [Document("7", "")]
    blank = {"id": 1, "input": "?", "output": [{"provenance": [{"title": " "}, {"title": 1984}]}]}
    assert [gold.gold_sets for gold in read_kilt(write_lines(path, [blank]))] == [
        (frozenset({"1984"}),)
    ]


PAGE = {"wikipedia_id": 1, "wikipedia_title": "x"}
ITEM = {"id": 1, "input": "?"}
CLAIM = {"uid": 1, "claim": "?"}


@pytest.mark.parametrize(
    ("read", "record", "what"),
    [
        (read_corpus, {"_id": None, "title": "x"}, "lacks '_id'"),
        (read_corpus, {"_id": "1", "title": ["x"]}, "'title' is not a text"),
        (read_corpus, {"_id": "1", "text": True}, "'text' is not a text"),
        (read_corpus, {"wikipedia_title": "x"}, "lacks 'wikipedia_id'"),
        (read_corpus, PAGE | {"text": "not paragraphs"}, "'text' is not a list"),
        (read_corpus, PAGE | {"text": [{}]}, "'text' is not a text"),
        (read_beir_queries, {"_id": "1", "text": None}, "lacks 'text'"),
        (read_beir_queries, {"_id": None, "text": "x"}, "lacks '_id'"),
        (read_kilt, {"id": "1", "input": None}, "lacks 'input'"),
        (read_kilt, ITEM | {"output": {"answer": "x"}}, "'output' is not a list"),
        (read_kilt, ITEM | {"output": ["x"]}, "'output' holds 'x', not an object"),
        (read_kilt, ITEM | {"output": [{"provenance": "x"}]}, "'provenance' is not a list"),
        (read_kilt, ITEM | {"output": [{"provenance": ["x"]}]}, "'provenance' holds 'x', not an"),
        (read_hover, CLAIM, "lacks 'supporting_facts'"),
        (read_hover, CLAIM | {"supporting_facts": None}, "lacks 'supporting_facts'"),
        (read_hover, CLAIM | {"supporting_facts": "x"}, "'supporting_facts' is not a list of"),
        (read_hover, CLAIM | {"supporting_facts": [[]]}, "'supporting_facts' is not a list of"),
        (
            read_hover,
            CLAIM | {"supporting_facts": ["Ed Wood"]},
            "'supporting_facts' is not a list of",
        ),
    ],
)
def test_malformed_records_name_the_place(
    tmp_path: Path,
    read: Callable[[Path], Iterator[object]],
    record: dict[str, object],
    what: str,
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(record))
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 2:? {what}"):
        list(read(path))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"_id": 1' + "0" * 5_000 + "}"])
def test_json_that_cannot_be_read_names_the_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "c.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1 is not a JSON object"):
        list(read_corpus(tmp_path / "c.jsonl"))


def test_files_of_other_encodings_are_named(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"_id": "1", "title": "x"}\n' * 50, mtime=0)
    broken = packed[:20] + b"\xff\xff" + packed[22:]
    for name, content, what in (
        ("c.jsonl", '{"_id": "ä"}'.encode("latin-1"), "is not UTF-8 text"),
        ("c.jsonl.gz", b'{"_id": "1"}', "is not a whole gzip file"),
        ("c.jsonl.gz", packed[:-9], "is not a whole gzip file"),
        ("c.jsonl.gz", broken, "is not a whole gzip file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {what}"):
            list(read_corpus(tmp_path / name))


def test_a_folder_without_judgements_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no queries; give a BEIR folder, a KILT or HoVer"):
        read_collection(tmp_path)
    with pytest.raises(ValueError, match=r"has no file of queries: none is called .*\.$"):
        read_collection(tmp_path, "trec")
    (tmp_path / "corpus.jsonl").write_text("")
    (tmp_path / "queries.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"no judgements: give a BEIR folder, with test\.tsv in"):
        read_collection(tmp_path)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("")
    with pytest.raises(ValueError, match=r"no judgements test\.tsv; .* among: dev\."):
        read_collection(tmp_path)
