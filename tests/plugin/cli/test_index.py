import errno
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from indexing.checkpoint import Checkpoint, State, differences
from indexing.load import Progress, Summary
from indexing.records import Failure
from indexing.sources import Source
from plugin.cli.index import _Display, _named, _one_sentence
from plugin.cli.options import CommandError


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=160)
    source = Source("corpus.jsonl", "beir", iter(()), lambda: 0.25)
    with _Display(console, source, "docs [1]") as display:
        display.start("docs", None, False)
        display.update(Progress(0, 0, 0, 0, ""))
        display.update(Progress(1000, 990, 10, 10**6, "status 429; next try in 3.0 s"))
        display._bar.refresh()
    return file.getvalue()


def test_progress_has_a_rate_and_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(True, monkeypatch)
    for part in ("docs [1]", "990 documents", "/s", "MB/s", "10 failed", "status 429"):
        assert part in text


def test_without_a_terminal_there_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(False, monkeypatch).strip() == ""


def test_a_load_that_goes_on_says_so() -> None:
    file = io.StringIO()
    source = Source("corpus.jsonl", "beir", iter(()), lambda: None)
    with _Display(Console(file=file, width=160), source, "docs") as display:
        display.start("docs-1", 12_345, False)
        display.start("docs", None, True)
    assert "docs-1 at record 12,345" in file.getvalue()
    assert "--recreate" in file.getvalue()


def test_the_first_failures_are_named_and_the_others_counted() -> None:
    failures = tuple(Failure(f"f:{n}", "bad") for n in range(20))
    text = _named(failures, 300)
    assert text.startswith("f:0: bad; f:1: bad")
    assert text.endswith("f:9: bad; and 290 more")
    assert _named(failures[:2], 2) == "f:0: bad; f:1: bad"


def test_a_summary_tells_duplicates_and_differences() -> None:
    summary = Summary("i", 10, 6, 2, 1, 1, 0, 7, 0, 1.0, 7, (), 7, (), "")
    assert (summary.indexed, summary.duplicates, summary.verified) == (8, 1, True)


def test_an_error_without_a_name_says_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "keys").symlink_to("/dev/full")
    with (
        Checkpoint(tmp_path) as checkpoint,
        pytest.raises(CommandError, match=r"No space left on device: '.*/keys'"),
        _one_sentence(),
    ):
        checkpoint.write(State(position=1), b"k" * 8)

    class Broken(dict[str, object]):
        def get(self, *_: object) -> None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    where = r"Bad file descriptor \(in indexing\.checkpoint, line \d+\)"
    with pytest.raises(CommandError, match=where), _one_sentence():
        differences(Broken(a=1), {})
    with pytest.raises(CommandError, match=r"^our own words$"), _one_sentence():
        raise OSError("our own words")
