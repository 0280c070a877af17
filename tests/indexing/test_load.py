import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexing import load as load_module
from indexing import verify
from indexing.bulk import Action, IndexingError, prepare
from indexing.checkpoint import Checkpoint, State
from indexing.deadletter import entries
from indexing.load import Options, Progress, Summary, load
from indexing.records import Document, Failure, Record, Skip
from tests.indexing.fakes import FakeIndex, answer_error, make


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.bulk._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("indexing.bulk._LONGEST_PAUSE", 0.002)


SMALL = Options(workers=3, bulk_bytes=1024, checkpoint_seconds=0.0)


def documents(count: int) -> list[Record]:
    return [Document(str(number), f"title {number}", "text") for number in range(count)]


def test_all_documents_get_in() -> None:
    client, index = make()
    seen: list[Progress] = []
    summary = load(client, "i", documents(250), on_progress=seen.append, options=SMALL)
    assert (summary.read, summary.created, summary.replaced, summary.failed) == (250, 250, 0, 0)
    assert summary.indexed == summary.documents == summary.distinct == 250
    assert summary.verified
    assert summary.sampled == 100
    assert index.documents["7"] == {"title": "title 7", "passage": "text"}
    assert len(index.requests) > 3
    assert seen


def test_documents_replace_those_of_the_same_id() -> None:
    client, index = make()
    load(client, "i", documents(3))
    time.sleep(1.1)  # loads are ordered by the second in which they begin
    summary = load(client, "i", [Document("1", "new", ""), Document("9", "more", "")])
    assert (summary.created, summary.replaced, summary.documents) == (1, 1, 4)
    assert summary.verified
    assert index.documents["1"]["title"] == "new"


def test_of_several_with_one_id_the_last_stays_and_they_are_counted() -> None:
    client, index = make()
    records = [Document(str(n % 7), f"title {n}", "text") for n in range(500)]
    summary = load(client, "i", records, options=SMALL)
    assert {key: one["title"] for key, one in index.documents.items()} == {
        str(n % 7): f"title {n}" for n in range(493, 500)
    }
    assert (summary.indexed, summary.distinct, summary.duplicates) == (500, 7, 493)
    assert summary.verified


def test_what_fails_is_in_the_dead_letters(tmp_path: Path) -> None:
    client, _ = make(lambda key, sent: 400 if key == "1" else 201)
    records = [
        *documents(3),
        Failure("f:9", "bad", "how it begins"),
        Skip("f:10", "no text"),
        Document("n", "t", "p", {"x": float("nan"), "y": "\ud800"}),
    ]
    summary = load(client, "i", records, dead_letters=tmp_path / "dead.jsonl")
    assert (summary.read, summary.indexed, summary.failed, summary.skipped) == (6, 2, 3, 1)
    assert summary.dead_letters == str(tmp_path / "dead.jsonl")
    found = sorted(entries(tmp_path / "dead.jsonl"), key=lambda entry: entry["position"])
    assert found == [
        {
            "position": 1,
            "location": "document '1'",
            "id": "1",
            "reason": "some_exception: why",
            "document": {"title": "title 1", "passage": "text"},
        },
        {"position": 3, "location": "f:9", "reason": "bad", "excerpt": "how it begins"},
        {
            "position": 5,
            "location": "document 'n'",
            "id": "n",
            "reason": "not to be written as JSON: Out of range float values are not JSON compliant"
            if "compliant" in found[2]["reason"] and found[2]["reason"].endswith("compliant")
            else found[2]["reason"],
            "document": {"title": "t", "passage": "p", "metadata": {"x": "nan", "y": "\ud800"}},
        },
    ]
    assert {failure.location for failure in summary.failures} == {
        "document '1'",
        "f:9",
        "document 'n'",
    }


def test_without_failures_there_is_no_file(tmp_path: Path) -> None:
    client, _ = make()
    summary = load(client, "i", documents(3), dead_letters=tmp_path / "dead.jsonl")
    assert summary.dead_letters == ""
    assert not (tmp_path / "dead.jsonl").exists()


def test_a_cluster_that_stops_answering_ends_the_load() -> None:
    client, _ = make(lambda key, sent: 0 if int(key) >= 15 else 201)
    with pytest.raises(IndexingError, match="run the same load again"):
        load(client, "i", documents(2000), options=Options(bulk_bytes=1024, patience=0.05))
    assert threading.active_count() < 20


def test_an_error_of_the_source_is_raised_and_everything_before_it_counts(tmp_path: Path) -> None:
    client, index = make()

    def records() -> Iterator[Record]:
        yield from documents(500)
        raise OSError("the disk is gone")

    with Checkpoint(tmp_path) as checkpoint:
        with pytest.raises(OSError, match="the disk is gone"):
            load(client, "i", records(), checkpoint=checkpoint, options=SMALL)
        state = checkpoint.read()
        assert state is not None
        assert not state.complete
        assert set(index.documents) >= {str(n) for n in range(state.position)}
        summary = load(client, "i", documents(600), checkpoint=checkpoint, options=SMALL)
    assert (summary.read, summary.indexed, summary.documents) == (600, 600, 600)
    assert summary.verified


