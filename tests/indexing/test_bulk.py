import json
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opensearchpy.exceptions import AuthorizationException, ConnectionTimeout, TransportError
from opensearchpy.exceptions import ConnectionError as NoConnectionError

from indexing.bulk import (
    MAX_ID_BYTES,
    VERSIONS,
    Action,
    IndexingError,
    Outcome,
    Pace,
    Sender,
    Stopped,
    key_of,
    prepare,
    reason,
    source_of,
    version_now,
)
from indexing.records import Document, Failure, Skip
from tests.indexing.fakes import FakeIndex, answer_error, make


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.bulk._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("indexing.bulk._LONGEST_PAUSE", 0.002)


def actions(count: int, text: str = "text") -> list[Action]:
    prepared = [prepare(Document(str(n), f"title {n}", text), n) for n in range(count)]
    return [one for one in prepared if isinstance(one, Action)]


def send(
    refuse: Callable[[str, int], Any], todo: list[Action], **options: Any
) -> tuple[Outcome, FakeIndex, list[tuple[str, str]]]:
    client, index = make(refuse)
    rejected: list[tuple[str, str]] = []
    options = {"patience": 30.0, **options}
    sender = Sender(
        client, "i", rejected=lambda action, why: rejected.append((action.id, why)), **options
    )
    return sender.send(todo), index, rejected


def ids(found: list[Action]) -> list[str]:
    return [action.id for action in found]


def test_what_is_sent_is_created_or_replaced() -> None:
    client, index = make()
    sender = Sender(client, "i")
    assert ids(sender.send(actions(3)).created) == ["0", "1", "2"]
    again = sender.send(actions(4))
    assert (ids(again.created), ids(again.replaced), again.failed) == (["3"], ["0", "1", "2"], [])
    assert index.documents["1"] == {"title": "title 1", "passage": "text"}


@pytest.mark.parametrize(
    "refusal",
    [
        answer_error(429, "rejected_execution_exception"),
        answer_error(503, "unavailable_shards_exception"),
        answer_error(429, "circuit_breaking_exception"),
        answer_error(403, "cluster_block_exception"),
        answer_error(500, "some_exception"),
    ],
)
def test_only_the_refused_documents_are_sent_again(refusal: dict[str, Any]) -> None:
    outcome, index, rejected = send(
        lambda key, sent: refusal if key == "2" and sent < 3 else 201, actions(4)
    )
    assert (len(outcome.created), rejected) == (4, [])
    assert index.sent == {"0": 1, "1": 1, "2": 4, "3": 1}


@pytest.mark.parametrize(
    "error",
    [
        NoConnectionError("N/A", "reset", OSError("reset")),
        ConnectionTimeout("TIMEOUT", "read", OSError("timed out")),
        TransportError(429, "es_rejected_execution_exception", {}),
        TransportError(502, "bad gateway", {}),
        TransportError(403, "cluster_block_exception", {}),
        # What stands before a cluster, in JSON of its own.
        TransportError(503, {"code": 503, "message": "no upstream"}, {}),
        TransportError(429, ["slow down"], {}),
        AttributeError("'NoneType' object has no attribute 'get'"),
        "not json",
        '{"items": []}',
        '{"items": [{"delete": {}}, {}]}',
        "[]",
    ],
)
def test_a_request_that_is_not_answered_is_sent_again(error: Exception | str) -> None:
    client, index = make()
    index.answers = [error, error]
    outcome = Sender(client, "i").send(actions(2))
    assert (len(outcome.created), index.sent) == (2, {"0": 1, "1": 1})


@pytest.mark.parametrize("body", ["null", "[1]", '"down"', '{"error": {"code": 1}}'])
def test_any_json_of_an_error_is_waited_for(body: str) -> None:
    client, index = make()

    def refuse(_: bytes) -> int | None:
        if not index.requests and index.refused < 2:
            index.refused += 1
            index._raise_error(503, body, "application/json")
        return None

    index.refuse_body = refuse
    assert len(Sender(client, "i").send(actions(2)).created) == 2
    assert index.refused == 2


def test_it_is_told_when_waiting_is_over() -> None:
    client, index = make()
    error = NoConnectionError("N/A", "reset", OSError("reset"))
    index.answers = [error, error]
    waited: list[str] = []
    sender = Sender(client, "i", waiting=waited.append)
    sender.send(actions(2))
    sender.send(actions(2))
    assert [bool(why) for why in waited] == [True, True, False]


