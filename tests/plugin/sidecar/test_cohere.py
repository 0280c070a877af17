"""Cohere's API: what its own client sends is answered, and what is answered it can read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import pytest
from cohere.core.api_error import ApiError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plugin.sidecar.app import build_app
from plugin.sidecar.cohere import CohereRequest, CohereV1Request, to_search
from plugin.sidecar.settings import load_settings
from reranker import Cascade, Hit
from tests.plugin.sidecar.fakes import Gated, serving

QUERY = "merge several sorted lists"
DOCUMENTS = [
    {"title": "bisect: Bisection algorithms", "text": "Keeps a list in sorted order."},
    {"title": "heapq.merge: Merge multiple sorted inputs", "text": "Returns a generator."},
    {"title": "csv: CSV file reading and writing", "text": "Reads rows.", "section": "files"},
]
STRINGS = [f"{document['title']}. {document['text']}" for document in DOCUMENTS]
MODELS = ["etr", "passage", "cascade"]


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return Cascade.load(threads=1)


@pytest.fixture(scope="module")
def url(cascade: Cascade) -> Iterator[str]:
    app = build_app(cascade, load_settings(api_key="open-sesame", max_hits=20))
    with serving(app) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """The connections of Cohere's clients: closed with the tests, and past no proxy."""
    with httpx.Client(trust_env=False, timeout=120) as http:
        yield http


@pytest.fixture(scope="module")
def v1(url: str, http: httpx.Client) -> cohere.Client:
    return cohere.Client("open-sesame", base_url=url, httpx_client=http)


@pytest.fixture(scope="module")
def v2(url: str, http: httpx.Client) -> cohere.ClientV2:
    return cohere.ClientV2("open-sesame", base_url=url, httpx_client=http)


