import csv
import datetime
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure
from indexing.sources import SourceError, open_source, tables
from indexing.sources.fields import FieldMap
from indexing.sources.files import LineFile


def read(folder: Path, data: str | bytes, fields: FieldMap | None = None) -> list[Any]:
    path = folder / "some.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(tables.csv_documents(LineFile(path), fields))


def test_rows_become_documents_by_the_header(tmp_path: Path) -> None:
    data = 'id,title,passage,price\n1,"A, B","He said ""go"".",3\n2,C,,\n'
    assert read(tmp_path, data) == [
        Document("1", "A, B", 'He said "go".', {"price": "3"}),
        Document("2", "C", ""),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_separates_columns_is_told_by_the_header(tmp_path: Path, delimiter: str) -> None:
    data = "\ufeffkey,head line,body\r\n1,a,b\r\n".replace(",", delimiter)
    fields = FieldMap("key", ("head line",), ("body",))
    assert read(tmp_path, data, fields) == [Document("1", "a", "b")]


def test_line_ends_in_quotes_belong_to_the_value(tmp_path: Path) -> None:
    data = 'id,passage\n1,"one\n\ntwo"\n\n2,three\n'
    assert read(tmp_path, data) == [Document("1", "", "one\n\ntwo"), Document("2", "", "three")]


def test_wrong_rows_fail_alone(tmp_path: Path) -> None:
    data = b'id,title\n1\n\xff\n2,a\n,b\n3,"never closed\n4,c\n'
    short, bytes_, good, no_id, open_ = read(tmp_path, data, FieldMap("id"))
    assert "2 columns are needed, as in the header, not 1" in short.reason
    assert "not UTF-8" in bytes_.reason
    assert good == Document("2", "a", "")
    assert "'id'" in no_id.reason
    assert "still open where the file ends" in open_.reason
    assert open_.location == "some.csv:6"
    assert open_.reason.endswith("lines behind it that it took in: 1")
    assert [one.cut for one in (short, bytes_, no_id, open_)] == [False, False, False, True]


def test_a_quote_that_is_never_closed_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    failure, *rest = read(tmp_path, 'id,title\n1,"open\n' + "2,some text\n" * 300)
    assert isinstance(failure, Failure)
    assert "still open at some.csv:" in failure.reason
    assert failure.cut
    assert len(rest) > 200
    assert all(isinstance(one, Document) for one in rest)


def test_a_quote_within_a_value_is_text(tmp_path: Path) -> None:
    rows = [f'{n},Pipe {n}" wide{" x" * (n % 3)}' for n in range(99)]
    data = 'id,ti"tle\n' + "\n".join([*rows, '99,"6"" pipe, 5"" wide\n"" long"', "100,b"]) + "\n"
    found = read(tmp_path, data, FieldMap("id", ('ti"tle',)))
    assert [one.id for one in found] == [str(n) for n in range(101)]
    assert [f"{one.id},{one.title}" for one in found[:99]] == rows
    assert found[99].title == '6" pipe, 5" wide\n" long'


def test_a_row_of_many_lines_that_is_none_says_so(tmp_path: Path) -> None:
    broken, good = read(tmp_path, 'id,title\n1,"open\n2,b\n3,"c",d\n4,e\n')
    assert (
        "2 columns are needed, as in the header, not 3; lines behind it that it took in: 2"
        in broken.reason
    )
    assert broken.cut
    assert good == Document("4", "e", "")
    broken, good = read(tmp_path, b'id,title\n1,"open\n2,b\n\xff\n4,e\n')[::2]
    assert "broken at some.csv:4; lines behind it that it took in: 1" in broken.reason
    assert broken.cut


def test_a_header_that_is_none_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(row: str, delimiter: str) -> list[str]:
        raise csv.Error("some reason")

    monkeypatch.setattr(tables, "_cells", fail)
    assert read(tmp_path, "id,title\n1,a\n") == [
        Failure("some.csv:1", "not CSV: some reason", "id,title", cut=True)
    ]


@given(st.lists(st.text('a," ;'), max_size=9), st.booleans())
def test_a_quote_is_open_where_csv_finds_it_open(lines: list[str], quoted: bool) -> None:
    """The slow way: csv itself takes the next line into the row, or does not."""
    row = 'x,"' if quoted else "x"
    for line in lines:
        start = f"{row}\n" if quoted else ""
        rows = list(csv.reader([f"{start}{line}\n", "END\n"]))
        quoted = tables._stays_quoted(line, quoted, ",")
        assert (rows[-1:] == [["END"]]) == (not quoted)
        row = f"{start}{line}"


def test_a_long_value_is_read(tmp_path: Path) -> None:
    (document,) = read(tmp_path, f"id,title\n1,{'x' * 1_000_000}\n")
    assert len(document.title) == 1_000_000


@given(
    st.lists(
        st.lists(st.text('ab," \n;é', max_size=5), min_size=2, max_size=2).filter(
            lambda row: row[1].strip()
        )
    )
)
def test_what_a_csv_writer_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["other", "title"])
    writer.writerows(rows)
    found = read(tmp_path_factory.mktemp("csv"), out.getvalue())
    assert [one.title for one in found] == [row[1] for row in rows]
    assert [one.metadata.get("other", "") for one in found] == [row[0] for row in rows]


