import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexing import verify
from indexing.bulk import KEY_BYTES, NO_KEY, Action, IndexingError, key_of, prepare
from indexing.checkpoint import Checkpoint, State, differences, write_atomically
from indexing.deadletter import DeadLetters, check, entries
from indexing.records import Document, Failure


def test_a_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    state = State(
        {"a": [1]}, "i", 7, True, {"s": "p"}, "u", 3, 2, 1, 0, 1, 0, 99, 1.5, [{}], ["o"], True
    )
    with Checkpoint(tmp_path / "deep" / "er") as checkpoint:
        assert checkpoint.read() is None
        checkpoint.keys.write_bytes(b"")
        checkpoint.write(state, b"x" * 2 * KEY_BYTES)
        assert checkpoint.read() == state
        checkpoint.clear()
        assert checkpoint.read() is None


def test_keys_written_twice_are_there_once(tmp_path: Path) -> None:
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.truncate(0)
        checkpoint.write(State(position=1), b"a" * KEY_BYTES)
        checkpoint.write(State(position=2), b"b" * KEY_BYTES)
        checkpoint.write(State(position=2), b"b" * KEY_BYTES)
        assert checkpoint.keys.read_bytes() == b"a" * KEY_BYTES + b"b" * KEY_BYTES
        checkpoint.truncate(1)
        assert checkpoint.keys.read_bytes() == b"a" * KEY_BYTES
        with pytest.raises(IndexingError, match="shorter than its checkpoint"):
            checkpoint.truncate(2)


def test_two_loads_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        Checkpoint(tmp_path),
        pytest.raises(IndexingError, match="another load"),
        Checkpoint(tmp_path),
    ):
        pass
    with Checkpoint(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"index": 1}'])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "checkpoint.json").write_text(content)
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(IndexingError, match="--discard"):
        checkpoint.read()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexingError, match="--state"), Checkpoint(tmp_path / "file" / "x"):
        pass


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_differences_are_named() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        "b was 2 and is now 3",
        "c was None and is now 4",
    ]


def test_dead_letters_behind_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    letters = DeadLetters(path)
    for position in (3, 1, 7, 5):
        letters.add(position, Failure(f"f:{position}", "bad"), id_="x", document={"a": "ü\ud800"})
    letters.close()
    with path.open("ab") as file:
        file.write(b'{"position": 2, "loca')  # cut by a kill
    letters = DeadLetters(path, 5)
    assert [entry["position"] for entry in entries(path)] == [3, 1]
    letters.add(5, Failure("f:5", "bad"))
    letters.sync()
    letters.close()
    assert [json.loads(line)["position"] for line in path.read_text().splitlines()] == [3, 1, 5]
    assert letters.first(1) == (Failure("f:3", "bad"),)


@pytest.mark.parametrize("depth", [10, 600, 5_000])
def test_a_document_too_deep_to_be_written_is_named(tmp_path: Path, depth: int) -> None:
    value: object = "end"
    for _ in range(depth):
        value = {"a": value}
    letters = DeadLetters(tmp_path / "dead.jsonl")
    document = Document("x", "title", "passage", {"deep": value})
    failure = prepare(document)
    if depth == 5_000:
        assert isinstance(failure, Failure)
        assert "nested too deeply to be written: flatten its metadata" in failure.reason
    letters.add(7, Failure("f:8", "bad"), id_="x", document=document.fields())
    letters.close()
    (entry,) = entries(letters.path)
    assert (entry["position"], entry["location"], entry["id"]) == (7, "f:8", "x")
    if depth == 10:
        assert entry["document"] == document.fields()
    else:
        assert entry["excerpt"] == '{"title": "title", "passage": "passage"}'


def test_dead_letters_take_no_pipes_and_no_sources_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    source = tmp_path / "dead.jsonl.old"
    source.write_text("")
    (tmp_path / "same").hardlink_to(source)
    check(tmp_path / "new", source)
    check(source)
    for path in (Path(os.devnull), tmp_path / "pipe", tmp_path / "link", tmp_path):
        with pytest.raises(IndexingError, match="no regular file"):
            check(path)
    for path in (source, tmp_path / "same", tmp_path / "dead.jsonl"):
        with pytest.raises(IndexingError, match="take the place of its source"):
            check(path, source)