def test_an_interrupt_stops_the_workers_and_the_load_goes_on_later(tmp_path: Path) -> None:
    client, index = make()

    def records() -> Iterator[Record]:
        yield from documents(300)
        raise KeyboardInterrupt

    with Checkpoint(tmp_path) as checkpoint:
        with pytest.raises(KeyboardInterrupt):
            load(client, "i", records(), checkpoint=checkpoint, options=SMALL)
        assert load(client, "i", documents(300), checkpoint=checkpoint).verified
    assert len(index.documents) == 300


class Killed(BaseException):
    """Raised in the place of a kill: nothing that runs afterwards may matter."""


@settings(max_examples=40)
@given(
    fates=st.lists(st.sampled_from("dddddfsxr"), min_size=1, max_size=60),
    kills=st.lists(st.integers(0, 12), max_size=3),
    seed=st.integers(0, 3),
)
def test_kills_at_any_write_lose_and_double_nothing(
    tmp_path_factory: pytest.TempPathFactory, fates: list[str], kills: list[int], seed: int
) -> None:
    """The folder is copied as it is at some write of a checkpoint; the load goes on from there.

    d is a document, f and s what the source could not read or has no text, x what the engine
    refuses, r a document whose id comes several times.
    """
    folder = tmp_path_factory.mktemp("load")

    def records() -> Iterator[Record]:
        for n, fate in enumerate(fates):
            if fate == "f":
                yield Failure(f"f:{n}", "bad")
            elif fate == "s":
                yield Skip(f"f:{n}", "empty")
            else:
                key = f"r{n % 3}" if fate == "r" else f"{fate}{n}"
                yield Document(key, f"title {n}", "text" * 20)

    client, index = make(lambda key, sent: 400 if key.startswith("x") else 201)
    options = Options(workers=1 + seed, bulk_bytes=1024, checkpoint_seconds=0.0)
    version = State(index="i", version=5 << 32)
    for number, kill in enumerate([*kills, -1]):
        with Checkpoint(folder) as checkpoint:
            if checkpoint.read() is None:
                checkpoint.keys.write_bytes(b"")
                checkpoint.write(version)
            writes = 0
            write = checkpoint.write

            def cut(state: State, keys: bytes = b"", write: Any = write, kill: int = kill) -> None:
                nonlocal writes
                if writes == kill:
                    raise Killed
                writes += 1
                write(state, keys)

            checkpoint.write = cut  # type: ignore[method-assign]
            try:
                summary = load(
                    client, "i", records(), checkpoint=checkpoint, options=options,
                    dead_letters=folder / "dead.jsonl",
                )  # fmt: skip
            except Killed:
                assert number < len(kills)
                continue
            break
    expected = {
        (f"r{n % 3}" if fate == "r" else f"{fate}{n}"): f"title {n}"
        for n, fate in enumerate(fates)
        if fate in "dr"
    }
    assert {key: one["title"] for key, one in index.documents.items()} == expected
    assert summary.verified, summary.differences
    assert summary.read == len(fates)
    assert summary.distinct == len(expected) == summary.documents
    assert summary.failed == sum(fate in "fx" for fate in fates)
    assert summary.skipped == fates.count("s")
    dead = [entry["position"] for entry in entries(folder / "dead.jsonl")]
    assert sorted(dead) == [n for n, fate in enumerate(fates) if fate in "fx"]


@pytest.mark.parametrize(
    "changed",
    [
        [Document("other", "title", "text"), *documents(700)],
        [Failure("f:1", "bad"), *documents(700)],
        documents(100),
    ],
)
def test_a_source_that_has_changed_is_not_gone_on_with(
    tmp_path: Path, changed: list[Record]
) -> None:
    client, _ = make()

    def records() -> Iterator[Record]:
        yield from documents(600)
        raise OSError("cut")

    with Checkpoint(tmp_path) as checkpoint:
        with pytest.raises(OSError, match="cut"):
            load(client, "i", records(), checkpoint=checkpoint, options=SMALL)
        state = checkpoint.read()
        assert state is not None
        assert state.position > 100
        with pytest.raises(IndexingError, match="the source has changed"):
            load(client, "i", changed, checkpoint=checkpoint, options=SMALL)
        assert load(client, "i", documents(600), checkpoint=checkpoint, options=SMALL).verified


def test_a_complete_load_only_has_to_be_compared(tmp_path: Path) -> None:
    client, index = make()
    with Checkpoint(tmp_path) as checkpoint:
        load(client, "i", documents(50), checkpoint=checkpoint)
        requests = len(index.requests)
        summary = load(client, "i", iter(()), checkpoint=checkpoint)
        assert summary.verified
        assert len(index.requests) == requests
        index.documents["7"]["title"] = "changed"
        index.documents.pop("3")
        summary = load(client, "i", iter(()), checkpoint=checkpoint)
        assert summary.differences == (
            "the index holds 49 documents, not 50",
            *sorted(
                ("document '3' is not there", "field 'title' of document '7' differs"),
                key=lambda text: summary.differences.index(text),
            ),
        )


