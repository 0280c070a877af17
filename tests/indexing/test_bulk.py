import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opensearchpy import Connection, OpenSearch
from opensearchpy.exceptions import ConnectionError as NoConnectionError

from indexing.bulk import MAX_ID_BYTES, Action, IndexingError, load, prepare
from indexing.records import Document, Failure, Record, Skip


class FakeIndex(Connection):
    """One index in memory, behind the part of the API that loading uses.

    `refuse` is asked for the status of every document, by how often it was sent before.
    """

    def __init__(self, refuse: Callable[[str, int], int], **options: Any) -> None:
        super().__init__(**options)
        self.refuse = refuse
        self.documents: dict[str, Any] = {}
        self.sent: dict[str, int] = {}
        self.settings: dict[str, Any] = {"index.refresh_interval": "-1"}
        self.refreshed = 0
        self.missing = False

    def perform_request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        params: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        timeout: float | None = None,
        ignore: Any = (),
        headers: Any = None,
    ) -> tuple[int, dict[str, str], str]:
        answer: dict[str, Any]
        if self.missing:
            self._raise_error(404, '{"error": "no such index"}')
        if url == "/i/_count":
            answer = {"count": len(self.documents) if self.refreshed else 0}
        elif url == "/i/_refresh":
            self.refreshed += 1
            answer = {}
        elif url == "/i/_settings":
            self.settings.update(json.loads(body or b"{}"))
            answer = {}
        else:
            assert url == "/i/_bulk"
            lines = [json.loads(line) for line in (body or b"").rstrip(b"\n").split(b"\n")]
            pairs = zip(lines[::2], lines[1::2], strict=True)
            answer = {"items": [{"index": self._index(h["index"]["_id"], d)} for h, d in pairs]}
        return 200, {"content-type": "application/json"}, json.dumps(answer)

    def _index(self, key: str, source: Any) -> dict[str, Any]:
        status = self.refuse(key, self.sent.get(key, 0))
        self.sent[key] = self.sent.get(key, 0) + 1
        if status == 0:
            raise NoConnectionError("N/A", "reset", OSError("reset"))
        if status >= 300:
            error = {"type": "some_exception", "reason": "why", "caused_by": {"reason": "deeper"}}
            return {"_id": key, "status": status, "error": error}
        result = "updated" if key in self.documents else "created"
        self.documents[key] = source
        return {"_id": key, "status": status, "result": result}


def make(refuse: Callable[[str, int], int] = lambda key, sent: 201) -> tuple[OpenSearch, FakeIndex]:
    client = OpenSearch(hosts=[{}], connection_class=FakeIndex, refuse=refuse, max_retries=1)
    return client, client.transport.connection_pool.connections[0]


def documents(count: int) -> list[Record]:
    return [Document(str(number), f"title {number}", "text") for number in range(count)]


def test_all_documents_get_in() -> None:
    client, index = make()
    seen: list[int] = []
    summary = load(client, "i", documents(25), on_progress=seen.append, chunk_documents=10)
    assert (summary.read, summary.created, summary.updated, summary.failed) == (25, 25, 0, 0)
    assert summary.indexed == summary.documents == 25
    assert summary.verified
    assert index.documents["7"] == {"title": "title 7", "passage": "text"}
    assert seen == list(range(1, 26))


def test_documents_replace_those_of_the_same_id() -> None:
    client, index = make()
    load(client, "i", documents(3))
    summary = load(client, "i", [Document("1", "new", ""), Document("9", "more", "")])
    assert (summary.created, summary.updated, summary.documents) == (1, 1, 4)
    assert summary.verified
    assert index.documents["1"]["title"] == "new"


def test_what_the_engine_refuses_is_named_with_all_reasons() -> None:
    client, _ = make(lambda key, sent: 400 if key == "1" else 201)
    summary = load(client, "i", documents(3))
    assert summary.failures == (Failure("document '1'", "some_exception: why: deeper"),)
    assert (summary.read, summary.indexed, summary.failed) == (3, 2, 1)
    assert summary.verified


