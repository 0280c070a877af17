from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure
from indexing.sources import dpr
from indexing.sources.files import LineFile


def read(folder: Path, data: str) -> list[Document | Failure]:
    path = folder / "psgs_w100.tsv"
    path.write_bytes(data.encode())
    return list(dpr.documents(LineFile(path)))


def test_lines_become_documents_without_their_quotes(tmp_path: Path) -> None:
    data = (
        "id\ttext\ttitle\n"
        '1\t"Aaron ( or ; ""Ahärôn"") is a prophet."\tAaron\n'
        "2\tPlain text.\tAaron\n"
        '3\t"Quoted."\t"""Heroes"" (song)"\n'
        '4\tA "quote" inside\tTitle\n'
    )
    assert read(tmp_path, data) == [
        Document("1", "Aaron", 'Aaron ( or ; "Ahärôn") is a prophet.'),
        Document("2", "Aaron", "Plain text."),
        Document("3", '"Heroes" (song)', "Quoted."),
        Document("4", "Title", 'A "quote" inside'),
    ]


def test_the_header_may_be_missing(tmp_path: Path) -> None:
    assert read(tmp_path, "1\ttext\ttitle\n") == [Document("1", "title", "text")]


def test_wrong_lines_fail_alone(tmp_path: Path) -> None:
    short, open_quote, no_id, good = read(
        tmp_path, 'id\ttext\ttitle\n1\ttext\n2\t"never closed\ttitle\n\ttext\ttitle\n4\ta\tb\n'
    )
    assert isinstance(short, Failure)
    assert short.location == "psgs_w100.tsv:2"
    assert "3 tab-separated columns" in short.reason
    assert isinstance(open_quote, Failure)
    assert open_quote.excerpt == '2\t"never closed\ttitle'
    assert isinstance(no_id, Failure)
    assert good == Document("4", "b", "a")


@given(st.lists(st.text('ab\t" é\r', min_size=1).filter(str.strip)))
def test_every_line_is_accounted_for(tmp_path_factory: object, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("tsv")  # type: ignore[attr-defined]
    assert len(read(folder, "\n".join(lines))) == len(lines)