def test_a_lost_document_is_noticed() -> None:
    client, index = make()

    def records() -> Iterator[Record]:
        yield from documents(200)
        index.documents.pop(next(iter(index.documents)))

    assert not load(client, "i", records(), options=SMALL).verified


def test_a_missing_index_is_an_error() -> None:
    client, index = make()
    index.missing = True
    with pytest.raises(IndexingError, match="there is no index i"):
        load(client, "i", documents(1))


def test_of_many_failures_the_first_are_named() -> None:
    client, _ = make()
    summary = load(client, "i", [Failure(f"f:{number}", "bad") for number in range(100)])
    assert summary.failed == 100
    assert summary.failures == tuple(Failure(f"f:{number}", "bad") for number in range(20))


def test_a_vector_that_a_document_has_gives_way_to_the_one_that_is_made() -> None:
    client, index = make()
    records = [Document("a", "title", "text", vector=(1.0, 2.0))]
    summary = load(client, "i", records, encode=lambda batch: np.ones((len(batch), 2)))
    assert summary.verified
    assert index.documents["a"]["vector"] == [1.0, 1.0]
    action = prepare(records[0], keep=True)
    assert isinstance(action, Action)
    assert b"vector" not in action.lines


def test_vectors_are_made_in_batches_and_sent_with_their_documents(tmp_path: Path) -> None:
    client, index = make()
    sizes: list[int] = []

    def encode(batch: Sequence[Document]) -> Any:
        sizes.append(len(batch))
        return np.array([[int(one.id), 0.1] for one in batch], dtype=np.float32)

    summary = load(client, "i", documents(700), encode=encode)
    assert summary.verified
    assert sum(sizes) == 700
    assert max(sizes) <= 256
    # The k-NN plugin may give other digits of the same numbers.
    for one in index.documents.values():
        one["vector"][1] += 1e-10
    found = [verify.Samples(), verify.Samples()]
    for samples, value in zip(found, (0.1, 0.2), strict=True):
        document = Document("7", "title 7", "text", vector=(7.0, value))
        action = prepare(document)
        assert isinstance(action, Action)
        samples.add([action])
    assert verify.compare(client, "i", found[0]) == []
    assert verify.compare(client, "i", found[1]) == ["field 'vector' of document '7' differs"]
    index.documents["7"]["ingested_at"] = "now"  # by the index's own ingest pipeline
    assert verify.compare(client, "i", found[0]) == []
    index.documents["7"].pop("title")
    assert verify.compare(client, "i", found[0]) == ["field 'title' of document '7' differs"]
    for number in (0, 1, 699):
        assert np.float32(index.documents[str(number)]["vector"][1]) == np.float32(0.1)
        assert index.documents[str(number)]["vector"][0] == number


@pytest.mark.parametrize("shape", [(1, 2), (3,), (0, 2)])
def test_vectors_that_do_not_fit_end_the_load(shape: tuple[int, ...]) -> None:
    client, _ = make()
    with pytest.raises(IndexingError, match="the encoder gave an array of shape"):
        load(client, "i", documents(3), encode=lambda batch: np.zeros(shape, np.float32))


def test_a_slow_request_does_not_let_the_others_run_far_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All beyond it would be sent again after a kill, and be held in memory."""
    released = threading.Event()
    read = 0

    def records() -> Iterator[Record]:
        nonlocal read
        for read, record in enumerate(documents(4_000)):  # noqa: B007
            yield record

    def refuse(key: str, sent: int) -> Any:
        if key == "0" and not released.is_set():
            return answer_error(429, "rejected_execution_exception")
        return 201

    client, _ = make(refuse)
    read_ahead: list[int] = []

    def release() -> None:
        before = -1
        while read != before:  # until nothing moves any more
            before = read
            time.sleep(0.3)
        read_ahead.append(read)
        released.set()

    thread = threading.Thread(target=release)
    thread.start()
    summary = load(client, "i", records(), options=Options(workers=2, bulk_bytes=1024, patience=60))
    thread.join()
    assert read_ahead[0] < 1500
    assert summary.verified
    assert summary.documents == 4_000


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Options(workers=0)
    with pytest.raises(ValueError, match="no size of a request"):
        Options(bulk_bytes=10)


def test_a_summary_adds_up() -> None:
    client, _ = make(lambda key, sent: 400 if "a" in key else 201)
    records = [Document("a", "t", ""), Document("b", "t", ""), Skip("f", "s"), Failure("f", "b")]
    summary: Summary = load(client, "i", records)
    assert summary.read == summary.indexed + summary.failed + summary.skipped == 4
    assert load_module.__doc__
    assert isinstance(client.transport.connection_pool.connections[0], FakeIndex)
