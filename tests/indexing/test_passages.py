from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from indexing.passages import Splitter, passage_id, sentences, split_sentences
from indexing.records import Document, Failure, Record, Skip
from reranker.stages import SHIPPED
from reranker.tokens import Tokenizer, head_of

TOKENIZER = Tokenizer(SHIPPED / "passage" / "tokenizer.json")
WINDOW = 256


def split(text: str) -> list[str]:
    return [sentence.strip() for sentence in split_sentences(text)]


@pytest.mark.parametrize(
    "sentence",
    [
        "It was Dr. Smith who came.",
        "The U.S. Navy sailed.",
        "See e.g. Lucene, i.e. The library.",
        "J. R. R. Tolkien wrote it.",
        "It costs 3.50 Euro.",
        "Opus No. 5 is his best.",
        "Wait ... for it.",
        "He asked (why?) and left.",
        "See Fig. 3 and pp. 4 ff. of it.",
        "Das ist z. B. ein Satz.",
    ],
)
def test_what_does_not_end_a_sentence(sentence: str) -> None:
    assert split(sentence) == [sentence]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "Go." She went.', ['He said "Go."', "She went."]),
        ("It ends here.) Next.", ["It ends here.)", "Next."]),
        ("First line\n\nsecond paragraph", ["First line", "second paragraph"]),
        ("He said no. Then he left.", ["He said no.", "Then he left."]),
        ("It was 1999. 2000 came next.", ["It was 1999.", "2000 came next."]),
        ("これは文です。次の文です！終わり", ["これは文です。", "次の文です！", "終わり"]),
        ("「はい。」彼は言った。", ["「はい。」", "彼は言った。"]),
        ("Так. Это так.", ["Так.", "Это так."]),
        ("", []),
        ("  \n ", [""]),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert split(text) == expected


PROSE = st.text(
    st.sampled_from("abc ABC .!?…。」\n\t\"')(1é\u0301\u2028한字\ud800𝄞"), max_size=400
) | st.lists(st.sampled_from(["Dr.", "It", "ends.", "here", "U.S.", "no.", "5", "(why?)"])).map(
    " ".join
)


@given(PROSE | st.text(st.characters(), max_size=300))
@example("." * 5000)
@example("x" * 10_000)
@example(" " * 10_000)
@example("a b" * 5000)
def test_sentences_joined_are_the_text(text: str) -> None:
    assert "".join(split_sentences(text)) == text
    assert "".join(sentences(text)) == text
    assert all(split_sentences(text))


@given(
    PROSE | st.text(st.characters(), max_size=300),
    st.integers(10, 40),
    st.integers(0, 20),
    st.integers(1, 4),
)
@example("word " * 500, 10, 0, 1)
@example("한" * 200, 10, 5, 1)
@example("xqzw" * 300, 12, 6, 1)
@example("Donaudampfschifffahrt" * 60 + " end.", 10, 5, 2)
def test_passages_without_what_they_repeat_are_the_text(
    text: str, budget: int, overlap: int, times: int
) -> None:
    text = " ".join([text] * times)
    splitter = Splitter(TOKENIZER, WINDOW)
    splitter.overlap = overlap
    reached = 0
    starts = []
    for start, end in splitter.spans(text, budget):
        # Each begins within or behind the last one, and brings something new.
        assert start <= reached < end
        repeated = text[start:reached]
        assert TOKENIZER.count([repeated])[0] <= overlap
        assert TOKENIZER.count([text[start:end].strip()])[0] <= budget
        starts.append(start)
        reached = end
    assert reached == len(text)
    assert starts == sorted(set(starts))


def test_the_parts_of_a_word_are_passages_apart() -> None:
    # As a whole it is one unknown token; put together again its parts would be others.
    spans = Splitter(TOKENIZER, WINDOW).spans("x" * 10_000 + " end", 20)
    assert list(spans) == [(0, 4096), (4096, 8192), (8192, 10_004)]


def test_passages_fit_the_model_with_their_title() -> None:
    sentence = "The quick brown fox jumps over the lazy dog, number {}. "
    text = "".join(sentence.format(number) for number in range(300))
    for title in ("", "Foxes", "A very long title " * 40):
        parts = list(Splitter(TOKENIZER, WINDOW).parts(Document("1", title, text)))
        heads = [head_of(title, one.passage) for one in parts]
        found = TOKENIZER.windows(heads, [p.passage for p in parts], WINDOW, 32, 4)
        assert [len(one.windows) for one in found] == [1] * len(parts)
        assert all(len(one.windows[0]) <= WINDOW for one in found)
        # And they use the room there is.
        assert all(len(one.windows[0]) > WINDOW * 0.8 for one in found[:-1])