@pytest.mark.parametrize("model", MODELS)
def test_version_2(v2: cohere.ClientV2, model: str) -> None:
    answer = v2.rerank(model=model, query=QUERY, documents=STRINGS)
    assert answer.id
    assert answer.meta
    assert answer.meta.api_version
    assert answer.meta.api_version.version == "2"
    assert answer.meta.billed_units
    assert answer.meta.billed_units.search_units == 1
    assert answer.results[0].index == 1
    assert sorted(result.index for result in answer.results) == [0, 1, 2]
    scores = [result.relevance_score for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert len(set(scores)) == 3


@pytest.mark.parametrize("model", MODELS)
def test_version_1(v1: cohere.Client, model: str) -> None:
    answer = v1.rerank(model=model, query=QUERY, documents=DOCUMENTS, top_n=2)
    assert answer.meta
    assert answer.meta.api_version
    assert answer.meta.api_version.version == "1"
    assert [result.document for result in answer.results] == [None, None]
    assert answer.results[0].index == 1


def test_documents_come_back_as_they_were(v1: cohere.Client) -> None:
    answer = v1.rerank(query=QUERY, documents=[DOCUMENTS[2], STRINGS[1]], return_documents=True)
    texts = {
        result.index: result.document.model_dump() for result in answer.results if result.document
    }
    assert texts == {0: DOCUMENTS[2], 1: {"text": STRINGS[1]}}


def test_top_n_leaves_out_the_others_only(v2: cohere.ClientV2) -> None:
    whole = v2.rerank(model="cascade", query=QUERY, documents=STRINGS)
    first = v2.rerank(model="cascade", query=QUERY, documents=STRINGS, top_n=1)
    more = v2.rerank(model="cascade", query=QUERY, documents=STRINGS, top_n=99)
    assert first.results == whole.results[:1]
    assert more.results == whole.results


def test_the_order_is_the_librarys(v2: cohere.ClientV2, cascade: Cascade) -> None:
    hits = [
        Hit(str(place), document["title"], document["text"])
        for place, document in enumerate(DOCUMENTS)
    ]
    for model, depth in (("etr", 0), ("passage", 3), ("cascade", 20)):
        expected = cascade.rerank(QUERY, hits, depth)
        answer = v2.rerank(model=model, query=QUERY, documents=DOCUMENTS)  # type: ignore[arg-type]
        assert [result.index for result in answer.results] == [hit.index for hit in expected.hits]


def test_long_documents_are_said_to_be_cut(v2: cohere.ClientV2) -> None:
    answer = v2.rerank(model="passage", query=QUERY, documents=["merge " * 5000, "b"])
    assert answer.meta
    assert answer.meta.warnings == ["1 texts were longer than the passage model reads"]
    answer = v2.rerank(model="etr", query=QUERY, documents=STRINGS, max_tokens_per_doc=4096)
    assert answer.meta
    assert answer.meta.warnings is None


def test_a_cut_query_is_a_warning(v2: cohere.ClientV2) -> None:
    answer = v2.rerank(model="etr", query="merge " * 300, documents=STRINGS)
    assert answer.meta
    assert answer.meta.warnings == ["the query was longer than the models read"]


@pytest.mark.parametrize("model", MODELS)
def test_no_more_is_read_of_a_document_than_is_allowed(
    v2: cohere.ClientV2, url: str, http: httpx.Client, model: str
) -> None:
    # The words that matter come fourth: of three tokens nothing is left that tells these apart.
    same = ["one two three merge several sorted lists", "one two three red blue green"]
    apart, alike = (
        v2.rerank(model=model, query=QUERY, documents=same, max_tokens_per_doc=most)
        for most in (100, 3)
    )
    assert apart.results[0].relevance_score > apart.results[1].relevance_score
    assert alike.results[0].relevance_score == alike.results[1].relevance_score
    assert apart.meta
    assert apart.meta.warnings is None
    assert alike.meta
    assert alike.meta.warnings == ["2 documents were cut to max_tokens_per_doc"]
    metrics = http.get(f"{url}/metrics", headers={"Authorization": "Bearer open-sesame"}).text
    assert re.search(r'truncated_texts_total\{stage="request"\} [1-9]', metrics)


def test_title_and_text_are_cut_together(v2: cohere.ClientV2, cascade: Cascade) -> None:
    hits, cut = cascade.cut([Hit("a", "merge lists", "one two three"), Hit("b", "merge")], 3)
    assert [hit[:3] for hit in hits] == [("a", "merge lists", "one "), ("b", "merge", "")]
    assert cut == 1
    with pytest.raises(ValueError, match="give 1 or more"):
        cascade.cut(hits, 0)
    documents: list[Any] = [{"title": hit.title, "text": hit.passage} for hit in hits]
    longer: list[Any] = [{"title": "merge lists", "text": "one two three"}, {"title": "merge"}]
    whole = v2.rerank(model="passage", query=QUERY, documents=documents)
    short = v2.rerank(model="passage", query=QUERY, documents=longer, max_tokens_per_doc=3)
    assert short.results == whole.results


def test_documents_that_are_cut_are_less_work(url: str, http: httpx.Client) -> None:
    body = {"query": QUERY, "documents": ["merge " * 3000] * 20, "model": "passage"}
    with serving(build_app(Gated(), load_settings(max_request_tokens=2000))) as client:
        assert client.post("/v2/rerank", json=body).status_code == 413
    answer = http.post(
        f"{url}/v2/rerank",
        json={**body, "max_tokens_per_doc": 20},
        headers={"Authorization": "Bearer open-sesame"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"model": "rerank-v3.5"}, 422, "model"),
        ({"query": " "}, 422, "query is empty"),
        ({"documents": []}, 422, "documents"),
        ({"documents": ["a"] * 21}, 422, "MAX_HITS"),
        ({"documents": [{"body": "text"}]}, 422, "documents[0] has none of the fields"),
        (
            {"documents": [{"text": "a", "more": {"deep": 1}}]},
            422,
            "documents[0] cannot be used, its",
        ),
        ({"documents": ["a", 5]}, 422, "documents[1] cannot be used, give a string"),
        ({"documents": [None] * 21}, 422, "MAX_HITS"),  # before any of them is looked at
        ({"documents": [{"text": 7}]}, 422, "documents[0].text is no string"),
        ({"top_n": 0}, 422, "top_n"),
        ({"top_n": True}, 422, "top_n"),
        ({"max_tokens_per_doc": "7"}, 422, "max_tokens_per_doc"),
    ],
    ids=str,
)
def test_what_is_refused_is_said_as_cohere_says_it(
    v2: cohere.ClientV2, asked: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(ApiError) as error:
        v2.rerank(**{"model": "etr", "query": QUERY, "documents": STRINGS, **asked})
    assert error.value.status_code == status
    assert words in error.value.body["message"]


@pytest.mark.parametrize("document", [7, None, [], {"a": []}, {"a": float("nan")}, {"a": {}}])
def test_of_many_bad_documents_the_first_is_told(document: Any) -> None:
    with pytest.raises(ValidationError) as error:
        CohereRequest(query="q", documents=["fine", *[document] * 1000])
    (first,) = error.value.errors()
    assert first["loc"] == ("documents", 1)
    fields = {str(n): [] for n in range(1000)}
    with pytest.raises(ValidationError, match="its field '0' is a list") as error:
        CohereRequest(query="q", documents=[fields])  # type: ignore[list-item]
    assert error.value.error_count() == 1
    with pytest.raises(ValidationError) as error:
        CohereV1Request(query="q", documents=["a"], rank_fields=[5] * 100)  # type: ignore[list-item]
    assert error.value.error_count() == 1


def test_no_document_is_looked_through_for_thousands_of_fields() -> None:
    with pytest.raises(ValidationError, match="at most 100 items"):
        CohereV1Request(query="q", documents=["a"], rank_fields=[str(n) for n in range(101)])


def test_what_is_flat_comes_back_as_it_was() -> None:
    document = {"text": "a", "yes": True, "n": 10**40, "f": 1.5, "none": None, "s": "5"}
    (read,) = CohereRequest(query="q", documents=[document]).documents
    assert isinstance(read, dict)
    assert list(map(repr, read.items())) == list(map(repr, document.items()))
    (mended,) = CohereRequest(query="q", documents=[{"text\ud800": "\ud800"}]).documents
    assert mended == {"text?": "?"}


def test_the_key_is_asked_for(url: str, http: httpx.Client) -> None:
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2("wrong", base_url=url, httpx_client=http).rerank(
            model="etr", query=QUERY, documents=STRINGS
        )


def hits_of(kind: type[CohereRequest] = CohereV1Request, **fields: Any) -> list[tuple[str, str]]:
    search = to_search(kind(query="q", **fields))
    return [(hit.title, hit.passage) for hit in search.hits]


def test_fields_of_documents_become_titles_and_passages() -> None:
    document = {"title": "t", "text": "x", "author": "a"}
    assert hits_of(documents=["s", document]) == [("", "s"), ("t", "x")]
    assert hits_of(documents=[{"title": "t", "passage": "p"}]) == [("t", "p")]
    assert hits_of(documents=[document], rank_fields=["author", "text"]) == [("", "a\nx")]
    assert hits_of(documents=[document], rank_fields=["title", "author"]) == [("t", "a")]
    assert hits_of(model="etr", documents=["s", {"text": "x"}, document]) == [
        ("s", ""),
        ("x", "x"),
        ("t", "x"),
    ]


def test_passages_are_read_where_no_titles_can_choose() -> None:
    def depth(model: str, documents: list[Any]) -> int:
        request = CohereRequest(model=model, query="q", documents=documents)  # type: ignore[arg-type]
        return to_search(request).passage_depth

    titled = [{"title": "t", "text": "x"}] * 50
    assert depth("cascade", titled) == 20
    assert depth("cascade", ["x"] * 50) == 50
    assert depth("passage", titled) == 50
    assert depth("etr", titled) == 0


def test_every_passage_is_read_where_every_one_is_asked_for(v2: cohere.ClientV2) -> None:
    """Also behind one that answers so well that nothing seems to be left to find."""
    first = "Lists that are sorted are merged by heapq.merge into several sorted lists."
    second = "Given some sequences in order, it yields their elements as one ordered stream."
    other = [f"The weather in town number {n} is fine and mild today." for n in range(16)]
    documents = [first, *other, second]
    asked: list[tuple[str, list[Any]]] = [
        ("cascade", documents),  # no titles
        ("passage", documents),
        ("passage", [{"title": f"Page {n}", "text": t} for n, t in enumerate(documents)]),
    ]
    for model, texts in asked:
        answer = v2.rerank(model=model, query=QUERY, documents=texts)
        assert [result.index for result in answer.results[:2]] == [0, 17], model


any_text = st.text(max_size=20) | st.sampled_from(["", "\ud800", "\u202eabc", "\x00", "x" * 2000])
any_document = any_text | st.dictionaries(
    st.sampled_from(["title", "text", "passage", "other"]), any_text | st.integers(), max_size=3
)


@settings(max_examples=40)
@given(
    model=st.sampled_from(MODELS),
    query=any_text,
    documents=st.lists(any_document, max_size=5),
    version=st.sampled_from(["v1", "v2"]),
)
def test_whatever_is_sent_is_answered_or_refused(
    url: str, http: httpx.Client, model: str, query: str, documents: list[Any], version: str
) -> None:
    body = {"model": model, "query": query, "documents": documents, "return_documents": True}
    response = http.post(
        f"{url}/{version}/rerank",
        content=json.dumps(body),
        headers={"Content-Type": "application/json", "Authorization": "Bearer open-sesame"},
    )
    assert response.status_code in (200, 422)
    if response.status_code == 200:
        scores = [result["relevance_score"] for result in response.json()["results"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == len(documents)
