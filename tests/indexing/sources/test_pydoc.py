import sys
from collections import Counter
from pathlib import Path

import pytest

from indexing.records import Document, Failure, Record, Skip
from indexing.sources import pydoc
from indexing.sources.pydoc import split_calls, split_summary


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return list(pydoc.documents())


@pytest.fixture(scope="module")
def documents(records: list[Record]) -> dict[str, Document]:
    return {record.id: record for record in records if isinstance(record, Document)}


def test_there_are_thousands_and_no_failure(
    records: list[Record], documents: dict[str, Document]
) -> None:
    kinds = Counter(type(record).__name__ for record in records)
    assert kinds["Failure"] == 0
    assert 4_000 < kinds["Document"] < 12_000
    assert kinds["Document"] == len(documents)  # no id twice


def test_a_function_as_the_issue_shows_it(documents: dict[str, Document]) -> None:
    merge = documents["heapq.merge"]
    assert merge.title == "heapq.merge: Merge multiple sorted inputs into a single sorted output"
    assert merge.passage.startswith("merge(*iterables, key=None, reverse=False)\n\nSimilar to")
    assert merge.metadata == {"kind": "function", "module": "heapq"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("heapq", "module"),
        ("json.decoder", "module"),
        ("os.path.join", "function"),
        ("os.getcwd", "function"),
        ("open", "function"),
        ("random.randint", "function"),
        ("asyncio.gather", "function"),
        ("multiprocessing.Pool", "function"),
        ("collections.Counter", "class"),
        ("OSError", "class"),
        ("str.split", "method"),
        ("dict.fromkeys", "method"),
        ("str.maketrans", "method"),
        ("socket.socket.recv", "method"),
        ("io.IOBase.readline", "method"),
        ("unittest.TestCase.assertEqual", "method"),
        ("pathlib.PurePath.stem", "property"),
    ],
)
def test_well_known_objects_are_there(documents: dict[str, Document], name: str, kind: str) -> None:
    assert documents[name].metadata["kind"] == kind
    assert documents[name].title.startswith(f"{name}: ")


@pytest.mark.parametrize(
    "name",
    [
        "IOError",  # OSError
        "io.open",  # open
        "posix.getcwd",  # os.getcwd
        "posixpath.join",  # os.path.join
        "asyncio.tasks.gather",  # asyncio.gather
        "random.Random.randint",  # random.randint
        "io.FileIO.readline",  # inherited from io.IOBase
        "collections.Counter.keys",  # inherited from dict
        "enum.Enum.__new__",
        "this",
        "antigravity",
        "test.support",
        "idlelib",
    ],
)
def test_aliases_inherited_and_private_things_are_not(
    documents: dict[str, Document], name: str
) -> None:
    assert name not in documents


def test_titles_are_clean(documents: dict[str, Document]) -> None:
    for document in documents.values():
        name, _, summary = document.title.partition(": ")
        assert name == document.id
        assert summary
        assert summary == " ".join(summary.split())
        assert not summary.endswith((".", ":")), document.title
        assert len(document.title) < 300


def test_signatures_hold_nothing_of_this_run(documents: dict[str, Document]) -> None:
    for document in documents.values():
        signature = document.passage.partition("\n\n")[0]
        assert " at 0x" not in signature, document.id
        assert sys.prefix not in signature, document.id


def test_a_second_run_gives_the_same(records: list[Record]) -> None:
    assert list(pydoc.documents()) == records


def test_modules_of_other_platforms_are_skipped_with_a_reason(records: list[Record]) -> None:
    skipped = {record.location: record.reason for record in records if isinstance(record, Skip)}
    missing = "winreg" if sys.platform != "win32" else "curses"
    assert skipped[missing]


def test_too_little_time_is_an_error() -> None:
    with pytest.raises(OSError, match="more than 0 s"):
        list(pydoc.documents(seconds=0.01))


def test_a_walk_that_ends_early_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "walk.py"
    script.write_text(
        'print(\'{"skip": "a", "reason": "b"}\', flush=True)\nraise SystemExit("down")'
    )
    monkeypatch.setattr(pydoc, "_SCRIPT", script)
    assert list(pydoc.documents()) == [
        Skip("a", "b"),
        Failure("pydoc", "the walk ended early (status 1): down", cut=True),
    ]


@pytest.mark.parametrize(
    ("doc", "calls", "body"),
    [
        ("merge(*its) --> list\n\nMerge them.", "merge(*its) --> list", "Merge them."),
        ("Merge them.\nmerge(a)", "", "Merge them.\nmerge(a)"),
        ("D.merge(k[,d]) -> v, remove and return it.", None, "Remove and return it."),
        ("D.merge() -> None.  Remove all.\nAnd more.", None, "Remove all.\n\nAnd more."),
        ("merge(a) -> value", "merge(a) -> value", ""),
        ("merge(a,\n      b) -> c\nText.", "merge(a,\n      b) -> c", "Text."),
        ("merge(a)\nmerge(a, b) -> the two\n    of them\n\nText.", None, "Text."),
        ("merge() -> new empty list\nmerge(it) -> new list of it", None,
         "new empty list; new list of it"),
        ("remerge(a) -> b", "", "remerge(a) -> b"),
        ("merge(*its) --> Yield all of them.\n\n   >>> merge()", None,
         "Yield all of them.\n\n>>> merge()"),
    ],
)  # fmt: skip
def test_calls_are_split_from_text(doc: str, calls: str | None, body: str) -> None:
    found = split_calls("merge", doc)
    assert found[1] == body
    assert calls is None or found[0] == calls


@pytest.mark.parametrize(
    ("doc", "summary", "rest"),
    [
        ("One.\n\nTwo.", "One", "Two."),
        ("One over\n  two lines. Then more.", "One over two lines", "Then more."),
        ("Use e.g. This one. More.", "Use e.g. This one", "More."),
        ("Name\n====\nText", "Name Text", ""),
        ("", "", ""),
        ("One:\n\n    code\n", "One", "    code"),
    ],
)
def test_the_summary_is_the_first_sentence(doc: str, summary: str, rest: str) -> None:
    assert split_summary(doc) == (summary, rest)


def test_a_long_sentence_is_shortened_and_kept_whole_in_the_rest() -> None:
    doc = "word " * 100
    summary, rest = split_summary(doc)
    assert summary.endswith("word …")
    assert len(summary) <= 202
    assert rest == doc.strip()
