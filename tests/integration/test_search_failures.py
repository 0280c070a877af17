"""Searches whose sidecar is gone, slow or wrong: the engine's own page comes back, and why."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from tests.integration.corpus import (
    INDEX,
    QUERY,
    WINDOW,
    around,
    hits_of,
    ids,
    matching,
    pipeline,
    report,
    scores,
    unpiped,
)
from tests.integration.fakes import (
    App,
    Backwards,
    Gate,
    Recorder,
    blurting,
    changing,
    endless,
    saying,
)
from tests.integration.faults import stats

pytestmark = pytest.mark.usefixtures("index")

# The second page, with fewer fields than reranking reads: both have to be put right again.
PAGE: dict[str, Any] = {
    "query": matching(),
    "from": 3,
    "size": 4,
    "_source": ["group"],
    "aggs": {"groups": {"terms": {"field": "group"}}},
    "highlight": {"fields": {"passage": {"number_of_fragments": 1}}},
}


def search(client: OpenSearch, **options: Any) -> dict[str, Any]:
    body = {**PAGE, "search_pipeline": pipeline(**options)} if options else PAGE
    found: dict[str, Any] = client.search(index=INDEX, body=body)
    return found


def check_engines_page(client: OpenSearch, found: dict[str, Any], reason: str) -> None:
    """See that it is the engine's answer to the letter, with the reason."""
    own = unpiped(client, **PAGE)
    assert len(hits_of(own)) == 4
    assert found["hits"] == own["hits"]
    assert around(found) == around(own)
    said = report(found)
    assert set(said) == {"applied", "reason"}
    assert said["applied"] is False
    assert re.search(reason, said["reason"]), said["reason"]


def check_reranked(client: OpenSearch, found: dict[str, Any]) -> None:
    """See that it is the page of a sidecar that turns the order around."""
    window = unpiped(client, **{**PAGE, "from": 0, "size": WINDOW})
    assert report(found)["applied"], report(found)
    assert ids(found) == ids(window)[::-1][3:7]
    assert around(found) == around(window)


def check_error(client: OpenSearch, reason: str, **options: Any) -> None:
    with pytest.raises(TransportError) as caught:
        search(client, on_failure="error", **options)
    assert caught.value.status_code == 503
    assert re.search(reason, caught.value.info["error"]["reason"])


# No sidecar.


def test_a_sidecar_that_is_down(client: OpenSearch, sidecar: Any) -> None:
    check_engines_page(client, search(client), "^No sidecar can be reached: check that one runs")
    check_error(client, "No sidecar can be reached")


def test_an_error_of_one_search_is_no_other_ones(client: OpenSearch, sidecar: Any) -> None:
    lines: list[dict[str, Any]] = [
        {"index": INDEX},
        {**PAGE, "search_pipeline": pipeline(on_failure="error")},
        {"index": INDEX},
        PAGE,
    ]
    failed, kept = client.msearch(body=lines)["responses"]
    assert failed["status"] == 503
    assert "No sidecar can be reached" in failed["error"]["reason"]
    assert kept.pop("status") == 200
    check_engines_page(client, kept, "No sidecar can be reached")


def test_it_is_found_again_when_it_is_back(client: OpenSearch, sidecar: Any) -> None:
    app = build_app(Recorder(Backwards()), load_settings())
    for _ in range(2):
        check_engines_page(client, search(client), "No sidecar can be reached")
        with sidecar.serving(app):
            check_reranked(client, search(client))
            check_reranked(client, search(client))  # on the same connection
    # Connections that were left open are closed by now.
    with sidecar.serving(app):
        check_reranked(client, search(client))


def test_its_successor_is_reached_at_once(client: OpenSearch, sidecar: Any) -> None:
    for _ in range(3):
        with sidecar.serving(build_app(Recorder(Backwards()), load_settings())):
            check_reranked(client, search(client))


# A slow one.

SLOW: list[tuple[str, App]] = [
    ("says nothing", endless(None)),
    ("says no more than the head", endless(b"")),
    ("sends its answer byte by byte", endless(b'{"hits": [', b" ")),
]


@pytest.mark.parametrize("app", [app for _, app in SLOW], ids=[name for name, _ in SLOW])
def test_a_sidecar_that_takes_too_long(client: OpenSearch, sidecar: Any, app: App) -> None:
    # They would go on for ever: that there is an answer at all shows the limit.
    with sidecar.serving(app):
        reason = "^The sidecar did not answer within 300 ms: lower window"
        check_engines_page(client, search(client, timeout="300ms"), reason)
        check_error(client, reason, timeout="300ms")
    with sidecar.serving(build_app(Recorder(Backwards()), load_settings())):
        check_reranked(client, search(client))


