import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure, Record, Skip
from indexing.sources import open_source, trec
from indexing.sources.files import LineFile

FT = """\
<DOC>
<DOCNO>FT911-1</DOCNO>
<PROFILE>_AN-BENA7AAIFT</PROFILE>
<DATE>910514
</DATE>
<HEADLINE>
FT  14 MAY 91 / (CORRECTED) Jubilee of a jet that did what it
was designed to do
</HEADLINE>
<TEXT>
Correction (published 16th May 1991)
appended to this article.

SIR FRANK Whittle &amp; others flew.
</TEXT>
<PUB>The Financial Times
</PUB>
</DOC>
"""


def read(folder: Path, data: str | bytes) -> list[Record]:
    path = folder / "ft911_1"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(trec.documents(LineFile(path)))


def test_a_document_is_its_number_headline_and_text(tmp_path: Path) -> None:
    assert read(tmp_path, FT) == [
        Document(
            "FT911-1",
            "FT 14 MAY 91 / (CORRECTED) Jubilee of a jet that did what it was designed to do",
            "Correction (published 16th May 1991) appended to this article.\n\n"
            "SIR FRANK Whittle & others flew.",
        )
    ]


def test_marks_may_be_anywhere_on_a_line_and_in_lower_case(tmp_path: Path) -> None:
    data = (
        "<doc><docno> A-1 </docno><text>one</text></doc><DOC>\n"
        "<DOCNO>A-2</DOCNO><TEXT>two\n</TEXT></DOC>"
    )
    assert read(tmp_path, data) == [Document("A-1", "", "one"), Document("A-2", "", "two")]


def test_what_has_no_text_element_is_text_but_for_the_rest(tmp_path: Path) -> None:
    data = (
        "<DOC><DOCNO>WTX-1</DOCNO>\n<DOCHDR>\nhttp://a.example/ 1.2.3.4\nServer: x\n</DOCHDR>\n"
        "<URL>http://a.example/</URL><html><head><title>The &lt;title&gt;</title>"
        "<script>if (a < b) {}</script></head><h3>Not lost</h3><p>Body 1 < 2 here.</p></html></DOC>"
    )
    assert read(tmp_path, data) == [
        Document("WTX-1", "The <title>", "Not lost\n\nBody 1 < 2 here.", url="http://a.example/")
    ]


def test_several_texts_are_joined_and_an_empty_headline_is_none(tmp_path: Path) -> None:
    data = (
        "<DOC><DOCNO>1</DOCNO><HEADLINE> </HEADLINE><H3><TI>The title</TI></H3>"
        "<TEXT>one</TEXT><TEXT>two</TEXT></DOC>"
    )
    assert read(tmp_path, data) == [Document("1", "The title", "one\n\ntwo")]


def test_latin_1_is_read_too(tmp_path: Path) -> None:
    data = (
        b"<DOC><DOCNO>1</DOCNO><TEXT>caf\xe9</TEXT></DOC>\n<DOC><DOCNO>2</DOCNO>caf\xc3\xa9</DOC>"
    )
    assert [r.passage for r in read(tmp_path, data) if isinstance(r, Document)] == ["café", "café"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("<DOC><TEXT>no number</TEXT></DOC>", "without <DOCNO>"),
        ("<DOC><DOCNO></DOCNO>empty number</DOC>", "without <DOCNO>"),
        ("<DOC><DOCNO>9</DOCNO>never closed", "no </DOC> before the next"),
        ("stray text", "outside of <DOC>"),
        ("<DOC><DOCNO>9</DOCNO>a\0b</DOC>", "NUL"),
    ],
)
def test_what_is_broken_fails_alone(tmp_path: Path, broken: str, reason: str) -> None:
    good = "<DOC>\n<DOCNO>{}</DOCNO>\ntext</DOC>\n"
    first, failure, last = read(tmp_path, f"{good.format(1)}{broken}\n{good.format(2)}")
    assert isinstance(failure, Failure)
    assert failure.location == "ft911_1:4"
    assert reason in failure.reason
    assert failure.excerpt
    assert (first, last) == (Document("1", "", "text"), Document("2", "", "text"))


