import bz2
import gzip
import importlib
import io
import json
import lzma
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from indexing.records import EXCERPT_CHARACTERS, Failure, excerpt
from indexing.sources.files import MAX_LINE_BYTES, Line, LineFile, Object, identifier, text


def zstd_compress(data: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    compressed: bytes = importlib.import_module(name).compress(data)
    return compressed


def read(folder: Path, data: bytes, **options: int) -> list[Line | Failure]:
    path = folder / "some.jsonl"
    path.write_bytes(data)
    return list(LineFile(path, **options).lines())


def test_lines_carry_their_numbers_and_no_line_ends(tmp_path: Path) -> None:
    assert read(tmp_path, b"a\r\n\n  \nb") == [Line("some.jsonl:1", "a"), Line("some.jsonl:4", "b")]


def test_separators_inside_of_a_line_do_not_end_it(tmp_path: Path) -> None:
    inside = "a\u2028b\x0bc\x85d\re"
    assert read(tmp_path, inside.encode()) == [Line("some.jsonl:1", inside)]


def test_a_byte_order_mark_belongs_to_no_line(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbf{}\n") == [Line("some.jsonl:1", "{}")]


def test_bad_utf8_fails_its_line_alone(tmp_path: Path) -> None:
    first, bad, last = read(tmp_path, b"a\n\xff\xfe\nb\n")
    assert (first.location, last.location) == ("some.jsonl:1", "some.jsonl:3")
    assert isinstance(bad, Failure)
    assert bad.location == "some.jsonl:2"
    assert "UTF-8" in bad.reason


@pytest.mark.parametrize("length", [10, 11, 25, 3_000_000])
def test_a_line_that_is_too_long_fails_alone(tmp_path: Path, length: int) -> None:
    records = read(tmp_path, b"a\n" + b"x" * length + b"\nb\n", max_line_bytes=9)
    assert [type(record) for record in records] == [Line, Failure, Line]
    assert isinstance(records[1], Failure)
    assert f"{length + (1 if length > 9 else 0)} bytes long" in records[1].reason
    assert len(records[1].excerpt) <= EXCERPT_CHARACTERS
    assert records[2] == Line("some.jsonl:3", "b")


def test_a_line_of_just_the_greatest_length_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, b"x" * 9 + b"\nb", max_line_bytes=9)[0] == Line("some.jsonl:1", "x" * 9)


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    assert read(tmp_path, gzip.compress(b"a\nb\n")) == [
        Line("some.jsonl:1", "a"),
        Line("some.jsonl:2", "b"),
    ]


def test_a_cut_gzip_file_gives_what_there_is_and_a_failure(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"line %d\n" % number for number in range(5000)))
    *lines, failure = read(tmp_path, whole[: len(whole) // 2])
    assert lines
    assert isinstance(failure, Failure)
    assert "the rest of the file" in failure.reason


def test_a_damaged_gzip_file_is_a_failure(tmp_path: Path) -> None:
    damaged = bytearray(gzip.compress(b"some text\n" * 100))
    damaged[15:25] = b"\xff" * 10
    assert isinstance(read(tmp_path, bytes(damaged))[-1], Failure)


def test_the_fraction_runs_from_zero_to_one(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_bytes(b"0123456789\n" * 200_000)
    file = LineFile(path)
    lines = file.lines()
    assert file.fraction() == 0.0
    for _ in range(100_000):
        next(lines)
    assert 0.4 < file.fraction() < 0.6
    assert sum(1 for _ in lines) == 100_000
    assert file.fraction() == 1.0


def test_another_thread_may_ask_how_far_it_is_while_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b"{}\n")
    file = LineFile(path)
    asked = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with file.opened() as stream:
            tell = file._position

            def slowly() -> int:
                asked.set()
                time.sleep(0.5)  # in which the file would be closed
                return tell()

            file._position = slowly
            fraction = pool.submit(file.fraction)
            assert asked.wait(60)
            stream.read()
        assert fraction.result() == 1.0


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LineFile(tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a list"),
        ("null", "not nothing"),
        ("3", "not a number"),
        ('{"a": NaN}', "NaN is not a JSON value"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
    ],
)
def test_what_is_no_json_object_fails(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n')
    good, bad = LineFile(path).objects()
    assert good == Object("some.jsonl:1", {"a": 1})
    assert isinstance(bad, Failure)
    assert reason in bad.reason


# How gzip, bzip2, xz and Zstandard begin.
MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


@example([MAGIC[0]], False)
@example([MAGIC[1], b"\x00"], False)
@example([MAGIC[2] + b"x"], False)
@example([MAGIC[3], b"x"], False)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2).map(
                lambda fields: json.dumps(fields).encode()
            ),
        )
    ),
    st.booleans(),
)
def test_every_line_is_an_object_or_a_failure(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], zipped: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "some.jsonl"
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if zipped else data)
    if data.startswith(MAGIC) and not zipped:  # taken for a compressed file, and a broken one
        assert isinstance(list(LineFile(path).objects())[-1], Failure)
        return
    # The reference: iterating binary files splits at line feeds alone.
    expected = [
        number
        for number, line in enumerate(io.BytesIO(data), start=1)
        if not is_blank(line, first=number == 1)
    ]
    records = list(LineFile(path).objects())
    assert [record.location for record in records] == [f"some.jsonl:{n}" for n in expected]


