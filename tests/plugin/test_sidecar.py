import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plugin.cli.serve import listening_socket
from plugin.ports import free_port
from plugin.sidecar.app import Done, _answer, _json, build_app
from plugin.sidecar.logs import JsonLines
from plugin.sidecar.protocol import (
    QuickReader,
    RerankRequest,
    RerankResponse,
    WireRankedHit,
    WireStage,
)
from plugin.sidecar.settings import load_settings
from reranker import Cascade, Hit, RankedHit, RerankResult, StageReport
from tests.plugin.sidecar.fakes import (
    Gated,
    background,
    sample,
    search,
    sentence,
    serving,
)
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
CONTRACT = REPOSITORY / "tests" / "contract"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="session")
def cascade() -> Cascade:
    return Cascade.load(threads=1)


@pytest.fixture(scope="module")
def client(cascade: Cascade) -> Iterator[httpx.Client]:
    limits = {
        "max_hits": 50,
        "max_body_bytes": 100_000,
        "max_query_characters": 500,
        "max_title_characters": 3000,
        "max_passage_characters": 20_000,
        "max_request_tokens": 4000,
    }
    with serving(build_app(cascade, load_settings(**limits))) as client:
        yield client


# The contract.


def test_the_contracts_example_is_answered(client: httpx.Client) -> None:
    body = json.loads((CONTRACT / "request.json").read_bytes()) | {"brief": False}
    response = client.post("/rerank", json=body)
    assert response.status_code == 200
    answer = RerankResponse.model_validate_json(response.content)
    ids = [hit["id"] for hit in body["hits"]]
    assert sorted(hit.index for hit in answer.hits) == [0, 1, 2]
    assert all(hit.id == ids[hit.index] for hit in answer.hits)
    assert [int(hit.score) for hit in answer.hits] == [2, 1, 1]  # passage_depth is 1
    unknown = next(hit for hit in answer.hits if hit.id == "untitled")
    assert unknown.first_stage_score is None
    assert [(stage.name, stage.scored) for stage in answer.stages] == [("title", 2), ("passage", 1)]
    assert answer.complete
    assert answer.milliseconds > 0


def test_answers_have_the_fields_of_the_contracts_example(client: httpx.Client) -> None:
    body = json.loads((CONTRACT / "request.json").read_bytes())
    assert body["brief"]
    for asked, name in ((body, "brief.json"), (body | {"brief": False}, "response.json")):
        ours = client.post("/rerank", json=asked).json()
        example = json.loads((CONTRACT / name).read_bytes())
        assert ours.keys() == example.keys()
        assert ours["hits"][0].keys() == example["hits"][0].keys()
        assert ours["stages"][0].keys() == example["stages"][0].keys()
        read = RerankResponse(**example).model_dump_json(exclude_unset=True)
        assert json.loads(read) == example


def test_the_library_and_the_wire_say_the_same(client: httpx.Client, cascade: Cascade) -> None:
    hits = [
        Hit("a", "bisect: Bisection algorithms", "Keeps a list sorted.", 3.0),
        Hit("b", "heapq.merge: Merge sorted inputs", "Returns a generator.", 2.0),
        Hit("c", "", "merge lists", math.nan),
    ]
    wire = [
        {**hit._asdict(), "score": None if math.isnan(hit.score) else hit.score} for hit in hits
    ]
    answer = client.post("/rerank", json=search(hits=wire, passage_depth=2)).json()
    expected = cascade.rerank("merge lists", hits, passage_depth=2)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected.hits]
    assert [hit["score"] for hit in answer["hits"]] == [hit.score for hit in expected.hits]
    for number in ("coverage", "mention"):
        got = [hit[number] for hit in answer["hits"]]
        assert got == [getattr(hit, number) for hit in expected.hits]
    assert answer["hits"][-1]["coverage"] != answer["hits"][0]["coverage"]


def test_a_query_longer_than_the_models_read_is_said_and_counted(client: httpx.Client) -> None:
    counted = 'titlecast_truncated_texts_total{stage="query"}'
    assert not client.post("/rerank", json=search()).json()["query_cut"]
    before = sample(client, counted)
    assert client.post("/rerank", json=search(query="," * 400)).json()["query_cut"]
    assert sample(client, counted) == before + 1


def test_no_hits_are_no_error(client: httpx.Client) -> None:
    answer = client.post("/rerank", json=search(hits=[])).json()
    assert answer["hits"] == []
    assert answer["complete"] is True


