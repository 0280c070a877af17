import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure, Record, Skip
from indexing.titles import Giver, Report, Reporter, Rule, first_sentence, from_slug, normal, share
from reranker.stages import SHIPPED
from reranker.tokens import Tokenizer

TOKENIZER = Tokenizer(SHIPPED / "title" / "tokenizer.json")
UNTITLED = Document(
    "a/some-id.md",
    " ",
    "The first one, of Dr. Who. And more.",
    url="https://example.org/guide/getting-started_with%20it.html?x=1",
    page_id="docs/setting_up.md",
)


@pytest.mark.parametrize(
    ("rule", "title"),
    [
        ("none", " "),
        ("first-sentence", "The first one, of Dr. Who"),
        ("url", "Getting started with it"),
        ("file", "Setting up"),
    ],
)
def test_a_document_without_a_title_gets_one(rule: Rule, title: str) -> None:
    giver = Giver(rule)
    titled = Document("1", "Its own", "text", url="https://example.org/other")
    given_title, same = giver.records([UNTITLED, titled])
    assert given_title == UNTITLED._replace(title=title)
    assert same == titled
    assert (giver.given, giver.missing) == ((0, 1) if rule == "none" else (1, 0))


@pytest.mark.parametrize("rule", ["none", "first-sentence", "url", "file"])
def test_what_no_title_can_be_made_of_is_counted(rule: Rule) -> None:
    giver = Giver(rule)
    records: list[Record] = [Document("12-3", "", "…", url="http://[bad"), Skip("x", "y")]
    assert list(giver.records(records)) == (
        records if rule != "first-sentence" else [records[0]._replace(title="…"), records[1]]
    )
    assert giver.given + giver.missing == 1
    list(giver.records([Document("1", "", "")]))  # it is nothing at all
    assert giver.given + giver.missing == 1


def test_a_long_first_sentence_is_shortened_at_a_word() -> None:
    title = first_sentence("word " * 500)
    assert title.endswith("word …")
    assert len(title) < 170
    assert first_sentence("x" * 5000) == "x" * 160 + " …"
    assert first_sentence("  \n ") == ""


@given(st.text(st.characters(), max_size=300))
def test_a_title_made_of_a_text_is_one_line_of_it(text: str) -> None:
    title = first_sentence(text)
    assert "\n" not in title
    assert len(title) <= 162
    assert title.removesuffix(" …") in " ".join(text.split())


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/a/b-c.html", "B c"),
        ("/a/b-c/", "B c"),
        ("Straße%20nach_Rom", "Straße nach Rom"),
        ("/2024/12/", ""),
        ("", ""),
        ("/v1.2", "V1.2"),
    ],
)
def test_words_of_a_path(path: str, title: str) -> None:
    assert from_slug(path) == title


def test_titles_that_differ_in_nothing_that_matters_are_the_same() -> None:
    same = ["Romeo & Juliet!", "romeo  juliet", "ROMEO + JULIET", "Ｒomeo/Juliet"]
    assert len({normal(title) for title in same}) == 1
    assert normal("C") != normal("D")
    assert normal("+") != normal("-")  # nothing would be left of them


def report(*titles: str, distinct: int = 100_000, limit: int = 48) -> Report:
    reporter = Reporter(TOKENIZER, limit, distinct)
    for number, title in enumerate(titles):
        reporter.add(Document(str(number), title, "p"))
    return reporter.report()


def test_a_title_of_combining_marks_is_no_trap() -> None:
    marks = "a" + "\u0301\u0323" * 300_000
    assert normal(marks) != normal(marks + " b")
    assert normal("x " * 5000 + "YES!") == normal("X " * 5000 + "yes")


def test_a_report_counts_everything() -> None:
    reporter = Reporter(TOKENIZER, 8)
    reporter.add(Failure("f", "r"))
    reporter.add(Skip("f", "r"))
    for title in ("one two", "One, two", "one two", "", "word " * 20, "three"):
        reporter.add(Document("1", title, "p"))
    found = reporter.report(given=2)
    assert (found.documents, found.failed, found.skipped, found.empty) == (6, 1, 1, 1)
    assert (found.given, found.titled, found.distinct) == (2, 5, 4)
    assert found.truncated == 1
    assert found.tokens == {"50": 4, "90": 22, "99": 22, "100": 22}
    assert (found.near_groups, found.near_titles) == (1, 2)
    assert found.near[0].titles == ("One, two", "one two")
    assert found.near[0].documents == 3
    assert not found.estimated


def test_the_limit_itself_is_not_too_long() -> None:
    for words in (5, 6, 7):
        (encoded,) = TOKENIZER.encode(["word " * words], 8)
        assert report("word " * words, limit=8).truncated == encoded.truncated


def test_a_report_says_what_it_means() -> None:
    assert "nothing to say" in report().meaning[0]
    assert "--title-from" in report("", "").meaning[0]
    good = " ".join(report("one", "two", "three").meaning)
    assert "reads every title to its end" in good
    assert "a title of its own" in good
    bad = " ".join(report("one", "one", "", "word " * 50, "One!").meaning)
    for words in ("25.0 % of the titles", "shared by 1.3", "20.0 % of the documents", "alone"):
        assert words in bad


@given(st.lists(st.sampled_from("aAbBcC!?. "), max_size=3).map("".join))
def test_every_title_is_counted_once_whatever_it_is(title: str) -> None:
    found = report(title, title, "other")
    assert found.distinct == (2 if title.strip() else 1)
    assert found.near_groups == 0


def test_a_sample_estimates_many_titles_in_bounded_memory() -> None:
    # Half of the titles have a near-duplicate.
    titles = [f"Title {n // 2}{'!' * (n % 2)}" for n in range(6_000)]
    titles += [f"Another {n}" for n in range(6_000)]
    random.Random(2).shuffle(titles)
    exact, sampled = report(*titles), report(*titles, distinct=1_000)
    assert (exact.distinct, exact.near_groups, exact.near_titles) == (12_000, 3_000, 6_000)
    assert sampled.estimated
    assert not exact.estimated
    assert sampled.distinct == pytest.approx(exact.distinct, rel=0.15)
    assert sampled.near_titles == pytest.approx(exact.near_titles, rel=0.2)


def test_memory_does_not_grow_with_the_documents() -> None:
    reporter = Reporter(TOKENIZER, 48, distinct=500)

    def peak_of(first: int) -> int:
        tracemalloc.start()
        for number in range(first, first + 6_000):
            reporter.add(Document("1", f"Some title {number}", "p"))
        reporter.report()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    first = peak_of(0)
    assert peak_of(6_000) < 1.5 * first


def test_a_share_is_never_rounded_to_none_or_all() -> None:
    assert share(0, 10) == "0.0 %"
    assert share(1, 100_000) == "less than 0.1 %"
    assert share(99_999, 100_000) == "more than 99.9 %"
    assert share(10, 10) == "100.0 %"
    assert share(0, 0) == "0.0 %"
