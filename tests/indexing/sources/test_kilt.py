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
    assert read(tmp_path, PAGE) == [
        Document(
            "290-1",
            "A",
            "A is the first letter of the alphabet.",
            {"page_id": "290", "paragraph": 1},
        ),
        Document(
            "290-2",
            "A",
            "It has several forms:\nthe upper case\nthe lower case",
            {"page_id": "290", "paragraph": 2},
        ),
        Document(
            "290-6",
            "A",
            "It comes from aleph.",
            {"page_id": "290", "paragraph": 6, "section": "History"},
        ),
        Document(
            "290-8",
            "A",
            "There it became alpha.",
            {"page_id": "290", "paragraph": 8, "section": "History / Greek"},
        ),
    ]


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