@pytest.mark.parametrize("path", ["/health", "/readyz"])
def test_health_names_the_models(client: httpx.Client, cascade: Cascade, path: str) -> None:
    answer = client.get(path).json()
    assert answer["status"] == "ok"
    assert answer["model"] == cascade.name
    assert answer["version"]


# What is refused, and in which words.


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "JSON object"),
        (b"{", 400, "no JSON"),
        (b"[1, 2]", 422, "JSON object"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b"[" * 50_000, 400, "JSON object"),
        (b'{"hits": []}', 422, "query"),
        (b'{"query": "a"}', 422, "hits"),
        (b'{"query": "", "hits": []}', 422, "query is empty"),
        (b'{"query": " \\n\\u2003 ", "hits": []}', 422, "query is empty"),
        (b'{"query": "\\u200b\\u0000", "hits": [{"title": "a"}]}', 422, "query is empty"),
        (b'{"query": "%s", "hits": []}' % (b"a" * 501), 422, "MAX_QUERY_CHARACTERS"),
        (b'{"query": "a", "hits": [{}, {"title": 7}]}', 422, "hits[1].title"),
        (b'{"query": "a", "hits": [{"score": "high"}]}', 422, "hits[0].score"),
        (b'{"query": "a", "hits": [{"score": NaN}]}', 422, "send null"),
        (b'{"query": "a", "hits": [{"score": -Infinity}]}', 422, "send null"),
        (b'{"query": "a", "hits": [{"score": 1e999}]}', 422, "send null"),
        (b'{"query": "a", "hits": [], "passage_depth": -1}', 422, "passage_depth"),
        (b'{"query": "a", "hits": [], "deadline_ms": 0}', 422, "deadline_ms"),
        (b'{"query": "a", "hits": [], "deadline_ms": true}', 422, "give a number"),
        (b'{"query": "a", "hits": [], "deadline_ms": "5"}', 422, "give a number"),
        (b'{"query": "a", "hits": [], "passage_depth": false}', 422, "give a number"),
        (b'{"query": "a", "hits": [], "brief": "yes"}', 422, "brief"),
        (b'{"query": "a", "hits": [%s]}' % b",".join([b"{}"] * 51), 422, "MAX_HITS"),
        (b'{"hits": [%s]}' % b",".join([b"1"] * 51), 422, "MAX_HITS"),  # looked at last
        (b'{"query": "a", "hits": [{"title": "%s"}]}' % (b"a" * 3001), 422, "MAX_TITLE_CHARACTERS"),
        (
            b'{"query": "a", "hits": [{}, {"passage": "%s"}]}' % (b"a" * 20_001),
            422,
            "MAX_PASSAGE_CHARACTERS",
        ),
        (
            b'{"query": "a", "hits": [%s]}' % b",".join([b'{"passage": "%s"}' % (b"a " * 999)] * 9),
            413,
            "MAX_REQUEST_TOKENS",
        ),
        (b'{"query": "%s", "hits": []}' % (b"a" * 100_001), 413, "MAX_BODY_BYTES"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_bad_input_is_refused_in_one_sentence(
    client: httpx.Client, body: bytes, status: int, words: str
) -> None:
    response = client.post("/rerank", content=body, headers=JSON)
    assert response.status_code == status
    assert words in sentence(response)


def test_of_many_bad_hits_the_first_is_told() -> None:
    with pytest.raises(ValidationError) as error:
        RerankRequest(query="q", hits=[{}, *[1] * 1000])  # type: ignore[list-item]
    (first,) = error.value.errors()
    assert first["loc"] == ("hits", 1)


def test_another_content_type_is_refused(client: httpx.Client) -> None:
    headers = {"content-type": "text/plain"}
    response = client.post("/rerank", content=json.dumps(search()), headers=headers)
    assert response.status_code == 422
    assert "Content-Type: application/json" in sentence(response)
    response = client.post("/rerank", content=b"[" * 50_000, headers=headers)
    assert response.status_code == 422


def test_a_long_body_is_cut_off_while_it_is_read(client: httpx.Client) -> None:
    sent = []

    def endless() -> Iterator[bytes]:  # without a Content-Length, therefore
        for _ in range(10_000):
            sent.append(1)
            yield b"x" * 10_000

    # The server answers and closes; a client that still writes may see either.
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        response = client.post("/rerank", content=endless(), headers=JSON)
        assert response.status_code == 413
        assert "MAX_BODY_BYTES" in sentence(response)
    assert client.get("/health").status_code == 200
    assert len(sent) < 10_000


def test_a_body_announced_too_long_is_not_waited_for(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
        raw.settimeout(60)
        raw.sendall(
            b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert b" 413 " in raw.recv(1000)


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/rerank"), ("PUT", "/rerank")])
def test_what_is_not_there_says_what_is(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    assert response.status_code in (404, 405)
    assert "POST /rerank" in sentence(response)


def test_the_key_is_asked_of_searches(cascade: Cascade, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(build_app(cascade, load_settings(api_key="open-sesame"))) as client:
        for headers in (
            {},
            {"authorization": "open-sesame"},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer open-sesame2"},
            {"authorization": "Bearer"},
            {"authorization": b"Bearer \xff"},
        ):
            response = client.post("/rerank", json=search(), headers=headers)
            assert response.status_code == 401
            assert "Authorization: Bearer" in sentence(response)
            assert response.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": "Bearer open-sesame"}
        assert client.post("/rerank", json=search(), headers=headers).status_code == 200
        assert client.get("/health").status_code == 200  # for those who watch the process
        # The body counts for nothing, and is taken in all the same: over unread bytes the
        # connection would be reset, and the caller may not see why.
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
            raw.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
            raw.settimeout(0.3)
            with pytest.raises(TimeoutError):
                raw.recv(1000)
            raw.settimeout(60)
            raw.sendall(b"}")
            assert b" 401 " in raw.recv(1000)
    ours = [one for one in caplog.records if one.name.startswith(("plugin", "uvicorn"))]
    logged = "\n".join(map(JsonLines().format, ours))
    assert "hits in" in logged
    for secret in ("sesame", "wrong", "Bearer"):  # what is wrong here may be right elsewhere
        assert secret not in logged


def test_half_a_surrogate_pair_costs_no_search_its_reranking(client: httpx.Client) -> None:
    body = b'{"query": "merge \\ud800", "hits": [{"id": "\\udfff", "title": "merge \\udc00"}]}'
    response = client.post("/rerank", content=body, headers=JSON)
    assert response.status_code == 200
    assert response.json()["hits"][0]["index"] == 0


any_text = st.text(st.characters(), max_size=30) | st.sampled_from(
    ["", " ", "\x00", "\ud800", "\u202e", "a" * 3000, "\x1b[31m", "[SEP]", "merge", "\U0010ffff"]
)
any_score = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers()
any_hit = st.fixed_dictionaries(
    {}, optional={"id": any_text, "title": any_text, "passage": any_text, "score": any_score}
)
any_json = st.recursive(
    st.none() | st.booleans() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)
any_search = st.fixed_dictionaries(
    {"query": any_text, "hits": st.lists(any_hit, max_size=8)},
    optional={
        "passage_depth": st.integers(-1, 2**70),
        "deadline_ms": st.floats(min_value=-1, max_value=1e9, allow_nan=False),
        "brief": st.booleans(),
        "extra": any_json,
    },
)


def unseen(character: str) -> bool:
    """Of such characters the tokenizer may leave nothing: blanks, controls, lone accents."""
    return unicodedata.category(character)[0] in "ZCM" or character == "\ufffd"


@settings(max_examples=60)
@given(body=any_search)
def test_every_answer_is_an_order_of_the_hits(client: httpx.Client, body: dict[str, Any]) -> None:
    response = client.post("/rerank", content=json.dumps(body), headers=JSON)
    if response.status_code != 200:
        assert response.status_code == 422, response.text
        sentence(response)
        bad = all(map(unseen, body["query"])) or len(body["query"]) > 500
        bad = bad or body.get("passage_depth", 0) < 0 or body.get("deadline_ms", 1) <= 0
        assert bad
        return
    assert "NaN" not in response.text
    answer = RerankResponse.model_validate_json(response.content)
    assert sorted(hit.index for hit in answer.hits) == list(range(len(body["hits"])))
    scores = [hit.score for hit in answer.hits]
    assert all(math.isfinite(score) and score > 0 for score in scores)
    assert scores == sorted(scores, reverse=True)


# The ways that save time, and the careful ones.


def read_carefully(body: bytes) -> RerankRequest | None:
    try:
        search = RerankRequest.model_validate(json.loads(body))
    except ValueError:  # no JSON, or no search
        return None
    return search if len(search.hits) <= 8 else None


@settings(max_examples=300)
@given(body=any_search, ascii_only=st.booleans())
def test_what_is_read_quickly_is_what_is_read_carefully(
    body: dict[str, Any], ascii_only: bool
) -> None:
    text = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "replace")
    quick = QuickReader(most_hits=8).read(text)
    if quick is not None:
        careful = read_carefully(text)
        assert careful is not None
        assert quick.model_dump() == careful.model_dump()
    elif "\\ud" not in text.decode():  # of halves of a pair, which want mending
        assert read_carefully(text) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"query": "a", "query": "b", "hits": [], "hits": [{"id": "1", "id": "2"}]}',
        b'{"query": "a", "hits": [{"score": 7, "title": null}]}',
        b'{"query": "a", "hits": [{"score": true}]}',
        b'{"query": "a", "hits": [{"score": "7"}]}',
        b'{"query": "a", "hits": [{"score": NaN}]}',
        b'{"query": "a", "hits": [{"score": %s}]}' % (b"9" * 400),
        b'{"query": "a", "hits": [{"score": 12345678901234567890}], "passage_depth": 5.0}',
        b'{"query": "a", "hits": [{"title": "\xff"}]}',
        b'{"query": "a", "hits": [%s]}' % b",".join([b"{}"] * 9),
        '{"query": "a", "hits": [{"title": "\u00e9"}]}'.encode("utf-16"),
        b'\xef\xbb\xbf{"query": "a", "hits": []}',
        b'{"query": "a", "hits": []} ',
        b'{"query": "a", "hits": []},',
        b"[" * 5000,
        b"",
    ],
    ids=lambda body: repr(body[:60]),
)
def test_odd_bodies_are_read_alike_or_left_to_care(body: bytes) -> None:
    quick = QuickReader(most_hits=8).read(body)
    if quick is not None:
        careful = read_carefully(body)
        assert careful is not None
        assert quick.model_dump() == careful.model_dump()


def test_a_usual_search_is_read_quickly() -> None:
    body = (CONTRACT / "request.json").read_bytes()
    found = QuickReader(most_hits=3).read(body)
    assert found is not None
    assert found.model_dump() == RerankRequest.model_validate_json(body).model_dump()
    assert QuickReader(most_hits=2).read(body) is None


finite = st.floats(allow_nan=False, allow_infinity=False)
ranked_hits = st.builds(
    RankedHit,
    id=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    index=st.integers(0, 2**31),
    score=finite,
    first_stage_score=st.floats(),
    title_score=st.none() | finite,
    passage_score=st.none() | finite,
    coverage=finite,
    mention=finite,
)


@given(hits=st.lists(ranked_hits, max_size=4), complete=st.booleans(), cut=st.booleans())
def test_an_answer_is_what_the_contracts_model_would_write(
    hits: list[RankedHit], complete: bool, cut: bool
) -> None:
    report = StageReport("title", 3, 1.5, truncated=2, skipped="settled: \u00e9")
    done = Done(RerankResult(hits, [report], complete, query_cut=cut), "model", 0)
    written = RerankResponse.model_validate_json(_json(_answer(done, 2.5)).body)
    brief = RerankResponse.model_validate_json(_json(_answer(done, 2.5, brief=True)).body)
    short = [WireRankedHit(index=hit.index, score=hit.score) for hit in hits]
    assert brief == written.model_copy(update={"hits": short})
    firsts = [hit.first_stage_score for hit in hits]
    assert written == RerankResponse(
        hits=[
            WireRankedHit(
                index=hit.index,
                id=hit.id,
                score=hit.score,
                first_stage_score=first if math.isfinite(first) else None,
                title_score=hit.title_score,
                passage_score=hit.passage_score,
                coverage=hit.coverage,
                mention=hit.mention,
            )
            for hit, first in zip(hits, firsts, strict=True)
        ],
        stages=[
            WireStage(name="title", scored=3, milliseconds=1.5, truncated=2, skipped=report.skipped)
        ],
        complete=complete,
        query_cut=cut,
        milliseconds=2.5,
        model="model",
    )


@settings(max_examples=60)
@given(body=any_json | st.dictionaries(st.sampled_from(["query", "hits"]), any_json))
def test_whatever_is_sent_is_answered_or_refused(client: httpx.Client, body: Any) -> None:
    response = client.post("/rerank", content=json.dumps(body), headers=JSON)
    assert response.status_code in (200, 422)


@settings(max_examples=60)
@given(body=st.binary(max_size=100))
def test_no_bytes_are_a_failure(client: httpx.Client, body: bytes) -> None:
    response = client.post("/rerank", content=body, headers=JSON)
    assert response.status_code in (400, 422)
    sentence(response)


# Admission, deadlines, and callers that go away.


def test_the_line_is_bounded() -> None:
    gated = Gated()
    limits = load_settings(max_concurrent=1, max_waiting=1)
    with serving(build_app(gated, limits)) as client:
        with background(client, search()) as first:
            wait_until(lambda: len(gated.asked) == 1)
            with background(client, search(), search()) as others:  # one waits, one is too many
                wait_until(lambda: bool(others))
                assert client.get("/health").status_code == 200  # the loop is free meanwhile
                gated.open.set()
        assert [answer.status_code for answer in first] == [200]
        assert [answer.status_code for answer in others] == [429, 200]
        assert others[0].headers["retry-after"] == "1"
        assert "MAX_WAITING" in sentence(others[0])
        assert client.post("/rerank", json=search()).status_code == 200  # there is room again


UNREAD = "titlecast_unread_refusals_total {:.1f}\n"
WAITING = "titlecast_waiting_requests {:.1f}\n"


def test_what_is_one_too_many_is_not_read() -> None:
    gated = Gated()
    with serving(build_app(gated, load_settings(max_concurrent=1, max_waiting=0))) as client:
        with background(client, search()):
            wait_until(lambda: len(gated.asked) == 1)
            for path, said in (("/rerank", "error"), ("/v2/rerank", "message")):
                answer = client.post(path, content=b"no JSON at all", headers=JSON)
                assert answer.status_code == 429
                assert answer.headers["retry-after"] == "1"
                assert "connection" not in answer.headers  # to be used again
                assert "MAX_WAITING" in answer.json()[said]
            # Nothing is known of a body whose length is not announced.
            assert client.post("/rerank", content=iter([b"{"]), headers=JSON).status_code == 400
            assert UNREAD.format(2) in client.get("/metrics").text
            gated.open.set()
        assert client.post("/rerank", content=b"no JSON", headers=JSON).status_code == 400


def test_who_has_too_little_time_is_told_by_the_head_alone() -> None:
    gated = Gated()
    limits = load_settings(max_concurrent=1)
    hurried = {**JSON, "titlecast-deadline-ms": "1000"}
    nonsense = search(query="x" * 400)
    del nonsense["hits"]
    app = build_app(gated, limits)
    with serving(app) as client:

        def ask(**headers: str) -> int:
            return client.post("/rerank", json=nonsense, headers={**JSON, **headers}).status_code

        # One search of about a hundred tokens, which takes a minute, or so the line believes.
        with background(client, search(query="x" * 400)):
            wait_until(lambda: len(gated.asked) == 1)
            app.state.sidecar.line.observe(1, 0.6)
            assert ask() == 422  # it may have all the time in the world
            assert ask(**{"titlecast-deadline-ms": "600000"}) == 422
            for unusable in ("soon", "nan", "inf", ""):
                assert ask(**{"titlecast-deadline-ms": unusable}) == 422
            assert ask(**hurried) == 429
            assert UNREAD.format(1) in client.get("/metrics").text
            gated.open.set()
        assert ask(**hurried) == 422


LEAN = {"query": "x", "hits": [{"id": "x" * 4000, "title": "t"}]}  # much text, little work
DENSE = {"query": "y" * 400, "hits": [{"title": "z" * 400}], "passage_depth": 1}


@pytest.mark.parametrize(("before", "unread"), [(DENSE, 1), (LEAN, 0)])
def test_work_is_judged_by_the_leanest_body_of_late(before: dict[str, Any], unread: int) -> None:
    gated = Gated()
    app = build_app(gated, load_settings(max_concurrent=1, max_waiting_tokens=300))
    with serving(app) as client, background(client, before):
        wait_until(lambda: len(gated.asked) == 1)
        with background(client, DENSE):
            wait_until(lambda: app.state.sidecar.line.waiting == 1)
            assert client.post("/rerank", json=DENSE).status_code == 429
            metrics = client.get("/metrics").text
            gated.open.set()
    assert UNREAD.format(unread) in metrics


@pytest.mark.parametrize(("complete", "status"), [(True, 200), (False, 429)])
def test_the_line_counts_passages_as_far_as_they_are_read(complete: bool, status: int) -> None:
    class Sparing(Gated):
        """Stops early: once nothing more is to be won, or where the time is used up."""

        def rerank(self, *args: Any, **more: Any) -> RerankResult:
            result = super().rerank(*args, **more)
            read = StageReport("passage", 1, 1.0, tokens=10)
            return RerankResult(result.hits, [*result.stages, read], complete)

    sparing = Sparing()
    limits = load_settings(max_concurrent=1, max_waiting_tokens=300)
    body = search(hits=[{"title": "merge", "passage": "x" * 400}] * 2)  # 200 tokens, if all is read
    with serving(build_app(sparing, limits)) as client:
        sparing.open.set()
        assert client.post("/rerank", json=body).status_code == 200
        sparing.open.clear()
        with background(client, body):
            wait_until(lambda: len(sparing.asked) == 2)
            with background(client, body, body) as others:
                wait_until(lambda: bool(others) or WAITING.format(2) in client.get("/metrics").text)
                sparing.open.set()
        assert sorted(answer.status_code for answer in others) == [200, status]


def test_a_body_that_is_not_read_may_not_dawdle() -> None:
    gated = Gated()
    limits = load_settings(max_concurrent=1, max_waiting=0, read_seconds=0.3)
    with serving(build_app(gated, limits)) as client, background(client, search()):
        wait_until(lambda: len(gated.asked) == 1)
        address = (client.base_url.host, client.base_url.port or 0)
        with socket.create_connection(address, timeout=60) as raw:
            raw.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            answer = raw.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        gated.open.set()


def test_refusals_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    gated = Gated()
    limits = load_settings(max_concurrent=1, max_waiting=0)
    with (
        caplog.at_level(logging.INFO, "plugin.sidecar"),
        serving(build_app(gated, limits)) as client,
        background(client, search()),
    ):
        wait_until(lambda: len(gated.asked) == 1)
        for _ in range(20):
            assert client.post("/rerank", json=search()).status_code == 429
        gated.open.set()
    lines = [text for text in caplog.messages if "refused" in text]
    assert 1 <= len(lines) < 10
    assert lines[0].startswith("1 searches refused")


CALLER_GONE = 'titlecast_requests_total{outcome="caller_gone",path="/rerank"} 1.0'


@contextlib.contextmanager
def asking(client: httpx.Client, body: dict[str, Any]) -> Iterator[None]:
    """A caller that has sent a search, and hangs up at the block's end."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
        sent = json.dumps(body).encode()
        head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(sent), sent))
        yield


def test_a_search_whose_caller_is_gone_is_not_computed() -> None:
    gated = Gated()
    limits = load_settings(max_concurrent=1, max_waiting=5)
    with serving(build_app(gated, limits)) as client:
        with background(client, search(query="first")):
            wait_until(lambda: len(gated.asked) == 1)
            with asking(client, search(query="gone")):
                wait_until(lambda: WAITING.format(1) in client.get("/metrics").text)
            wait_until(lambda: CALLER_GONE in client.get("/metrics").text)
            with background(client, search(query="last")):
                wait_until(lambda: WAITING.format(1) in client.get("/metrics").text)
                gated.open.set()
        assert client.post("/rerank", json=search(query="after")).status_code == 200
    assert [query for query, _ in gated.asked] == ["first", "last", "after"]


def test_a_search_whose_caller_goes_away_is_computed_no_further() -> None:
    gated = Gated()
    with serving(build_app(gated, load_settings(max_concurrent=1, max_waiting=0))) as client:
        with asking(client, search(query="gone")):
            wait_until(lambda: len(gated.asked) == 1)
        wait_until(lambda: gated.stopped == ["gone"])
        gated.open.set()
        # Its place is free again, although nobody had opened the gate for it.
        wait_until(lambda: client.post("/rerank", json=search()).status_code == 200)
        assert CALLER_GONE in client.get("/metrics").text


def test_the_deadline_counts_from_the_arrival() -> None:
    gated = Gated()
    limits = load_settings(max_concurrent=1)
    with serving(build_app(gated, limits)) as client:
        with background(client, search(query="first")):
            wait_until(lambda: len(gated.asked) == 1)
            with background(client, search(query="second", deadline_ms=60_000)) as second:
                wait_until(lambda: WAITING.format(1) in client.get("/metrics").text)
                time.sleep(0.5)
                gated.open.set()
        assert second[0].status_code == 200
        assert second[0].json()["milliseconds"] > 200
        client.post("/rerank", json=search(query="third", deadline_ms=60_000))
    (_, none), (_, waited), (_, at_once) = gated.asked
    assert none is None
    assert waited is not None
    assert at_once is not None
    assert waited < 59_800
    assert waited < at_once < 60_000


def test_a_search_that_is_late_before_its_turn_is_dropped() -> None:
    gated = Gated()
    with serving(build_app(gated, load_settings(max_concurrent=1))) as client:
        with background(client, search(query="first")):
            wait_until(lambda: len(gated.asked) == 1)
            with background(client, search(query="late", deadline_ms=2000)) as late:
                wait_until(lambda: WAITING.format(1) in client.get("/metrics").text)
                time.sleep(2.1)
                gated.open.set()
        assert late[0].status_code == 503
        assert late[0].headers["retry-after"] == "1"
        assert "stood in line" in sentence(late[0])
    assert [query for query, _ in gated.asked] == ["first"]


def test_the_shortest_deadline_leaves_the_titles(client: httpx.Client) -> None:
    answer = client.post("/rerank", json=search(deadline_ms=0.001)).json()
    assert answer["complete"] is False
    assert [stage["scored"] for stage in answer["stages"]] == [1, 0]
    assert int(answer["hits"][0]["score"]) == 1


def test_it_answers_only_once_it_is_warm() -> None:
    gated = Gated()
    app = build_app(gated, load_settings())

    async def begin() -> None:
        async with app.router.lifespan_context(app):
            assert gated.warm
            assert gated.asked == []

    asyncio.run(begin())


def test_a_failure_shows_nothing_of_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Gated):
        def rerank(self, query: str, hits: Sequence[Hit], *_: Any) -> RerankResult:
            if not self.warm:
                return super().rerank(query, hits)
            raise RuntimeError("secret words")

    with serving(build_app(Broken(), load_settings())) as client:
        response = client.post("/rerank", json=search())
        assert response.status_code == 500
        assert "log" in sentence(response)
        assert "secret" not in response.text
    assert "secret words" in caplog.text  # but the operator sees it


def test_a_model_that_gives_no_number_is_a_failure() -> None:
    class NotANumber(Gated):
        def rerank(self, query: str, hits: Sequence[Hit], *_: Any) -> RerankResult:
            ranked = [RankedHit(hit.id, n, math.nan, hit.score) for n, hit in enumerate(hits)]
            return RerankResult(ranked, [], complete=True)

    with serving(build_app(NotANumber(), load_settings())) as client:
        response = client.post("/rerank", json=search())
        assert response.status_code == 500
        sentence(response)


def test_searches_are_logged_with_their_id(caplog: pytest.LogCaptureFixture) -> None:
    gated = Gated()
    gated.open.set()
    with (
        caplog.at_level(logging.INFO, "plugin.sidecar"),
        serving(build_app(gated, load_settings())) as client,
    ):
        client.post("/rerank", json=search(), headers={"x-opaque-id": "shop-42"})
    assert any("shop-42" in message and "1 hits" in message for message in caplog.messages)


def test_no_text_of_a_search_is_logged(cascade: Cascade, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "confidential"
    hits = [{"id": secret, "title": secret, "passage": secret, "score": 1}]
    with serving(build_app(cascade, load_settings(max_query_characters=50))) as client:
        for body, status in (
            (search(query=secret, hits=hits), 200),
            (search(query=secret * 10, hits=hits), 422),
            (search(query=secret, hits=[{"id": "a", "title": secret, "score": secret}]), 422),
        ):
            assert client.post("/rerank", json=body).status_code == status
        body = {"query": secret, "documents": [secret]}
        assert client.post("/v2/rerank", json=body).status_code == 200
        assert client.post("/rerank", content=secret, headers=JSON).status_code == 400
    ours = [one for one in caplog.records if one.name.startswith(("plugin", "reranker", "uvicorn"))]
    logged = "\n".join(map(JsonLines().format, ours))
    assert logged.count("hits in") == 2
    assert secret not in logged


def test_over_asgi_alone_it_answers_the_same(cascade: Cascade) -> None:
    app = build_app(cascade, load_settings())

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://sidecar") as client:
                body = json.loads((CONTRACT / "request.json").read_bytes())
                return await client.post("/rerank", json=body), await client.get("/openapi.json")

    answer, described = asyncio.run(ask())
    assert RerankResponse.model_validate_json(answer.content).hits[0].index == 1
    schemas = described.json()["components"]["schemas"]
    assert RerankRequest.__name__ in schemas
    assert RerankResponse.__name__ in schemas


# The process.

_WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "onnx", "sentence_transformers"):
    sys.modules[name] = None  # an import of it fails
import asyncio
import plugin.cli.serve
from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from reranker import Cascade

async def main():
    app = build_app(Cascade.load(threads=1), load_settings())
    async with app.router.lifespan_context(app):
        pass

asyncio.run(main())
"""


def test_it_runs_where_torch_cannot_be_imported() -> None:
    subprocess.run([sys.executable, "-c", _WITHOUT_TORCH], cwd=REPOSITORY, check=True, timeout=300)


_ALONE = """
import asyncio, os, sys
import httpx
from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from reranker import Cascade

URL = "http://127.0.0.1:9/title"
CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
         "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, arguments):
    if event in CALLS or event == "open" and arguments[2] & WRITES:
        print(event, arguments, flush=True)
        os._exit(3)

async def main():
    app = build_app(Cascade.load(threads=1), load_settings())
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:9")
        hit = {"id": URL, "title": URL, "passage": URL}
        for path, body in (
            ("/rerank", {"query": URL, "hits": [hit]}),
            ("/v1/rerank", {"query": URL, "documents": [URL, {"title": URL, "text": URL}]}),
            ("/v2/rerank", {"query": URL, "documents": [URL]}),
        ):
            answer = await client.post(path, json=body, headers={"Host": "127.0.0.1:9"})
            assert answer.status_code == 200, answer.text

sys.addaudithook(watch)
asyncio.run(main())
"""


def test_it_calls_nobody_and_writes_nothing_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ALONE], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