def test_rejected_documents_are_sent_again_and_others_are_not() -> None:
    client, index = make(lambda key, sent: 429 if key == "2" and sent < 1 else 201)
    summary = load(client, "i", documents(4))
    assert (summary.created, summary.failed) == (4, 0)
    assert index.sent == {"0": 1, "1": 1, "2": 2, "3": 1}


def test_a_cluster_that_stops_answering_ends_the_load() -> None:
    client, index = make(lambda key, sent: 0 if key == "15" else 201)
    with pytest.raises(IndexingError, match="stopped answering after 10 documents"):
        load(client, "i", documents(40), fresh=True, chunk_documents=10)
    assert index.settings == {"index.refresh_interval": None}


def test_only_a_fresh_index_has_its_settings_changed() -> None:
    client, index = make()
    load(client, "i", documents(1))
    assert index.settings == {"index.refresh_interval": "-1"}
    load(client, "i", documents(1), fresh=True)
    assert index.settings == {"index.refresh_interval": None}


def test_a_lost_document_is_noticed() -> None:
    client, index = make()

    def records() -> Any:
        yield from documents(20)
        index.documents.pop("3")

    summary = load(client, "i", records(), chunk_documents=10)
    assert not summary.verified


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


_RECORDS = st.one_of(
    st.builds(
        Document,
        st.text(max_size=3),
        st.text(max_size=5),
        st.text(st.characters(), max_size=5),
        st.dictionaries(st.text(max_size=2), st.floats() | st.text(max_size=3), max_size=2),
    ),
    st.builds(Failure, st.just("f:1"), st.just("bad")),
    st.builds(Skip, st.just("f:2"), st.just("empty")),
)


@given(st.lists(_RECORDS, max_size=12), st.integers(1, 5))
def test_every_record_is_indexed_failed_or_skipped(records: list[Record], chunk: int) -> None:
    client, index = make(lambda key, sent: 400 if "a" in key else 201)
    summary = load(client, "i", records, chunk_documents=chunk)
    assert summary.read == len(records)
    assert summary.read == summary.indexed + summary.failed + summary.skipped
    assert summary.documents == summary.created == len(index.documents)
    assert summary.verified


def test_a_document_becomes_json_without_loss() -> None:
    action = prepare(Document("ü", "t\n", "\u2028 p", {"a": [1, None]}))
    assert isinstance(action, Action)
    assert action.header == {"index": {"_id": "ü"}}
    assert "\n" not in action.source
    assert json.loads(action.source) == {
        "title": "t\n",
        "passage": "\u2028 p",
        "metadata": {"a": [1, None]},
    }


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document("", "t", ""), "512 bytes, not 0"),
        (Document("ü" * 257, "t", ""), "512 bytes, not 514"),
        (Document("1", "\ud800", ""), "surrogate"),
        (Document("\ud800", "t", ""), "surrogate"),
        (Document("1", "t", "", {"a": "\udfff"}), "surrogate"),
        (Document("1", "t", "", {"a": float("nan")}), "JSON"),
        (Document("1", "t", "", {"a": object()}), "JSON"),
    ],
)
def test_what_the_engine_could_not_read_fails_before_it_is_sent(
    document: Document, reason: str
) -> None:
    failure = prepare(document)
    assert isinstance(failure, Failure)
    assert reason in failure.reason


def test_the_longest_id_is_fine() -> None:
    assert isinstance(prepare(Document("x" * MAX_ID_BYTES, "t", "")), Action)


def test_a_document_that_is_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.bulk.MAX_DOCUMENT_BYTES", 100)
    assert isinstance(prepare(Document("1", "t", "x" * 60)), Action)
    assert isinstance(prepare(Document("1", "t", "x" * 90)), Failure)


def test_a_document_without_text_is_skipped() -> None:
    assert prepare(Document("1", " ", "\n")) == Skip(
        "document '1'", "neither title nor passage has text"
    )
