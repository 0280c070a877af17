from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.evaluation.trec import read_run, write_run

# Page titles are ids here, so blanks inside are allowed; a byte order mark is no text of a file.
words = st.text(
    st.characters(
        blacklist_categories=("Zs", "Zl", "Zp", "Cc", "Cs"), blacklist_characters="\ufeff"
    ),
    min_size=1,
    max_size=8,
)
titles = st.lists(words, min_size=1, max_size=3).map(" ".join)
scores = st.floats(allow_nan=False, allow_infinity=False)
rankings = st.dictionaries(titles, scores, min_size=1, max_size=8).map(
    lambda hits: sorted(hits.items(), key=lambda hit: -hit[1])
)


@given(st.dictionaries(words, rankings, max_size=4))
def test_round_trip(run: dict[str, list[tuple[str, float]]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.txt"
        write_run(path, run)
        assert read_run(path) == run
        assert [file.name for file in Path(folder).iterdir()] == ["run.txt"]


def test_the_written_lines(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q": [("Ed Wood", 1.5), ("b", 0.25)]}, tag="x")
    assert (tmp_path / "run").read_text() == "q Q0 Ed Wood 1 1.5 x\nq Q0 b 2 0.25 x\n"


def test_reading_sorts_by_score_and_drops_repeated_documents(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("q Q0 a 1 0.5 t\nq\tQ0\tb\t2\t2\tt\nq Q0 c 3 5e-1 t\nq Q0 a 4 1.0 t\n\n")
    assert read_run(path) == {"q": [("b", 2.0), ("a", 1.0), ("c", 0.5)]}


def test_a_byte_order_mark_is_no_part_of_the_first_query(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 a 1 0.5 t\n", encoding="utf-8-sig")
    assert read_run(tmp_path / "run") == {"q": [("a", 0.5)]}


@pytest.mark.parametrize("line", ["q Q0 a 1 0.5", "q Q0 a 1 high t", "q Q0 a 1 nan t"])
def test_what_is_not_a_run_names_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "run").write_text(f"q Q0 a 1 0.5 t\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    "run",
    [
        {"q": [("a", 1.0), ("b", 2.0)]},
        {"q": [("a", float("nan"))]},
        {"q 1": [("a", 1.0)]},
        {"q": [(" a", 1.0)]},
        {"q": [("a\nb", 1.0)]},
        {"q": [("", 1.0)]},
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(
    tmp_path: Path, run: dict[str, list[tuple[str, float]]]
) -> None:
    path = tmp_path / "run"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"sort the hits|does not fit"):
        write_run(path, run)
    assert path.read_text() == "old"