def test_an_earlier_file_is_kept_and_a_link_to_it_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("earlier")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    letters = DeadLetters(tmp_path / "link")
    letters.add(0, Failure("f:1", "bad"))
    letters.close()
    assert (tmp_path / "file.old").read_text() == "earlier"
    assert (tmp_path / "link").is_symlink()
    assert [entry["position"] for entry in entries(tmp_path / "file")] == [0]


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that fills up while it is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_cut_by_a_full_disk_takes_no_other_along(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    with room(5), pytest.raises(OSError, match=r"dead\.jsonl"):
        letters.add(0, Failure("f:1", "bad"))
    assert letters.path.stat().st_size == 5
    letters.add(1, Failure("f:2", "bad"))
    letters.close()
    assert [entry["position"] for entry in entries(letters.path)] == [1]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.truncate(0)
        with room(5), pytest.raises(OSError, match=r"checkpoint\.json\.tmp"):
            checkpoint.write(State())
        with room(5), pytest.raises(OSError, match="keys"):
            checkpoint.write(State(position=1), b"a" * KEY_BYTES)
        assert checkpoint.read() is None


def test_a_load_that_begins_again_leaves_an_earlier_ones_dead_letters(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for reason, position in (("first", None), ("second", None), ("second again", 0)):
        letters = DeadLetters(path, position)
        letters.add(0, Failure("f", reason))
        letters.close()
    assert [entry["reason"] for entry in entries(path)] == ["second again"]
    assert [entry["reason"] for entry in entries(tmp_path / "dead.jsonl.old")] == ["first"]


def test_an_earlier_loads_dead_letters_are_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for reason in ("first", "second"):
        letters = DeadLetters(path)
        letters.add(0, Failure("f", reason))
        letters.close()
    assert [entry["reason"] for entry in entries(path)] == ["second"]
    assert [entry["reason"] for entry in entries(tmp_path / "dead.jsonl.old")] == ["first"]


@given(st.lists(st.integers(0, 40)), st.integers(1, 9))
def test_distinct_ids_are_counted_in_parts(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], at_once: int
) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    edges = {0: NO_KEY, 1: b"\xff" * KEY_BYTES, 2: bytes(KEY_BYTES - 1) + b"\1"}
    keys = [edges.get(number, key_of(b"%d" % number)) for number in numbers]
    path.write_bytes(b"".join(keys))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_KEYS_AT_ONCE", at_once)
        assert verify.distinct(path) == len({key for key in keys if key != NO_KEY})


def test_no_keys_are_no_ids(tmp_path: Path) -> None:
    assert verify.distinct(tmp_path / "none") == 0


def _actions(numbers: list[int]) -> list[Action]:
    found = [prepare(Document(str(n % 50), f"title {n}", "text"), n) for n in numbers]
    return [one for one in found if isinstance(one, Action)]


@settings(max_examples=30)
@given(st.permutations(list(range(120))), st.integers(0, 120), st.integers(1, 30))
def test_a_sample_is_the_same_in_any_order_and_after_a_restart(
    order: list[int], cut: int, size: int
) -> None:
    whole = verify.Samples(size=size)
    whole.add(_actions(list(range(120))))
    first = verify.Samples(size=size)
    first.add(_actions(order[:cut]))
    second = verify.Samples(first, size=size)
    for action in _actions(order[cut:] + order[: cut // 2]):
        second.add([action])
    assert list(second) == list(whole)
    assert len(list(whole)) == min(size, 50)
    # Of several documents with one id, the last.
    assert all(sample.position >= 70 for sample in whole)


def test_a_sample_is_evenly_spread() -> None:
    samples = verify.Samples(size=200)
    samples.add(
        one
        for one in (prepare(Document(f"x{n}", "t", ""), n) for n in range(20_000))
        if isinstance(one, Action)
    )
    positions = np.array([sample.position for sample in samples])
    assert 8_000 < positions.mean() < 12_000
