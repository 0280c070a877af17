import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure
from indexing.sources import jsonl
from indexing.sources.fields import FieldMap
from indexing.sources.files import LineFile


def read(
    folder: Path, lines: list[str], fields: FieldMap | None = None
) -> list[Document | Failure]:
    path = folder / "docs.jsonl"
    path.write_text("\n".join(lines))
    return list(jsonl.documents(LineFile(path), fields))


def test_fields_are_found_under_their_own_names(tmp_path: Path) -> None:
    line = '{"id": 1, "title": "t", "passage": "p", "price": 3}'
    assert read(tmp_path, [line]) == [Document("1", "t", "p", {"price": 3})]


def test_fields_are_found_under_mapped_names_and_paths(tmp_path: Path) -> None:
    line = '{"key": "k", "meta": {"headline": "t"}, "body": ["p", "q"], "more": "r", "id": "no"}'
    fields = FieldMap("key", ("meta.headline",), ("body", "more"))
    (document,) = read(tmp_path, [line], fields)
    assert document == Document("k", "t", "p\nq\nr", {"meta": {"headline": "t"}, "id": "no"})


def test_a_dotted_name_is_found_before_a_path(tmp_path: Path) -> None:
    line = '{"a.b": "x", "a": {"b": "y"}, "id": 1}'
    (document,) = read(tmp_path, [line], FieldMap(title=("a.b",)))
    assert isinstance(document, Document)
    assert document.title == "x"


@pytest.mark.parametrize("name", ["passage", "text", "contents", "body"])
def test_the_passage_is_found_under_its_usual_names(tmp_path: Path, name: str) -> None:
    (document,) = read(tmp_path, [json.dumps({"id": 1, "title": "t", name: "p", "other": "o"})])
    assert document == Document("1", "t", "p", {"other": "o"})


def test_only_one_of_the_usual_names_is_taken_and_the_rest_is_kept(tmp_path: Path) -> None:
    (document,) = read(tmp_path, ['{"id": 1, "body": "b", "text": "t"}'])
    assert document == Document("1", "", "t", {"body": "b"})


def test_what_a_document_has_of_its_own_is_told_from_metadata(tmp_path: Path) -> None:
    own = {"page_id": 7, "position": 3, "section": "s", "url": "u"}
    line = {"id": 1, "title": "t", **own, "metadata": {"a": 1, "b": 2}, "a": 3, "empty": None}
    (document,) = read(tmp_path, [json.dumps(line)])
    assert document == Document(
        "1", "t", "", {"a": 3, "b": 2}, page_id="7", position=3, section="s", url="u"
    )


def test_what_has_the_name_but_not_the_kind_of_a_documents_own_is_metadata(tmp_path: Path) -> None:
    other = {"page_id": [1], "position": -1, "section": 3, "url": {}, "metadata": "m"}
    (document,) = read(tmp_path, [json.dumps({"id": 1, "title": "t", **other})])
    assert document == Document("1", "t", "", other)


def test_a_vector_is_a_list_of_finite_numbers(tmp_path: Path) -> None:
    rows = [{"id": 1, "title": "t", "v": v} for v in ([1, 0.5], None, "x", [1, "x"], [True])]
    lines = [json.dumps(row) for row in rows]
    lines.append('{"id": 1, "title": "t", "v": [1e999]}')
    good, without, *bad = read(tmp_path, lines, FieldMap(vector="v"))
    assert good == Document("1", "t", "", vector=(1.0, 0.5))
    assert without == Document("1", "t", "")
    assert len(bad) == 4
    assert all(isinstance(one, Failure) and "'v'" in one.reason for one in bad)


def test_an_id_is_made_from_content_where_there_is_none(tmp_path: Path) -> None:
    lines = ['{"title": "t", "passage": "p"}', '{"title": "t", "passage": "q"}']
    first, second = read(tmp_path, lines)
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert first.id != second.id
    assert read(tmp_path, lines) == [first, second]


def test_a_mapped_id_must_be_there(tmp_path: Path) -> None:
    (failure,) = read(tmp_path, ['{"title": "t"}'], FieldMap("key"))
    assert isinstance(failure, Failure)
    assert "'key'" in failure.reason


def test_a_line_without_any_mapped_text_names_the_remedy(tmp_path: Path) -> None:
    (failure,) = read(tmp_path, ['{"id": 1, "headline": "t"}'])
    assert failure == Failure(
        "docs.jsonl:1",
        "none of 'title', 'passage', 'text', 'contents', 'body' in it, but 'id', 'headline':"
        " name the fields with --title-field and --passage-field",
        "{'id': 1, 'headline': 't'}",
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_NAMES = ["id", "title", "passage", "text", "x", "page_id", "position", "url", "metadata"]
_LIKELY = st.dictionaries(st.sampled_from(_NAMES), _JSON)


@given(
    st.lists(
        st.one_of(_JSON.map(json.dumps), _LIKELY.map(json.dumps), st.text('{}[]"a:,1', min_size=1))
    )
)
def test_every_line_is_read_or_failed(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    records = read(tmp_path_factory.mktemp("lines"), lines)
    assert len(records) == len(lines)
    for record in records:
        if isinstance(record, Document):
            assert record.id
        else:
            assert record.reason
