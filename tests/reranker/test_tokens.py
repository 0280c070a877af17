"""Tokenizing: limits kept, truncation counted, hostile text survived."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.stages import SHIPPED
from reranker.tokens import Tokenizer
from tests.reranker.conftest import WORDS, small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    path.write_text(small_tokenizer(), "utf-8")
    return Tokenizer(path)


@pytest.fixture(scope="module")
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer(SHIPPED / "passage" / "tokenizer.json")


words = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)


def test_a_text_is_closed_by_the_special_tokens(tokenizer):
    (encoded,) = tokenizer.encode(["merge sorted lists"], 10)
    assert encoded.ids.tolist() == [2, 4, 5, 7, 3]
    assert not encoded.truncated


def test_an_empty_text_is_the_two_special_tokens(tokenizer):
    assert tokenizer.encode([""], 10)[0].ids.tolist() == [2, 3]


@given(text=words, limit=st.integers(3, 40))
@settings(deadline=None)
def test_the_limit_holds_and_truncation_is_said(tokenizer, text, limit):
    (encoded,) = tokenizer.encode([text], limit)
    length = len(text.split()) + 2
    assert len(encoded.ids) == min(length, limit)
    assert encoded.truncated == (length > limit)
    assert encoded.ids[-1] == 3


@given(text=st.text(max_size=40))
@settings(deadline=None)
def test_a_text_is_read_among_many_as_alone(shipped_tokenizer, text):
    (alone,) = shipped_tokenizer.encode([text], 48)
    among = shipped_tokenizer.encode([text, *["merge sorted lists"] * 400], 48)[0]
    assert among.ids.tolist() == alone.ids.tolist()
    assert among.truncated == alone.truncated


@given(text=words, most=st.integers(0, 40))
@settings(deadline=None)
def test_a_head_is_the_first_tokens(tokenizer, text, most):
    head, size = tokenizer.head(text, most)
    assert text.startswith(head)
    assert head.split() == text.split()[:most]
    assert size == len(head.split())


@pytest.mark.parametrize("text", ["\ud800 merge", "m\u0301erge\u202e lists", " " * 1000, "\x00"])
def test_a_head_of_any_text_is_its_start(tokenizer, text):
    for most in (0, 1, 2, 10**12):
        head, size = tokenizer.head(text, most)
        assert text.startswith(head)
        assert size <= most
        assert tokenizer.count([head]) == [size]


def test_a_head_ends_within_a_word(shipped_tokenizer):
    text = "electroencephalography of sleepers"
    (whole,) = shipped_tokenizer.encode([text], 100)
    for most in range(len(whole.ids) - 1):
        head, size = shipped_tokenizer.head(text, most)
        (found,) = shipped_tokenizer.encode([head], 100)
        assert size == most == len(found.ids) - 2
        assert found.ids.tolist()[1:-1] == whole.ids.tolist()[1 : 1 + most]


FILLERS = ["the", "of", "(", "-"]


@pytest.fixture(scope="module")
def leaving_out(shipped_tokenizer) -> Tokenizer:
    return Tokenizer(SHIPPED / "passage" / "tokenizer.json", FILLERS)


@given(
    items=st.lists(st.sampled_from([*FILLERS, "merge", "lists", "c++"]), min_size=1, max_size=20),
    limit=st.integers(3, 12),
)
@settings(deadline=None)
def test_a_text_is_read_as_if_what_is_left_out_were_not_there(
    shipped_tokenizer, leaving_out, items, limit
):
    said = [item for item in items if item not in FILLERS] or items  # or there would be nothing
    texts, plain = [" ".join(items), "heap"], [" ".join(said), "heap"]
    for found, expected in zip(
        leaving_out.encode(texts, limit), shipped_tokenizer.encode(plain, limit), strict=True
    ):
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.truncated == expected.truncated
    assert leaving_out.count(texts) == shipped_tokenizer.count(plain)
    (found,) = leaving_out.windows(["heap."], texts[:1], limit + 5, 2, 3)
    (expected,) = shipped_tokenizer.windows(["heap."], plain[:1], limit + 5, 2, 3)
    assert [row.tolist() for row in found.windows] == [row.tolist() for row in expected.windows]
    assert found.truncated == expected.truncated


def test_of_a_query_nothing_is_left_out(shipped_tokenizer, leaving_out):
    asked = ["who is the head of the (former) band?"]
    (whole,) = shipped_tokenizer.encode(asked, 40)
    assert leaving_out.encode_queries(asked, 40)[0].ids.tolist() == whole.ids.tolist()
    assert leaving_out.encode_queries(asked, 5)[0].truncated


def test_a_token_to_leave_out_that_there_is_not_is_named():
    with pytest.raises(ValueError, match='left_out: the tokenizer has no token "The"'):
        Tokenizer(SHIPPED / "passage" / "tokenizer.json", ["the", "The"])


@pytest.mark.parametrize("given_", ["()", 5, [1], ["(", None]])
def test_what_is_left_out_has_to_be_a_list_of_tokens(given_):
    with pytest.raises(ValueError, match=r"left_out: .* is no list of tokens"):
        Tokenizer.of(SHIPPED / "passage", {"left_out": given_})


@given(head=words, body=words, limit=st.integers(8, 40), most=st.integers(1, 4))
@settings(deadline=None)
def test_windows_cover_the_text_or_say_that_they_do_not(tokenizer, head, body, limit, most):
    stride = 2
    (found,) = tokenizer.windows([head], [body], limit, stride, most)
    assert 1 <= len(found.windows) <= most
    assert all(len(window) <= limit for window in found.windows)
    n_head, n_body = len(head.split()), len(body.split())
    whole = tokenizer.encode([f"{head} {body}"], 1000)[0].ids.tolist()
    if n_head + n_body + 2 <= limit:
        assert [w.tolist() for w in found.windows] == [whole]
        assert not found.truncated
        return
    # Without their heads and overlaps the windows are the text from its start.
    shown = min(n_head, limit // 4) if n_body else min(n_head, limit - 2)
    rebuilt: list[int] = []
    for place, window in enumerate(found.windows):
        inner = window.tolist()[1 + shown : -1]
        rebuilt += inner if place == 0 else inner[stride:]
    complete = tokenizer.encode([body], 1000)[0].ids.tolist()[1:-1]
    assert complete[: len(rebuilt)] == rebuilt
    assert found.truncated == (len(rebuilt) < len(complete) or shown < n_head)


@given(st.lists(st.text(st.characters(codec=None), max_size=80), max_size=5))
@settings(deadline=None)
def test_any_text_is_encoded_surrogates_included(tokenizer, texts):
    assert len(tokenizer.encode(texts, 16)) == len(texts)


def test_a_text_of_megabytes_is_cut_unseen_and_counted(tokenizer):
    (encoded,) = tokenizer.encode(["merge " * 500_000], 12)
    assert encoded.truncated
    assert len(encoded.ids) == 12
    (spaces,) = tokenizer.encode([" " * 1_000_000 + "merge"], 12)
    assert spaces.truncated


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not complete"):
        Tokenizer(tmp_path / "tokenizer.json")


@given(st.text(max_size=100) | words)
@settings(deadline=None)
def test_tokens_are_counted_whole_and_found_where_they_start(tokenizer, text):
    (count,) = tokenizer.count([text])
    (encoded,) = tokenizer.encode([text], 1000)
    assert count == len(encoded.ids) - 2
    starts = tokenizer.starts(text).tolist()
    assert len(starts) == count
    assert starts == sorted(starts)
    assert all(0 <= start < len(text) for start in starts)


def test_a_token_starts_at_a_character_not_at_a_byte(tokenizer):
    assert tokenizer.starts("merge\ud800 é𝄞 sorted lists").tolist()[-2:] == [10, 17]