_RERANK = """
from reranker import Cascade, Hit

Cascade.load(threads=1).rerank("merge lists", [Hit("a", "merge", "sorted lists", 1.0)])
"""


def test_the_runtime_under_it_keeps_nothing_in_the_home_folder(tmp_path: Path) -> None:
    # Where it reports to its makers, it does so from compiled code, which no hook of Python sees;
    # on machines that say they are for tests, it does not.
    left_out = ("CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")
    environ = {name: text for name, text in os.environ.items() if name not in left_out}
    environ["HOME"] = str(tmp_path)
    subprocess.run(
        [sys.executable, "-c", _RERANK], cwd=REPOSITORY, env=environ, check=True, timeout=300
    )
    assert list(tmp_path.rglob("*")) == []


def serve(*options: str, **more: Any) -> subprocess.Popen[bytes]:
    environ = {name: text for name, text in os.environ.items() if "TITLECAST" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", "plugin.cli.main", "serve", *options],
        cwd=REPOSITORY,
        env=environ,
        stderr=subprocess.PIPE,
        **more,
    )


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve("--port", str(port)) as process:
            _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"port {port} is taken" in errors.decode()
    assert "--port" in errors.decode()
    assert "Traceback" not in errors.decode()


def test_a_name_with_addresses_of_both_kinds_is_listened_at_by_its_ipv4_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [
        (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)
        for family, address in (
            (socket.AF_INET6, ("::1", 0, 0, 0)),  # as the C library sorts localhost
            (socket.AF_INET, ("127.0.0.1", 0)),
        )
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listening_socket("localhost", 0) as listener:
        assert listener.family == socket.AF_INET


@pytest.mark.parametrize("way", ["SIGTERM", "SIGINT", "eof"])
def test_it_ends_when_it_is_told_to(way: str) -> None:
    port = free_port()
    with serve("--port", str(port), "--until-eof", stdin=subprocess.PIPE) as process:
        url = f"http://127.0.0.1:{port}/readyz"

        def healthy() -> bool:
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(url, timeout=60, trust_env=False).status_code == 200
            return False

        wait_until(healthy, 300)
        if way == "eof":
            assert process.stdin
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[way])
        process.wait(60)
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