def test_searches_that_wait_hold_up_no_others(client: OpenSearch, sidecar: Any) -> None:
    gate = Gate()
    most = 64  # as many calls as a node makes at one time, and more than it has search threads
    with sidecar.serving(gate), ThreadPoolExecutor(most) as pool:
        try:
            waiting = [pool.submit(search, client) for _ in range(most)]
            while gate.held < most:
                assert not any(one.done() for one in waiting)
                time.sleep(0.02)
            assert len(hits_of(unpiped(client, **PAGE))) == 4
            before = stats(client)["failures"]["in_flight_bound"]
            check_engines_page(client, search(client), "^64 calls to the sidecar are under way")
            assert stats(client)["failures"]["in_flight_bound"] == before + 1
            assert not any(one.done() for one in waiting)
        finally:
            gate.open.set()
        for one in waiting:
            check_engines_page(client, one.result(), "HTTP 503: the gate was opened")
    with sidecar.serving(build_app(Recorder(Backwards()), load_settings())):
        check_reranked(client, search(client))


def test_passages_that_were_not_read_in_time_are_told(client: OpenSearch, sidecar: Any) -> None:
    skipped = "deadline: 5 passages left unscored"
    with sidecar.serving(build_app(Recorder(Backwards(skipped)), load_settings())):
        found = search(client)
    check_reranked(client, found)
    assert report(found)["complete"] is False
    assert [stage["skipped"] for stage in report(found)["stages"]] == ["", skipped]
    assert all(1 < score < 2 for score in scores(found))


# One that answers, but not with an order.


def hit(number: int, **change: Any) -> Any:
    """A change of one hit of the answer."""
    return lambda answer: answer["hits"][number].update(change) or answer


def without(name: str) -> Any:
    return lambda answer: {key: value for key, value in answer.items() if key != name}


def as_text(old: bytes, new: bytes) -> Any:
    """A change of the JSON itself, into what no JSON library would write."""

    def change(answer: dict[str, Any]) -> bytes:
        text = json.dumps(answer).encode()
        assert old in text
        return text.replace(old, new, 1)

    return change


NO_JSON = r"answer is unusable \(it is not the JSON agreed\)"
NOT_EVERY = r"answer is unusable \(it ranks \d+ hits of 20\)"
NO_SUCH = r"answer is unusable \(hit -?\d+ is unknown or occurs twice\)"
NO_SCORES = r"answer is unusable \(its scores are not positive, finite and descending\)"

NONSENSE: list[tuple[str, App, str]] = [
    ("nothing", saying(200), NO_JSON),
    ("null", changing(lambda _: None), NO_JSON),
    ("a list", changing(lambda answer: answer["hits"]), NO_JSON),
    ("a page of HTML", saying(200, b"<html>Welcome</html>", content_type="text/html"), NO_JSON),
    ("half of it", changing(lambda answer: repr(answer).encode()[:100]), NO_JSON),
    (
        "too much",
        changing(lambda a: str(a).replace("'", '"').replace("True", "true").encode() + b"{}"),
        r"unusable \(something follows it\)",
    ),
    ("no text at all", saying(200, bytes(range(128, 256))), NO_JSON),
    ("no hits", changing(without("hits")), NO_JSON),
    ("no stages", changing(without("stages")), NO_JSON),
    ("an empty order", changing(lambda a: {**a, "hits": []}), NOT_EVERY),
    ("one hit less", changing(lambda a: {**a, "hits": a["hits"][:-1]}), NOT_EVERY),
    ("one hit more", changing(lambda a: {**a, "hits": [*a["hits"], a["hits"][-1]]}), NOT_EVERY),
    ("one hit twice", changing(hit(7, index=6)), NO_SUCH),
    ("a hit that was not sent", changing(hit(7, index=20)), NO_SUCH),
    ("a hit before the first", changing(hit(7, index=-1)), NO_SUCH),
    ("a hit's number as text", changing(hit(7, index="7")), NO_JSON),
    ("half a hit", changing(hit(7, index=7.5)), NO_JSON),
    ("a score of NaN", changing(hit(7, score=float("nan"))), NO_JSON),
    ("a score of infinity", changing(hit(0, score=float("inf"))), NO_JSON),
    ("a score beyond all", changing(hit(0, score=1e300)), "unusable"),
    ("a score as text", changing(hit(7, score="NaN")), NO_JSON),
    ("no score", changing(hit(7, score=None)), NO_JSON),
    ("a score of zero", changing(hit(19, score=0)), NO_SCORES),
    ("a score below zero", changing(hit(19, score=-1)), NO_SCORES),
    ("scores that rise", changing(hit(19, score=1.99)), NO_SCORES),
    (
        "a name of one hit twice",
        changing(as_text(b'"index": 7', b'"index": 7, "index": 6')),
        "unusable",
    ),
]


