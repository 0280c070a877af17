"""Names of pages: what counts as one, where a passage holds it, and whom it tells of."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.coverage import Coverage
from reranker.mentions import Links, Names, name_of, without_aside


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Mercury (planet)", "Mercury"),
        ("  Ada Lovelace ", "Ada Lovelace"),
        ("Helix (album) (deluxe)", "Helix (album)"),
        ("The Lincoln Highway (road)", "Lincoln Highway"),
        ("The Who", "The Who"),
        ("Theatre Royal House", "Theatre Royal House"),
        ("CBS", "CBS"),
        ("Lit (band)", ""),  # three letters that may be a word
        ("C++", ""),
        ("os.path", "os.path"),
        ("merge sort", "merge sort"),
        ("list", ""),  # a word
        ("Ur", ""),  # too short
        ("A" * 101, ""),
        ("(planet)", ""),
        ("", ""),
    ],
)
def test_what_a_text_would_call_a_page(title, name):
    assert name_of(title) == name


def test_a_hostile_title_takes_no_longer_than_it_is_long():
    # With a search that goes back over the spaces, each would take many minutes.
    for title in ("a" + " " * 10**6 + "b", "The" + " \t" * 10**6 + "an ox", "(" * 10**6):
        assert name_of(title) == ("an ox" if title.startswith("The") else "")


@given(st.text("ab ()\t", max_size=12))
def test_an_aside_is_what_a_regular_expression_finds(title):
    assert without_aside(title) == re.sub(r"\s*\([^()]*\)\Z", "", title.strip())


some_titles = st.lists(st.text("abAB1 .é", max_size=6), max_size=6)


@given(some_titles, st.data())
def test_names_are_whole_words_as_regular_expressions_find_them(titles, data):
    words = st.sampled_from([*titles, "a", "1", "-", " ", "é"])
    text = "".join(data.draw(st.lists(words, max_size=8)))
    expected = []
    for title in titles:
        name = name_of(title)
        whole = re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text)
        same = sum(name_of(other) == name for other in titles)
        expected.append(1 / same if name and whole else 0)
    assert Names("", ["Own", *titles]).named_by(0, text).tolist() == [0, *expected]


def test_who_is_named_by_hand():
    titles = ["Ada Lovelace", "Lord Byron", "Lord Byron", "London", "list", "Ada Lovelace (film)"]
    names = Names("where was Lovelace's father born", titles)
    passage = (
        "Ada Lovelace, a daughter of Lord Byron, kept a list. Londoners of NewLondon know her."
    )
    # Both passages of one page share it; its own name, a word and a part of a word count nothing.
    assert names.named_by(0, passage).tolist() == [0, 0.5, 0.5, 0, 0, 0]
    assert names.named_by(3, passage).tolist() == [0.5, 0.5, 0.5, 0, 0, 0.5]
    assert not names.named_by(0, "").any()


def test_a_name_in_the_query_tells_nothing_new():
    titles = ["Analytical Engine", "Lord Byron"]
    passage = "Lord Byron never saw the Analytical Engine."
    asked = Names("who thought of the Analytical Engine?", [*titles, "Essay"])
    assert asked.named_by(2, passage).tolist() == [0, 1, 0]
    assert Names("whose?", [*titles, "Essay"]).named_by(2, passage).tolist() == [1, 1, 0]


def test_hits_without_titles_may_name_others():
    named = Names("query", ["", "", "Lord Byron"]).named_by(0, "of Lord Byron")
    assert np.array_equal(named, [0, 0, 1])


@given(some_titles, st.data())
def test_who_names_a_hit_is_the_other_side_of_who_is_named(titles, data):
    words = st.sampled_from([*titles, "a", "1", "-", " ", "é"])
    texts = st.lists(words, max_size=8).map("".join)
    passages = [data.draw(texts) for _ in titles]
    query = data.draw(st.sampled_from(["", *titles]))
    names = Names(query, titles)
    named = np.array([names.named_by(hit, text) for hit, text in enumerate(passages)])
    naming = np.array([names.naming(hit, passages) for hit in range(len(titles))])
    assert naming.tolist() == named.T.tolist()


def test_a_link_goes_either_way_and_counts_by_what_the_other_adds():
    titles = ["Ada Lovelace", "Lord Byron", "Childe Harold", "Newstead", "Byron"]
    passages = [
        "Her father was Lord Byron.",  # names the poet
        "He lived at Newstead.",
        "A long poem by Lord Byron, printed in parts.",  # names him, too
        "An abbey.",
        "A hamlet of poets.",
    ]
    query = "which abbey did the poet of a poem printed in parts live at"
    words = ["which", "abbey", "did", "the", "poet", "of", "poem", "printed", "in", "parts", "live"]
    coverage = Coverage({word: rank for rank, word in enumerate(words)})
    texts = [f"{title} {passage}" for title, passage in zip(titles, passages, strict=True)]
    covered = coverage.of(query, texts)
    links = Links(query, titles, passages, covered)
    added = covered.added_to(1)
    assert min(added[0], added[2], added[3]) >= 0
    # Of what the poet's page lacks, a third counts for the abbey, which it names.
    lacked = covered.lacked_by(1) / 3
    assert links.of(1).tolist() == pytest.approx([added[0], 0, added[2], added[3] + lacked, 0])
    assert added[2] > added[3] > 0
    # The abbey holds "abbey" and is named by the poet alone, who holds nothing that it lacks.
    assert links.of(3).tolist() == [0, covered.added_to(3)[1], 0, 0, 0]


@pytest.mark.parametrize(
    ("passage", "gains"), [("Ada's father was Lord Byron.", False), ("", True)]
)
def test_what_a_page_that_answers_alone_names_gains_nothing(passage, gains):
    titles = ["Ada", "Lord Byron", "Augusta"]
    passages = [f"{passage} Lord Byron.", "A poet.", "The father of Medora."]
    texts = [f"{title} {passage}" for title, passage in zip(titles, passages, strict=True)]
    vocabulary = {word: rank for rank, word in enumerate(["father", "ada"])}
    covered = Coverage(vocabulary).of("father ada", texts)
    links = Links("father ada", titles, passages, covered)
    assert links.of(0).tolist() == pytest.approx([0, covered.lacked_by(0) / 3, 0])
    assert bool(links.of(0).any()) is gains


def test_a_hostile_window_takes_no_longer_than_it_is_long():
    # Looking for a name at every place of a text, letter by letter, would take minutes.
    count = 40
    titles = ["a" * 50 for _ in range(count)]
    passages = ["a" * 40_000 for _ in range(count)]
    names = Names("query", ["a" * 49, *titles])
    assert not names.naming(0, ["", *passages]).any()