def test_what_the_engine_refuses_is_named_with_all_reasons() -> None:
    refusal = {
        "status": 400,
        "error": {
            "type": "mapper_parsing_exception",
            "reason": "failed to parse",
            "caused_by": {"reason": "deeper", "caused_by": {"reason": "deepest"}},
        },
    }
    outcome, _, rejected = send(lambda key, sent: refusal if key == "1" else 201, actions(3))
    assert (ids(outcome.created), ids(outcome.failed)) == (["0", "2"], ["1"])
    assert rejected == [("1", "mapper_parsing_exception: failed to parse: deeper: deepest")]


def test_a_document_that_always_makes_an_error_500_is_given_up() -> None:
    outcome, index, rejected = send(
        lambda key, sent: answer_error(500, "null_pointer_exception") if key == "1" else 201,
        actions(3),
    )
    assert (ids(outcome.failed), len(outcome.created)) == (["1"], 2)
    assert index.sent["1"] == 6
    assert "null_pointer_exception" in rejected[0][1]


def test_of_a_request_that_is_refused_whole_the_documents_at_fault_are_found() -> None:
    client, index = make()
    index.refuse_body = lambda body: 400 if b'"13"' in body or b'"5"' in body else None
    rejected: list[str] = []
    sender = Sender(client, "i", rejected=lambda action, why: rejected.append(action.id))
    outcome = sender.send(actions(20))
    assert sorted(rejected) == ["13", "5"]
    assert sorted(index.documents, key=int) == [str(n) for n in range(20) if n not in (5, 13)]
    assert len(outcome.created) == 18


def test_requests_become_as_small_as_the_cluster_takes_them() -> None:
    client, index = make()
    index.refuse_body = lambda body: 413 if len(body) > 2000 else None
    rejected: list[tuple[str, str]] = []
    sender = Sender(client, "i", rejected=lambda action, why: rejected.append((action.id, why)))
    outcome = sender.send([*actions(50, "x" * 100), *actions(1, "y" * 5000)])
    assert len(outcome.created) == 50
    assert [one[0] for one in rejected] == ["0"]
    assert "http.max_content_length" in rejected[0][1]
    assert sender.pace.target <= 4000


def test_patience_ends_with_what_to_do() -> None:
    with pytest.raises(IndexingError, match=r"not taken 3 documents .* \(no connection\).* run"):
        send(lambda key, sent: 0, actions(3), patience=0.02)
    with pytest.raises(IndexingError, match=r"document '0' .*rejected_execution"):
        send(
            lambda key, sent: answer_error(429, "rejected_execution_exception"),
            actions(1),
            patience=0.02,
        )