def test_a_file_that_ends_within_a_document_is_a_failure(tmp_path: Path) -> None:
    (failure,) = read(tmp_path, "<DOC><DOCNO>1</DOCNO>")
    assert isinstance(failure, Failure)
    assert "the file ends before </DOC>" in failure.reason


def test_declarations_and_elements_around_it_are_no_loss(tmp_path: Path) -> None:
    data = f'<?xml version="1.0"?>\n<root>\n{FT}</root>\n'
    assert [type(record) for record in read(tmp_path, data)] == [Document]


def test_a_document_without_text_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, "<DOC><DOCNO>1</DOCNO><TEXT> </TEXT></DOC>") == [
        Skip("ft911_1:1", "document '1' has no text")
    ]


def test_what_is_too_long_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trec, "MAX_LINE_BYTES", 1000)
    long = "<DOC><DOCNO>1</DOCNO>" + "more\n" * 1000
    failure, good = read(tmp_path, f"{long}</DOC>\n{FT}")
    assert isinstance(failure, Failure)
    assert "longer than 1000" in failure.reason
    assert isinstance(good, Document)
    first, second = read(tmp_path, f"{'stray ' * 1000}\n{FT}")
    assert isinstance(first, Failure)
    assert isinstance(second, Document)


def test_a_line_that_cannot_be_read_is_the_one_fault_of_its_document(tmp_path: Path) -> None:
    path = tmp_path / "ft"
    path.write_text(
        f"<DOC>\n<DOCNO>1</DOCNO>\n{'x' * 100}\n</DOC>\n{'y' * 100}\n<DOC>\n"
        "<DOCNO>2</DOCNO>\ntext</DOC>\n"
    )
    inside, outside, good = trec.documents(LineFile(path, max_line_bytes=50))
    assert isinstance(inside, Failure)
    assert isinstance(outside, Failure)
    assert (inside.location, outside.location) == ("ft:3", "ft:5")
    assert good == Document("2", "", "text")


def test_what_a_documents_second_fault_cuts_stays_cut(tmp_path: Path) -> None:
    path = tmp_path / "ft"
    whole = gzip.compress(b"<DOC>\n" + b"x" * 100 + b"\n" + os.urandom(9000))
    path.write_bytes(whole[:-4000])
    (failure,) = trec.documents(LineFile(path, max_line_bytes=50))
    assert isinstance(failure, Failure)
    assert failure.reason == "the line is 101 bytes long, more than 50"
    assert failure.cut


def test_a_file_of_a_folder_that_cannot_be_opened_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).write_text(f"<DOC><DOCNO>{name}</DOCNO>text</DOC>")
    opened = Path.open

    def refuse(path: Path, *options: str) -> object:
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return opened(path, *options)

    monkeypatch.setattr(Path, "open", refuse)
    first, failure, last = open_source(str(tmp_path), "trec").records
    assert isinstance(failure, Failure)
    assert failure.cut
    assert (first, last) == (Document("a", "", "text"), Document("c", "", "text"))


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "c", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<DOC><DOCNO>{name}</DOCNO>text</DOC>")
    records = open_source(str(tmp_path), "trec").records
    assert [r.id for r in records if isinstance(r, Document)] == ["c", "a/1", "b/2"]


PIECES = ["<DOC>", "</DOC>", "<DOCNO>1</DOCNO>", "<DOCNO>", "<TEXT>", "</TEXT>", "x", "\n", "<P>"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_whatever_is_read_every_document_is_a_record(
    tmp_path_factory: pytest.TempPathFactory, data: str
) -> None:
    records = read(tmp_path_factory.mktemp("trec"), data)
    outside = sum(isinstance(r, Failure) and "outside" in r.reason for r in records)
    assert len(records) - outside == data.count("<DOC>")


@pytest.mark.parametrize("part", ["<", "<p", "<DOCNO>", "\n ", "<TITLE>x", "&#", "<TEXT>"])
def test_hostile_markup_of_megabytes_is_read(tmp_path: Path, part: str) -> None:
    # Were it quadratic in anything, this would not end before the suite's time limit.
    data = f"<DOC><DOCNO>1</DOCNO>{part * (1_000_000 // len(part))}</DOC>"
    assert len(read(tmp_path, data)) == 1