def is_blank(line: bytes, first: bool) -> bool:
    try:
        return not line.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError:
        return False


def test_ids_are_text_or_whole_numbers() -> None:
    assert identifier({"id": "a"}, "id") == "a"
    assert identifier({"id": 0}, "id") == "0"
    for value in (None, "", True, 1.5, [], {}):
        with pytest.raises(ValueError, match="field 'id' must hold an id, not"):
            identifier({"id": value}, "id")


def test_text_is_a_string_or_a_list_of_them() -> None:
    assert text(None, "t") == ""
    assert text("a", "t") == "a"
    assert text(["a", "b"], "t") == "a\nb"
    for value in (1, {}, ["a", 1], True):
        with pytest.raises(ValueError, match="field 't' must hold text, not"):
            text(value, "t")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd_compress])
def test_compression_is_told_by_content(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(5_000))
    found = read(tmp_path, compress(lines) + compress(b"more\n"))
    assert len(found) == 5_001
    assert found[-1] == Line("some.jsonl:5001", "more")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd_compress])
def test_what_was_cut_short_gives_what_there_is_and_a_failure(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    rng = random.Random(1)
    lines = b"".join(b"%d\n" % rng.getrandbits(64) for _ in range(60_000))
    whole = compress(lines)
    *found, failure = read(tmp_path, whole[: len(whole) * 3 // 4])
    assert isinstance(failure, Failure)
    assert failure.location == f"some.jsonl:{len(found) + 1}"
    assert "the rest of the file" in failure.reason
    # No whole line that could be unpacked is lost on the way.
    texts = [line.text for line in found if isinstance(line, Line)]
    assert "\n".join(texts).encode() == b"\n".join(lines.split(b"\n")[: len(texts)])
    assert len(texts) > 1_000


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_of_no_bytes_was_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"some.jsonl{suffix}"
    path.touch()
    (failure,) = LineFile(path).lines()
    assert isinstance(failure, Failure)
    assert "has been cut" in failure.reason


def test_damaged_zstandard_is_a_failure(tmp_path: Path) -> None:
    damaged = bytearray(zstd_compress(b"".join(b"line %d\n" % n for n in range(100_000))))
    middle = len(damaged) // 2
    damaged[middle : middle + 20] = bytes(20)
    assert isinstance(read(tmp_path, bytes(damaged))[-1], Failure)


def test_nul_bytes_fail_their_line_alone(tmp_path: Path) -> None:
    first, bad, last = read(tmp_path, b"a\nb\0\0\nc\n")
    assert (first, last) == (Line("some.jsonl:1", "a"), Line("some.jsonl:3", "c"))
    assert bad == Failure("some.jsonl:2", "a NUL byte in it, which is no text", "b\\x00\\x00\\n")


def test_an_excerpt_is_short_and_printable() -> None:
    assert excerpt(b"\xff\x00a\x1b[31m\n") == "\\xff\\x00a\\x1b[31m\\n"
    assert excerpt("\u2028é\ud800") == "\\u2028é\\ud800"
    assert len(excerpt(b"\xff" * 10_000)) == EXCERPT_CHARACTERS


@given(st.binary(max_size=800) | st.text(st.characters(), max_size=800))
def test_any_excerpt_can_be_written_to_any_file(raw: str | bytes) -> None:
    shown = excerpt(raw)
    assert len(shown) <= EXCERPT_CHARACTERS
    assert shown.replace("\t", "").isprintable()
    shown.encode()


def test_a_line_of_100_mb_does_not_take_100_mb(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # NUL bytes, of which no line end is one
        file.seek(0, io.SEEK_END)
        file.write(b'\n{"a": 1}\n')
    tracemalloc.start()
    try:
        records = list(LineFile(path).objects())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [type(record) for record in records] == [Failure, Object]
    assert isinstance(records[0], Failure)
    assert "100000001 bytes" in records[0].reason
    assert peak < 3 * MAX_LINE_BYTES