def test_patience_begins_anew_with_every_document_that_gets_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second passes with each request, and one document gets through with each."""
    now = [0.0]
    monkeypatch.setattr("indexing.bulk.time", SimpleNamespace(monotonic=lambda: now[0]))

    def refuse(key: str, sent: int) -> Any:
        now[0] += key == str(sent)
        return 201 if key == str(sent) else answer_error(429, "rejected_execution_exception")

    outcome, _, _ = send(refuse, actions(20), patience=3.0)
    assert len(outcome.created) == 20
    assert now[0] == 20


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AuthorizationException(403, "security_exception", {}), "may not write"),
        (TransportError(401, "unauthorized", {}), "may not write"),
        (TransportError(404, "index_not_found_exception", {}), "no index i"),
        (TransportError(405, "not allowed", {}), "no index i"),
    ],
)
def test_what_no_waiting_helps_ends_the_load(error: Exception, said: str) -> None:
    client, index = make()
    index.answers = [error]
    with pytest.raises(IndexingError, match=said):
        Sender(client, "i").send(actions(2))


def test_an_index_that_is_gone_ends_the_load() -> None:
    with pytest.raises(IndexingError, match="gone or closed"):
        send(lambda key, sent: answer_error(404, "index_not_found_exception"), actions(2))


def test_waiting_ends_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.bulk._FIRST_PAUSE", 60.0)
    monkeypatch.setattr("indexing.bulk._LONGEST_PAUSE", 60.0)
    stop = threading.Event()
    waited: list[str] = []

    def waiting(why: str) -> None:
        waited.append(why)
        stop.set()

    with pytest.raises(Stopped):
        send(lambda key, sent: 0, actions(2), stop=stop, waiting=waiting, patience=300)
    assert waited[0].startswith("no connection; next try in ")


def test_the_source_order_decides_between_documents_of_one_id() -> None:
    """Whatever the order they arrive in; one that something else wrote since is no such thing."""
    client, index = make()
    version = version_now()
    rejected: list[str] = []
    sender = Sender(client, "i", version=version, rejected=lambda action, why: rejected.append(why))
    early, late = (prepare(Document("1", text, ""), n, version) for n, text in enumerate("ab"))
    assert isinstance(early, Action)
    assert isinstance(late, Action)
    assert len(sender.send([late]).created) == 1
    assert len(sender.send([early]).replaced) == 1
    assert len(sender.send([late]).replaced) == 1  # sent again after a kill
    assert index.documents["1"]["title"] == "b"
    index.versions["1"] = version + VERSIONS + 7
    assert len(sender.send([early]).failed) == 1
    assert "something else wrote this document" in rejected[0]


def test_versions_grow_with_time_and_fit() -> None:
    version = version_now()
    assert version % VERSIONS == 0
    assert 0 < version + VERSIONS < 2**63


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.integers(1000, 100_000),
    st.integers(1, 5),
)
def test_every_document_ends_in_exactly_one_place(fates: list[int], size: int, tries: int) -> None:
    """0 is taken, 1 refused, 2 taken at a later try, 3 refused at a later try."""
    todo = actions(len(fates), "x" * 300)

    def refuse(key: str, sent: int) -> Any:
        fate = fates[int(key)]
        if fate >= 2 and sent < tries:
            return answer_error(429, "rejected_execution_exception")
        return answer_error(400, "bad") if fate % 2 else 201

    outcome, index, rejected = send(refuse, todo, pace=Pace(start=size, least=500, most=size))
    good = [str(n) for n, fate in enumerate(fates) if fate % 2 == 0]
    bad = [str(n) for n, fate in enumerate(fates) if fate % 2]
    assert sorted(ids(outcome.created)) == sorted(good) == sorted(index.documents)
    assert sorted(ids(outcome.failed)) == sorted(bad) == sorted(one[0] for one in rejected)
    assert outcome.replaced == []


def test_requests_grow_while_answers_are_quick_and_shrink_when_they_are_not() -> None:
    pace = Pace(start=1000, least=100, most=5000, seconds=1.0)
    pace.answered(1000, 0.1)
    assert pace.target == 1250
    pace.answered(10, 0.1)  # says nothing about larger ones
    assert pace.target == 1250
    pace.answered(1250, 0.7)
    assert pace.target == 1250
    pace.answered(1200, 3.0)
    assert pace.target == 900
    for _ in range(20):
        pace.answered(pace.target, 0.1)
    assert pace.target == 5000
    pace.refused(5000)
    assert pace.target == 2500
    for _ in range(20):
        pace.refused(pace.target)
    assert pace.target == 100
    pace.too_large(160)
    for _ in range(20):
        pace.answered(pace.target, 0.0)
    assert pace.target == 80
    with pytest.raises(ValueError, match="no request size"):
        Pace(least=10, most=5)


def test_a_document_becomes_json_without_loss() -> None:
    document = Document("ü\n", "t\n", "\u2028 p", {"a": [1, None]}, vector=(0.5, 1.0))
    action = prepare(document, 7, VERSIONS)
    assert isinstance(action, Action)
    header, source, rest = action.lines.split(b"\n")
    assert json.loads(header) == {
        "index": {"_id": "ü\n", "version": VERSIONS + 7, "version_type": "external_gte"}
    }
    assert json.loads(source) == document.fields() == source_of(action)
    assert rest == b""
    assert action.position == 7
    assert action.document is None
    assert prepare(document, keep=True).document is document  # type: ignore[union-attr]


def test_keys_tell_ids_apart_and_are_never_zero() -> None:
    assert key_of(b"a") == key_of(b"a") != key_of(b"b")
    assert len(key_of(b"")) == 8
    assert any(key_of(b"a"))


@pytest.mark.parametrize(
    ("document", "why"),
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
    document: Document, why: str
) -> None:
    failure = prepare(document)
    assert isinstance(failure, Failure)
    assert why in failure.reason


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


def test_reasons_may_have_any_form() -> None:
    assert reason({"status": 418}) == "status 418"
    assert reason({"error": "just text"}) == "just text"
