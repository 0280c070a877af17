import gzip
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.records import Document, Failure, Record, Skip
from indexing.sources import debian
from indexing.sources.files import LineFile

STATUS = """\
Package: bash
Status: install ok installed
Section: shells
Architecture: amd64
Version: 5.2.15-2+b7
Conffiles:
 /etc/skel/.bashrc 1f98b8f3f3c8f8927eca945d59dcc1c6
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter that
 executes commands.
 .
 Included in the bash package:
  * the shell
  * its documentation
Homepage: http://tiswww.case.edu/php/chet/bash/bashtop.html

Package: gone
Status: deinstall ok config-files

"""


def read(folder: Path, data: str | bytes) -> list[Record]:
    path = folder / "status"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(debian.documents(LineFile(path)))


def test_a_package_is_its_name_synopsis_and_description(tmp_path: Path) -> None:
    assert read(tmp_path, STATUS) == [
        Document(
            "bash",
            "bash: GNU Bourne Again SHell",
            "Bash is an sh-compatible command language interpreter that executes commands.\n\n"
            "Included in the bash package:\n* the shell\n* its documentation",
            {"version": "5.2.15-2+b7", "architecture": "amd64"},
            section="shells",
            url="http://tiswww.case.edu/php/chet/bash/bashtop.html",
        ),
        Skip("status:17", "package 'gone' has no description"),
    ]


def test_a_translated_description_is_preferred_and_a_synopsis_suffices(tmp_path: Path) -> None:
    data = (
        "Package: a\nDescription: short\nDescription-en: longer\n text\n\n\n\n"
        "Package: b\r\nDescription: only this\r\n"
    )
    assert read(tmp_path, data) == [
        Document("a", "a: longer", "text"),
        Document("b", "b: only this", "only this"),
    ]


@pytest.mark.parametrize(
    ("paragraph", "reason"),
    [
        ("Description: no name", "without the field Package"),
        ("Package: x\nno colon\nDescription: d", "`Field: value`"),
        (" begins: continued\nPackage: x\nDescription: d", None),
        ("Package: x\0\nDescription: d", "NUL"),
    ],
)
def test_a_wrong_paragraph_fails_once_and_alone(
    tmp_path: Path, paragraph: str, reason: str | None
) -> None:
    first, wrong, last = read(
        tmp_path, f"Package: a\nDescription: d\n\n{paragraph}\n\nPackage: z\nDescription: d\n"
    )
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    if reason is None:
        assert isinstance(wrong, Document)
    else:
        assert isinstance(wrong, Failure)
        assert reason in wrong.reason


def test_bad_bytes_fail_their_package(tmp_path: Path) -> None:
    wrong, good = read(
        tmp_path, b"Package: a\nDescription: d\n \xff\n\nPackage: b\nDescription: d\n"
    )
    assert isinstance(wrong, Failure)
    assert "not UTF-8" in wrong.reason
    assert isinstance(good, Document)


def test_a_paragraph_that_never_ends_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "MAX_LINE_BYTES", 1000)
    (wrong,) = read(tmp_path, "Package: a\nDescription: d\n" + " more\n" * 1000)
    assert isinstance(wrong, Failure)
    assert wrong.location == "status:1"
    assert "longer than 1000" in wrong.reason


def test_what_a_packages_second_fault_cuts_stays_cut(tmp_path: Path) -> None:
    whole = gzip.compress(b"Package: a\nno colon\n" + b" " + random.Random(1).randbytes(9000))
    (wrong,) = read(tmp_path, whole[:-4000])
    assert isinstance(wrong, Failure)
    assert "`Field: value`" in wrong.reason
    assert wrong.cut


@given(
    st.lists(
        st.lists(
            st.sampled_from(["Package: a", "Description: b", " c", " .", "Tag: x", "?", "a:", ":"]),
            min_size=1,
        )
    )
)
def test_every_paragraph_is_one_record(
    tmp_path_factory: pytest.TempPathFactory, paragraphs: list[list[str]]
) -> None:
    data = "\n\n".join("\n".join(lines) for lines in paragraphs)
    assert len(read(tmp_path_factory.mktemp("debian"), data)) == len(paragraphs)
