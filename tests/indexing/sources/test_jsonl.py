import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure
from indexing.sources import jsonl
from indexing.sources.files import LineFile


def read(folder: Path, lines: list[str], *entries: str) -> list[Document | Failure]:
    path = folder / "docs.jsonl"
    path.write_text("\n".join(lines))
    return list(jsonl.documents(LineFile(path), jsonl.parse_map(entries)))


def test_fields_are_found_under_their_own_names(tmp_path: Path) -> None:
    line = '{"id": 1, "title": "t", "passage": "p", "price": 3}'
    assert read(tmp_path, [line]) == [Document("1", "t", "p", {"price": 3})]


def test_fields_are_found_under_mapped_names_and_paths(tmp_path: Path) -> None:
    line = '{"key": "k", "meta": {"headline": "t"}, "body": ["p", "q"], "more": "r", "id": "no"}'
    entries = ("id=key", "title=meta.headline", "passage=body", "passage=more")
    (document,) = read(tmp_path, [line], *entries)
    assert document == Document("k", "t", "p\nq\nr", {"meta": {"headline": "t"}, "id": "no"})


def test_a_dotted_name_is_found_before_a_path(tmp_path: Path) -> None:
    (document,) = read(tmp_path, ['{"a.b": "x", "a": {"b": "y"}, "id": 1}'], "title=a.b")
    assert isinstance(document, Document)
    assert document.title == "x"


def test_an_id_is_made_from_content_where_there_is_none(tmp_path: Path) -> None:
    lines = ['{"title": "t", "passage": "p"}', '{"title": "t", "passage": "q"}']
    first, second = read(tmp_path, lines)
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert first.id != second.id
    assert read(tmp_path, lines) == [first, second]


def test_a_mapped_id_must_be_there(tmp_path: Path) -> None:
    (failure,) = read(tmp_path, ['{"title": "t"}'], "id=key")
    assert isinstance(failure, Failure)
    assert "'key'" in failure.reason


def test_a_line_without_any_mapped_text_names_the_remedy(tmp_path: Path) -> None:
    (failure,) = read(tmp_path, ['{"id": 1, "headline": "t"}'])
    assert failure == Failure(
        "docs.jsonl:1", "none of 'title', 'passage' in it: name the fields with --map"
    )


@pytest.mark.parametrize("entry", ["title", "title=", "name=x", "=x", ""])
def test_an_unreadable_mapping_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="--map TARGET=FIELD"):
        jsonl.parse_map([entry])


def test_a_document_has_one_id() -> None:
    with pytest.raises(ValueError, match="one id"):
        jsonl.parse_map(["id=a", "id=b"])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_LIKELY = st.dictionaries(st.sampled_from(["id", "title", "passage", "x"]), _JSON)


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