@given(st.lists(st.text('ab,"\0é', min_size=1).filter(str.strip)))
def test_no_line_is_lost_silently(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    data = "\n".join(["id,title", *lines])
    found = read(tmp_path_factory.mktemp("csv"), data)
    if '"' not in data:
        assert len(found) == len(lines)
    assert bool(found) == bool(lines)


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return str(path)


def test_parquet_rows_become_documents(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        {
            "key": [1, 2],
            "head": ["t", None],
            "body": [["p", "q"], ["r"]],
            "when": [datetime.datetime(2024, 1, 2), datetime.datetime(2024, 1, 3)],
            "price": [Decimal("1.50"), None],
            "raw": [b"text", b"\xff"],
            "deep": [{"a": [datetime.date(2024, 1, 2)]}, None],
            "vector": [[1.0, 2.0], [3.0, 4.0]],
        },
    )
    source = open_source(path, None, FieldMap("key", ("head",), ("body",), "vector"))
    assert source.fraction() == 0.0
    assert list(source.records) == [
        Document(
            "1",
            "t",
            "p\nq",
            {
                "when": "2024-01-02T00:00:00",
                "price": "1.50",
                "raw": "text",
                "deep": {"a": ["2024-01-02"]},
            },
            vector=(1.0, 2.0),
        ),
        Document("2", "", "r", {"when": "2024-01-03T00:00:00", "raw": "/w=="}, vector=(3.0, 4.0)),
    ]
    assert source.fraction() == 1.0


def test_many_rows_come_in_their_order(tmp_path: Path) -> None:
    ids = [str(number) for number in range(2_000)]
    path = write(tmp_path / "a.parquet", {"id": ids, "title": ids}, row_group_size=300)
    assert [one.id for one in open_source(path).records if isinstance(one, Document)] == ids


def far(type_: Any, value: int) -> Any:
    """600 values of which one is beyond what Python can hold."""
    integer = pyarrow.int32() if type_ == pyarrow.date32() else pyarrow.int64()
    return pyarrow.array([value if n == 300 else n for n in range(600)], integer).cast(type_)


@pytest.mark.parametrize(
    "column",
    [
        far(pyarrow.timestamp("us"), 400_000_000_000_000_000),
        far(pyarrow.date32(), 9_000_000),
        far(pyarrow.duration("s"), 9 * 10**17),
    ],
    ids=lambda column: str(column.type),
)
def test_what_python_cannot_hold_fails_its_row_alone(tmp_path: Path, column: Any) -> None:
    ids = [str(number) for number in range(600)]
    path = write(tmp_path / "a.parquet", {"id": ids, "title": ids, "when": column})
    found = list(open_source(path).records)
    failure = found.pop(300)
    assert isinstance(failure, Failure)
    assert failure.location == "a.parquet:301"
    assert "field 'when' cannot be read" in failure.reason
    assert not failure.cut
    assert [one.id for one in found if isinstance(one, Document)] == [*ids[:300], *ids[301:]]


def test_nanoseconds_are_read_as_microseconds(tmp_path: Path) -> None:
    instant = 1_700_000_000_000_001_999
    columns = {
        "id": ["1"],
        "title": ["t"],
        "when": pyarrow.array([instant], pyarrow.timestamp("ns")),
        "zoned": pyarrow.array([instant], pyarrow.timestamp("ns", "UTC")),
        "took": pyarrow.array([2_500_001_999], pyarrow.duration("ns")),
        "at": pyarrow.array([1_999], pyarrow.time64("ns")),
        "deep": pyarrow.array(
            [[{"a": instant}]],
            pyarrow.list_(pyarrow.struct([("a", pyarrow.timestamp("ns"))])),
        ),
    }
    (found,) = open_source(write(tmp_path / "a.parquet", columns)).records
    when = "2023-11-14T22:13:20.000001"
    assert found == Document(
        "1",
        "t",
        "",
        {
            "when": when,
            "zoned": f"{when}+00:00",
            "took": 2.500001,
            "at": "00:00:00.000001",
            "deep": [{"a": when}],
        },
    )


def test_rows_without_text_fail_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"id": ["1", "2"], "title": [None, "t"]})
    failure, good = open_source(path).records
    assert isinstance(failure, Failure)
    assert failure.location == "a.parquet:1"
    assert good == Document("2", "t", "")


def test_what_is_no_parquet_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not at all")
    with pytest.raises(SourceError, match="is no Parquet file"):
        open_source(str(path))


def test_damaged_parquet_gives_what_there_is_and_a_failure(tmp_path: Path) -> None:
    ids = [f"{number:09}" * 9 for number in range(3_000)]
    path = tmp_path / "a.parquet"
    options = {"row_group_size": 1_000, "use_dictionary": False, "compression": "gzip"}
    write(path, {"id": ids, "title": ids}, **options)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 200 : middle + 200] = b"\xff" * 400
    path.write_bytes(bytes(data))
    *documents, failure = open_source(str(path)).records
    assert len(documents) >= 512
    assert isinstance(failure, Failure)
    assert "the rest of the file cannot be read" in failure.reason
