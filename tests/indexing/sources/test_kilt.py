import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure, Record, Skip
from indexing.sources import kilt
from indexing.sources.files import LineFile

PAGE = {
    "_id": "290",
    "wikipedia_id": "290",
    "wikipedia_title": "A",
    "text": [
        "A\n",
        "A is the first letter of the alphabet.\n",
        "It has several forms:\n",
        "BULLET::::- the upper case\n",
        "BULLET::::- the lower case\n",
        "Section::::History.\n",
        "It comes from aleph.\n",
        "Section::::History.:Greek.\n",
        "There it became alpha.\n",
        "Section::::See also.\n",
    ],
    "anchors": [],
    "categories": "Vowels",
}


def read(folder: Path, *pages: object) -> list[Record]:
    path = folder / "pages.json"
    path.write_text("\n".join(json.dumps(page) for page in pages))
    return list(kilt.documents(LineFile(path)))


def test_paragraphs_become_passages_with_title_and_section(tmp_path: Path) -> None:
    def passage(position: int, start: int, text: str, section: str = "") -> Document:
        metadata = {"paragraph": start}
        return Document(
            f"290-{start}", "A", text, metadata, page_id="290", position=position, section=section
        )

    assert read(tmp_path, PAGE) == [
        passage(0, 1, "A is the first letter of the alphabet."),
        passage(1, 2, "It has several forms:\nthe upper case\nthe lower case"),
        passage(2, 6, "It comes from aleph.", "History"),
        passage(3, 8, "There it became alpha.", "History / Greek"),
    ]


def test_links_go_with_their_paragraph_and_the_address_with_all(tmp_path: Path) -> None:
    anchors = [
        {"text": "alphabet", "href": "Alphabet", "paragraph_id": 1, "start": 28, "end": 36},
        {"text": "case", "href": "Letter%20case", "paragraph_id": 4, "start": 10, "end": 14},
        {"text": "nowhere", "href": "X", "paragraph_id": 99},
        {"text": None, "href": "X", "paragraph_id": 1},
        "no link",
    ]
    history = {"url": "https://en.wikipedia.org/w/index.php?title=A&oldid=1"}
    found = read(tmp_path, {**PAGE, "anchors": anchors, "history": history})
    links = [one.metadata.get("anchors") for one in found if isinstance(one, Document)]
    assert links == [
        [{"text": "alphabet", "href": "Alphabet"}],
        [{"text": "case", "href": "Letter%20case"}],
        None,
        None,
    ]
    assert {one.url for one in found if isinstance(one, Document)} == {history["url"]}


def test_what_is_no_list_of_links_is_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, {**PAGE, "anchors": {"a": 1}, "history": []}) == read(tmp_path, PAGE)


def test_a_long_list_is_cut_into_passages(tmp_path: Path) -> None:
    items = [f"BULLET::::- item {number} of the list" for number in range(200)]
    passages = read(tmp_path, {**PAGE, "text": ["A", "Section::::List.", *items]})
    assert len(passages) > 3
    words = [len(p.passage.split()) for p in passages if isinstance(p, Document)]
    assert sum(words) == 200 * 5
    assert max(words) < 160


def test_a_page_without_text_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, {**PAGE, "text": ["A\n", "Section::::Empty."]}) == [
        Skip("pages.json:1", "page 'A' has no text")
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wikipedia_title": " "}, "'wikipedia_title'"),
        ({"text": "one string"}, "'text'"),
        ({"text": ["a", None]}, "'text'"),
        ({"wikipedia_id": None}, "'wikipedia_id'"),
    ],
)
def test_a_wrong_page_is_named(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    (failure,) = read(tmp_path, {**PAGE, **change})
    assert isinstance(failure, Failure)
    assert failure.location == "pages.json:1"
    assert reason in failure.reason


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "Section::::", "BULLET::::- "]),
            st.text("abc:. ", max_size=12),
        ).map("".join)
    )
)
def test_no_paragraph_is_lost_and_ids_are_unique(
    tmp_path_factory: pytest.TempPathFactory, paragraphs: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("page")
    records = read(folder, {**PAGE, "text": paragraphs})
    passages = [record for record in records if isinstance(record, Document)]
    assert len({passage.id for passage in passages}) == len(passages)
    expected = [
        " ".join(paragraph.removeprefix("BULLET::::- ").split())
        for paragraph in paragraphs
        if not paragraph.startswith("Section::::")
    ]
    found = [line for passage in passages for line in passage.passage.split("\n")]
    assert found == [paragraph for paragraph in expected if paragraph]