def test_a_passage_begins_with_the_end_of_the_one_before() -> None:
    text = "".join(f"Sentence number {number} is here. " for number in range(60))
    first, second, *_ = Splitter(TOKENIZER, 64, overlap=16).parts(Document("p", "T", text))
    last_two = "".join(list(split_sentences(first.passage))[-2:])
    assert TOKENIZER.count([last_two])[0] <= 16
    assert second.passage.startswith(last_two)
    first, second, *_ = Splitter(TOKENIZER, 64, overlap=0).parts(Document("p", "T", text))
    assert list(split_sentences(first.passage))[-1] not in second.passage


def test_what_fits_stays_as_it_is() -> None:
    document = Document("1", "t", "Short. Text.\n", {"a": 1}, url="u")
    splitter = Splitter(TOKENIZER)
    assert list(splitter.records([document])) == [document]
    assert (splitter.split, splitter.made) == (0, 0)
    whole = document._replace(passage="word " * 252, title="t")
    assert list(splitter.records([whole])) == [whole]
    longer = list(splitter.parts(whole._replace(passage="word " * 253)))
    assert len(longer) == 2
    for one in [whole, *longer]:  # and none takes two windows
        (found,) = TOKENIZER.windows(["t."], [one.passage], WINDOW, 32, 4)
        assert len(found.windows) == 1


def test_parts_keep_title_metadata_and_page_and_have_numbers() -> None:
    text = "".join(f"Sentence number {number} is here. " for number in range(60))
    document = Document("7", "T", text, {"a": 1}, section="s", url="u", vector=(1.0,))
    splitter = Splitter(TOKENIZER, 64)
    parts = list(splitter.records([document]))
    parts = [part for part in parts if isinstance(part, Document)]
    assert len(parts) > 4
    assert [part.position for part in parts] == list(range(len(parts)))
    for part in parts:
        assert part._replace(id="", passage="", position=None) == document._replace(
            id="", passage="", page_id="7", vector=()
        )
        assert part.id == passage_id("7", part.position or 0, part.passage)
        assert part.id.startswith(f"7-{part.position}-")
    assert (splitter.split, splitter.made) == (1, len(parts))


def test_passages_are_numbered_through_their_page() -> None:
    long = "".join(f"Sentence number {number} is here. " for number in range(20))
    stream: list[Record] = [
        Document("a-0", "T", "Short.", page_id="a", position=0),
        Document("a-1", "T", long, page_id="a", position=1),
        Skip("x", "y"),
        Document("a-2", "T", "Short.", page_id="a", position=2),
        Document("b-0", "T", "Short.", page_id="b", position=0),
        Document("c", "T", long),
        Document("d", "T", "Short."),
        Failure("x", "y"),
    ]
    found = list(Splitter(TOKENIZER, 64).records(stream))
    numbers = [(r.page_id, r.position) for r in found if isinstance(r, Document)]
    on_a = [number for page, number in numbers if page == "a"]
    assert on_a == list(range(len(on_a)))
    assert len(on_a) > 4
    assert numbers[len(on_a)] == ("b", 0)
    assert numbers[-1] == ("", None)
    assert [type(r) for r in found if not isinstance(r, Document)] == [Skip, Failure]


def test_a_second_run_has_the_same_ids_and_other_text_others() -> None:
    text = "".join(f"Sentence number {number} is here. " for number in range(60))
    runs = [
        [part.id for part in Splitter(TOKENIZER, 64).parts(Document("p", "T", body))]
        for body in (text, text, text.replace("number 50", "of mine"))
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0])
    changed = [old != new for old, new in zip(runs[0], runs[2], strict=True)]
    assert sum(changed) in (1, 2)  # the passage, and the next where it repeats it
    assert passage_id("p", 0, "\ud800")


@pytest.mark.parametrize(("tokens", "overlap"), [(15, 0), (64, 33), (64, -1)])
def test_what_cannot_be_cut_to_is_refused(tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="tokens"):
        Splitter(TOKENIZER, tokens, overlap)


@pytest.mark.parametrize(
    "text", ["x" * 1_000_000, "." * 1_000_000, " " * 1_000_000, "a." * 500_000, '."' * 500_000]
)
def test_hostile_texts_of_megabytes_are_cut(text: str) -> None:
    # Were it quadratic in anything, this would not end before the suite's time limit.
    assert "".join(sentences(text)) == text


def test_stretches_without_tokens_take_a_time_that_grows_with_their_number() -> None:
    text = "\u200b\n\n" * 60_000
    spans = list(Splitter(TOKENIZER, WINDOW).spans(text, 20))
    assert spans == [(0, len(text))]


def test_a_long_text_is_read_as_it_comes() -> None:
    taken = 0

    def records() -> Iterator[Record]:
        nonlocal taken
        for number in range(10):
            taken = number
            yield Document(str(number), "T", "Sentence one is here. " * 200)

    stream = Splitter(TOKENIZER, 64).records(records())
    next(stream)
    assert taken == 0