@pytest.mark.parametrize(
    ("app", "reason"), [(app, why) for _, app, why in NONSENSE], ids=[name for name, *_ in NONSENSE]
)
def test_a_sidecar_that_answers_nonsense(
    client: OpenSearch, sidecar: Any, app: App, reason: str
) -> None:
    with sidecar.serving(app):
        check_engines_page(client, search(client), reason)


@pytest.mark.parametrize(
    "app",
    [
        changing(lambda answer: answer),
        changing(lambda answer: {**answer, "news": {"of": ["a", "later", "version"]}}),
        changing(hit(0, title_score=None, news=1)),
    ],
    ids=["unchanged", "more fields", "more of a hit"],
)
def test_an_answer_with_all_that_was_agreed_is_taken(
    client: OpenSearch, sidecar: Any, app: App
) -> None:
    # So that what is refused above is refused for its fault.
    with sidecar.serving(app):
        found = search(client)
    assert report(found)["applied"]
    assert report(found)["model"] == "changing"
    assert ids(found) == ids(unpiped(client, **PAGE))


REFUSALS: list[tuple[str, App, str]] = [
    ("429", saying(429), "^The sidecar answered HTTP 429: see its log"),
    ("429 with a sentence", saying(429, b'{"error": "the line is full"}'), "429: the line is full"),
    ("500", saying(500, b"<html>oops"), "^The sidecar answered HTTP 500: see its log"),
    ("502 of a proxy", saying(502, b"<html>bad gateway</html>"), "HTTP 502"),
    ("503", saying(503, b'{"error": "late"}'), "HTTP 503: late"),
    ("404", saying(404), "HTTP 404: check that .* names a Titlecast sidecar"),
    ("401", saying(401), "HTTP 401: check .*key in the node's keystore"),
    ("302", saying(302, location="http://127.0.0.1:1/"), "HTTP 302: redirects are not followed"),
    ("204", saying(204), "HTTP 204"),
]


@pytest.mark.parametrize(
    ("app", "reason"), [(app, why) for _, app, why in REFUSALS], ids=[name for name, *_ in REFUSALS]
)
def test_a_sidecar_that_refuses(client: OpenSearch, sidecar: Any, app: App, reason: str) -> None:
    with sidecar.serving(app):
        check_engines_page(client, search(client), reason)
        check_error(client, reason)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"max_hits": 5},
            "HTTP 422: hits has 20 entries, more than 5: lower the pipeline's window",
        ),
        ({"max_body_bytes": 1024}, "HTTP 413: the request is longer than 1024 bytes"),
        ({"max_query_characters": 9}, f"HTTP 422: query has {len(QUERY)} characters"),
        ({"api_key": "a-key-of-its-own"}, "HTTP 401: the key is missing or wrong"),
    ],
    ids=["hits", "length", "query", "key"],
)
def test_what_the_real_sidecar_refuses_it_explains(
    client: OpenSearch, sidecar: Any, settings: dict[str, Any], reason: str
) -> None:
    with sidecar.serving(build_app(Recorder(Backwards()), load_settings(**settings))):
        check_engines_page(client, search(client), reason)


def test_models_that_fail(client: OpenSearch, sidecar: Any) -> None:
    class Failing(Backwards):
        def rerank(self, query: str, *rest: Any, **more: Any) -> Any:
            if query == QUERY:
                raise RuntimeError("of the model's own affairs")
            return super().rerank(query, *rest, **more)

    with sidecar.serving(build_app(Recorder(Failing()), load_settings())):
        found = search(client)
        check_engines_page(client, found, "HTTP 500: ")
        assert "affairs" not in report(found)["reason"]


MEGABYTE = b" " * 2**20


@pytest.mark.parametrize(
    "app",
    [saying(200, MEGABYTE * 5), endless(MEGABYTE, MEGABYTE, pause=0)],
    ids=["at once", "without end"],
)
def test_an_answer_that_is_too_long(client: OpenSearch, sidecar: Any, app: App) -> None:
    with sidecar.serving(app):
        check_engines_page(
            client, search(client), "answer is longer than allowed: lower the window"
        )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"hits": [',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"hit',
        b"220 mail.example.com ESMTP\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "another protocol", "TLS"],
)
def test_a_sidecar_that_hangs_up(client: OpenSearch, sidecar: Any, data: bytes) -> None:
    with blurting(sidecar.host, sidecar.port, data):
        check_engines_page(client, search(client), "^The connection to the sidecar failed")
        check_error(client, "The connection to the sidecar failed")
