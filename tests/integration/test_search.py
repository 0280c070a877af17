"""Searches through the real node, our plugin in it, and the real sidecar.

What the engine answers without a pipeline is the measure: reranking may change the hits' order,
their scores, `took` and `ext`, and nothing else. What happens without a sidecar, or with a bad
one, is in `test_search_failures.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opensearchpy import OpenSearch
from opensearchpy.exceptions import RequestError

from plugin.node import LocalCluster
from reranker import Cascade
from tests.integration import corpus
from tests.integration.corpus import (
    DEPTH,
    DOCUMENTS,
    INDEX,
    PIPELINE,
    QUERY,
    WINDOW,
    around,
    body_of,
    hits_of,
    ids,
    in_order_of,
    make_index,
    matching,
    report,
    scores,
    unpiped,
)
from tests.integration.fakes import PATIENT, Recorder

pytestmark = pytest.mark.usefixtures("index")


def search(client: OpenSearch, **body: Any) -> dict[str, Any]:
    """What an application sends, the pipeline being none of its business."""
    found: dict[str, Any] = client.search(index=INDEX, body=body_of(**body))
    return found


# The order, its scores and what is said of them.


def test_the_page_has_the_models_order(
    client: OpenSearch, cascade: Cascade, real: Recorder
) -> None:
    window = hits_of(unpiped(client, size=WINDOW))
    assert len(window) == WINDOW
    found = search(client, size=WINDOW)
    assert hits_of(found) == in_order_of(cascade, window)
    assert ids(found) != [hit["_id"] for hit in window]
    assert len(real.asked) == 1  # one call, whatever the stages


def test_the_sidecar_gets_texts_scores_and_what_is_left_of_the_time(
    client: OpenSearch, backwards: Recorder
) -> None:
    window = hits_of(unpiped(client, size=WINDOW))
    search(client, size=3, _source=["group"])
    (asked,) = backwards.asked
    assert asked.query == QUERY
    assert [hit.id for hit in asked.hits] == [hit["_id"] for hit in window]
    assert [hit.score for hit in asked.hits] == [hit["_score"] for hit in window]
    for hit in asked.hits:
        assert (hit.title, hit.passage) == (
            DOCUMENTS[hit.id]["title"],
            DOCUMENTS[hit.id]["passage"],
        )
    assert asked.passage_depth == DEPTH
    assert asked.deadline_ms is not None
    assert 0 < asked.deadline_ms <= 60_000


def test_scores_descend_and_tell_the_stages_apart(client: OpenSearch, real: Recorder) -> None:
    found = search(client, size=WINDOW)
    given = scores(found)
    assert given == sorted(given, reverse=True)
    assert all(2 <= score <= 3 for score in given[:DEPTH])
    assert all(1 <= score <= 2 for score in given[DEPTH:])
    assert found["hits"]["max_score"] == given[0]
    # As the engine has it: the best of all that was found, on whichever page.
    assert search(client, from_=5, size=5)["hits"]["max_score"] == given[0]


def test_the_response_says_how_it_was_reranked(
    client: OpenSearch, cascade: Cascade, real: Recorder
) -> None:
    said = report(search(client))
    assert set(said) == {"applied", "stages", "complete", "model", "cut", "took_ms"}
    assert said["applied"] is True
    assert said["complete"] is True
    assert said["model"] == cascade.name
    assert said["cut"] == 0
    assert said["took_ms"] >= 0
    for stage in said["stages"]:
        assert set(stage) == {"name", "scored", "milliseconds", "truncated", "skipped"}
        assert stage["milliseconds"] > 0
        assert stage["truncated"] == 0
        assert stage["skipped"] == ""
    assert [(stage["name"], stage["scored"]) for stage in said["stages"]] == [
        ("title", WINDOW),
        ("passage", DEPTH),
    ]


def test_titles_alone(client: OpenSearch, real: Recorder) -> None:
    titles = corpus.pipeline(passage_depth=0)
    found = client.search(
        index=INDEX, body={"query": matching(), "size": WINDOW, "search_pipeline": titles}
    )
    assert [stage["name"] for stage in report(found)["stages"]] == ["title"]
    assert all(1 <= score <= 2 for score in scores(found))
    assert all(hit.passage == "" for hit in real.asked[0].hits)


# Pages.


@pytest.mark.parametrize("size", [3, 7])
def test_the_pages_of_a_window_fit_together(
    client: OpenSearch, cascade: Cascade, real: Recorder, size: int
) -> None:
    window = in_order_of(cascade, hits_of(unpiped(client, size=WINDOW)))
    whole = [first for first in range(0, WINDOW, size) if first + size <= WINDOW]
    pages = [search(client, from_=first, size=size) for first in whole]
    together = [hit for page in pages for hit in hits_of(page)]
    assert together == window[: len(whole) * size]
    assert len({hit["_id"] for hit in together}) == len(together)
    assert all(report(page)["applied"] for page in pages)


def test_a_page_is_ten_hits_unless_the_search_says_otherwise(
    client: OpenSearch, backwards: Recorder
) -> None:
    assert ids(search(client)) == ids(unpiped(client, size=WINDOW))[::-1][:10]


@pytest.mark.parametrize(
    ("first", "size"),
    [(WINDOW, 5), (34, 10), (50, 10)],
    ids=["beyond", "the last", "past the last"],
)
def test_a_page_beyond_the_window_is_the_engines(
    client: OpenSearch, backwards: Recorder, first: int, size: int
) -> None:
    found = search(client, from_=first, size=size)
    own = unpiped(client, from_=first, size=size)
    assert "ext" not in found
    assert found["hits"] == own["hits"]
    assert backwards.asked == []


@pytest.mark.parametrize("size", [3, 7, 12, WINDOW + 3, 50])
def test_pages_over_the_windows_edge_show_every_hit_once(
    client: OpenSearch, cascade: Cascade, real: Recorder, size: int
) -> None:
    own = hits_of(unpiped(client, size=50))
    assert len(own) == len(DOCUMENTS)
    pages = [search(client, from_=first, size=size) for first in range(0, len(own), size)]
    together = [hit for page in pages for hit in hits_of(page)]
    assert [hit["_id"] for hit in together] == [
        *(hit["_id"] for hit in in_order_of(cascade, own[:WINDOW])),
        *(hit["_id"] for hit in own[WINDOW:]),
    ]
    assert all(len(asked.hits) == WINDOW for asked in real.asked)
    for first, page in zip(range(0, len(own), size), pages, strict=True):
        assert ("ext" in page) == (first < WINDOW)
        assert scores(page) == sorted(scores(page), reverse=True)


def test_a_page_that_the_engine_refuses_is_refused(client: OpenSearch, real: Recorder) -> None:
    for first, size in ((0, 10_001), (10, 9_991), (WINDOW, 10_000)):
        with pytest.raises(RequestError, match="Result window is too large"):
            search(client, from_=first, size=size)
    assert real.asked == []


# What comes with the hits, and around them.

SEEN: list[tuple[str, dict[str, Any]]] = [
    ("source of one field", {"_source": ["group"]}),
    ("source of one title field", {"_source": "title"}),
    ("source by pattern", {"_source": "gr*"}),
    ("source by object", {"_source": ["about"]}),
    ("source by a path into an object", {"_source": ["about.title", "rank"]}),
    ("source of nothing there is", {"_source": ["nothing"]}),
    ("source less the title", {"_source": {"excludes": ["title"]}}),
    ("source less both texts", {"_source": {"excludes": ["*tle", "pass*", "parts"]}}),
    ("source less all", {"_source": {"excludes": ["*"]}}),
    ("source with and without", {"_source": {"includes": ["*"], "excludes": ["passage"]}}),
    ("no source", {"_source": False}),
    ("all source", {"_source": True}),
    ("fields", {"fields": ["group", "title.exact"], "_source": False}),
    ("fields and source", {"fields": ["about.*"]}),
    ("doc values", {"docvalue_fields": ["rank"], "_source": ["group"]}),
    ("stored fields", {"stored_fields": ["group"]}),
    ("stored source", {"stored_fields": ["_source"], "_source": ["rank"]}),
    (
        "script fields",
        {"script_fields": {"double": {"script": "doc['rank'].value * 2"}}},
    ),
    (
        "highlights",
        {"highlight": {"fields": {"passage": {}, "title": {}}}, "_source": False},
    ),
    ("explanations", {"explain": True}),
    ("versions", {"version": True, "seq_no_primary_term": True}),
    ("names of queries", {"query": {"bool": {"must": matching(), "_name": "all"}}}),
    (
        "inner hits",
        {
            "query": {
                "bool": {
                    "must": matching(),
                    "should": {
                        "nested": {
                            "path": "parts",
                            "query": {"term": {"parts.text": "another"}},
                            "inner_hits": {},
                        }
                    },
                }
            }
        },
    ),
    ("collapsed", {"collapse": {"field": "group"}}),
    (
        "aggregations",
        {
            "aggs": {
                "groups": {
                    "terms": {"field": "group"},
                    "aggs": {"most": {"max": {"field": "rank"}}, "top": {"top_hits": {"size": 1}}},
                }
            }
        },
    ),
    ("suggestions", {"suggest": {"words": {"text": "sortin", "term": {"field": "title"}}}}),
    ("a post filter", {"post_filter": {"range": {"rank": {"lt": 30}}}}),
    ("a least score", {"min_score": 0.3}),
    ("an exact total", {"track_total_hits": True}),
    ("a bounded total", {"track_total_hits": 5}),
    ("no total", {"track_total_hits": False}),
    ("a time limit", {"timeout": "30s"}),
    ("a rescoring", {"rescore": {"query": {"rescore_query": {"range": {"rank": {"gt": 9}}}}}}),
    ("a sort by score", {"sort": ["_score"]}),
    ("a sort by score, downwards", {"sort": [{"_score": {"order": "desc"}}]}),
]


@pytest.mark.parametrize("part", [part for _, part in SEEN], ids=[name for name, _ in SEEN])
def test_what_a_search_asks_for_is_as_the_engine_gives_it(
    client: OpenSearch, cascade: Cascade, real: Recorder, part: dict[str, Any]
) -> None:
    window = unpiped(client, size=WINDOW, **part)
    page = search(client, from_=1, size=3, **part)
    assert report(page)["applied"], report(page)
    assert hits_of(page) == in_order_of(cascade, hits_of(window))[1:4]
    assert around(page) == around(window)
    assert page["hits"]["max_score"] >= scores(page)[0]


@pytest.mark.parametrize(
    ("part", "there"),
    [
        ({"highlight": {"fields": {"passage": {}}}}, "highlight"),
        ({"explain": True}, "_explanation"),
        ({"fields": ["group"]}, "fields"),
        ({"docvalue_fields": ["rank"]}, "fields"),
        ({"version": True}, "_version"),
    ],
)
def test_what_is_asked_for_is_there(
    client: OpenSearch, backwards: Recorder, part: dict[str, Any], there: str
) -> None:
    assert all(hit[there] for hit in hits_of(search(client, **part)))


def test_nothing_that_was_fetched_for_reranking_is_shown(
    client: OpenSearch, backwards: Recorder
) -> None:
    assert all("_source" not in hit for hit in hits_of(search(client, _source=False)))
    for hit in hits_of(search(client, _source=["group"])):
        assert set(hit["_source"]) == {"group"}
    for hit in hits_of(client.search(index=INDEX, q="lists", _source_excludes="passage")):
        assert "passage" not in hit["_source"]
    assert all(hit.title and hit.passage for asked in backwards.asked for hit in asked.hits)
    assert len(backwards.asked) == 3


def test_aggregations_are_over_all_that_was_found(client: OpenSearch, backwards: Recorder) -> None:
    found = search(client, size=2, aggs={"groups": {"terms": {"field": "group"}}})
    counts = {b["key"]: b["doc_count"] for b in found["aggregations"]["groups"]["buckets"]}
    assert counts == {f"group {n}": 9 for n in range(4)}
    assert found["hits"]["total"] == {"value": 36, "relation": "eq"}


def test_collapsed_hits_are_reranked_one_per_group(client: OpenSearch, backwards: Recorder) -> None:
    found = search(client, collapse={"field": "group"}, _source=False)
    groups = [hit["fields"]["group"][0] for hit in hits_of(found)]
    assert sorted(groups) == [f"group {n}" for n in range(4)]
    assert len(backwards.asked[0].hits) == 4


def test_a_profile_is_kept_and_none_is_made_up(client: OpenSearch, backwards: Recorder) -> None:
    found = search(client, profile=True)
    assert report(found)["applied"]
    assert len(found["profile"]["shards"]) == 1
    assert "profile" not in search(client)


def test_a_point_in_time_is_searched_and_goes_on_to_live(
    client: OpenSearch, cascade: Cascade, real: Recorder
) -> None:
    window = in_order_of(cascade, hits_of(unpiped(client, size=WINDOW)))
    pit = client.create_pit(index=INDEX, keep_alive="1m")["pit_id"]
    try:
        body = {"query": matching(), "pit": {"id": pit, "keep_alive": "1m"}}
        pages = []
        for first in (0, 3):
            # Such a search names no index, whose default it could take.
            page = client.search(body={**body, "from": first, "size": 3}, search_pipeline=PIPELINE)
            assert page["pit_id"] == pit
            pages += hits_of(page)
        assert pages == window[:6]
    finally:
        client.delete_pit(body={"pit_id": [pit]})


def test_each_processor_can_be_watched(client: OpenSearch, backwards: Recorder) -> None:
    found = client.search(
        index=INDEX, body={"query": matching()}, params={"verbose_pipeline": "true"}
    )
    assert report(found)["applied"]
    names = [step["processor_name"] for step in found["processor_results"]]
    assert names == ["title_rerank_candidates", "title_rerank"]


# Searches that are not ours to order.

UNTOUCHED: list[tuple[str, dict[str, Any]]] = [
    ("a sort by a field", {"sort": ["rank"]}),
    ("a sort by score and a field", {"sort": ["_score", "rank"]}),
    ("a sort by score, upwards", {"sort": [{"_score": {"order": "asc"}}]}),
    ("after a hit", {"sort": ["_score", "rank"], "search_after": [1.0, 3]}),
    ("no hits", {"size": 0, "aggs": {"groups": {"terms": {"field": "group"}}}}),
    (
        "collapsed with sorted inner hits",
        {"collapse": {"field": "group", "inner_hits": {"name": "last", "sort": ["rank"]}}},
    ),
    ("without fields", {"stored_fields": "_none_", "_source": False}),
    ("everything", {"query": {"match_all": {}}}),
    ("a term", {"query": {"term": {"group": "group 1"}}}),
    ("only filters", {"query": {"bool": {"filter": matching()}}}),
    ("only exclusions", {"query": {"bool": {"must_not": {"match": {"title": "heaps"}}}}}),
    ("a number", {"query": {"match": {"rank": 3}}}),
    ("a star", {"query": {"query_string": {"query": "*"}}}),
    ("nothing found", {"query": {"match": {"title": "zebra"}}}),
    (
        "nothing found, with aggregations",
        {
            "query": {"match": {"title": "zebra"}},
            "aggs": {"groups": {"terms": {"field": "group"}}},
        },
    ),
]


@pytest.mark.parametrize("part", [part for _, part in UNTOUCHED], ids=[k for k, _ in UNTOUCHED])
def test_a_search_that_is_not_ours_is_as_it_was(
    client: OpenSearch, backwards: Recorder, part: dict[str, Any]
) -> None:
    found = search(client, **part)
    assert "ext" not in found
    own = unpiped(client, **part)
    assert found["hits"] == own["hits"]
    assert around(found) == around(own)
    assert backwards.asked == []


def test_inner_hits_of_a_group_are_searches_of_their_own(
    client: OpenSearch, backwards: Recorder
) -> None:
    # The engine sends them through the index's default pipeline, whatever the search itself says.
    inner = {"name": "best", "size": 2, "_source": ["group"]}
    found = search(client, collapse={"field": "group", "inner_hits": inner})
    assert "ext" not in found
    assert ids(found) == ids(unpiped(client, collapse={"field": "group"}))
    assert len(backwards.asked) == len(hits_of(found)) == 4
    for hit in hits_of(found):
        group = hit["fields"]["group"][0]
        best = hit["inner_hits"]["best"]["hits"]
        own = unpiped(
            client, query={"bool": {"must": matching(), "filter": {"term": {"group": group}}}}
        )
        assert [one["_id"] for one in best["hits"]] == ids(own)[::-1][:2]
        assert best["total"] == own["hits"]["total"]
        assert all(one["_source"] == {"group": group} for one in best["hits"])


def test_a_scroll_reads_all_in_the_engines_order(client: OpenSearch, backwards: Recorder) -> None:
    page = client.search(index=INDEX, body={"query": matching(), "size": 15}, scroll="1m")
    read = []
    while hits_of(page):
        assert "ext" not in page
        read += ids(page)
        page = client.scroll(body={"scroll_id": page["_scroll_id"], "scroll": "1m"})
    client.clear_scroll(body={"scroll_id": page["_scroll_id"]})
    assert read == ids(unpiped(client, size=36))
    assert backwards.asked == []


def test_a_wrong_search_is_told_so(client: OpenSearch, backwards: Recorder) -> None:
    with pytest.raises(RequestError, match="no_such_query"):
        search(client, query={"no_such_query": {}})
    with pytest.raises(RequestError, match="unknown field"):
        search(client, ext={"title_rerank": {"text": "x"}})


# The query's text.

TEXTS: list[tuple[str, dict[str, Any], str]] = [
    ("match", {"match": {"passage": "lists"}}, "lists"),
    ("match in full", {"match": {"passage": {"query": "lists", "operator": "and"}}}, "lists"),
    ("multi_match", {"multi_match": {"query": "some lists"}}, "some lists"),
    ("match_phrase", {"match_phrase": {"passage": "all about"}}, "all about"),
    ("match_phrase_prefix", {"match_phrase_prefix": {"passage": "all abo"}}, "all abo"),
    ("match_bool_prefix", {"match_bool_prefix": {"passage": "lists fil"}}, "lists fil"),
    (
        "combined_fields",
        {"combined_fields": {"query": "sorted lists", "fields": ["title", "passage"]}},
        "sorted lists",
    ),
    ("query_string", {"query_string": {"query": "lists AND all"}}, "lists AND all"),
    ("simple_query_string", {"simple_query_string": {"query": "lists +all"}}, "lists +all"),
    ("bool must", {"bool": {"must": [{"match": {"passage": "lists"}}]}}, "lists"),
    (
        "bool should, and a filter that says nothing",
        {
            "bool": {
                "should": [{"match": {"title": "heaps"}}, {"match": {"passage": "lists"}}],
                "filter": {"match": {"passage": "filler"}},
                "must_not": {"match": {"title": "dates"}},
            }
        },
        "heaps lists",
    ),
    (
        "the same text in several fields",
        {
            "bool": {
                "should": [
                    {"match": {"title": "lists"}},
                    {"match_phrase": {"passage": "lists"}},
                ]
            }
        },
        "lists",
    ),
    (
        "function_score",
        {"function_score": {"query": {"match": {"passage": "lists"}}, "random_score": {}}},
        "lists",
    ),
    (
        "script_score",
        {
            "script_score": {
                "query": {"match": {"passage": "lists"}},
                "script": {"source": "_score + doc['rank'].value"},
            }
        },
        "lists",
    ),
    ("constant_score", {"constant_score": {"filter": {"match": {"passage": "lists"}}}}, "lists"),
    (
        "dis_max",
        {"dis_max": {"queries": [{"match": {"title": "stacks"}}, {"match": {"passage": "lists"}}]}},
        "stacks lists",
    ),
    ("nested", {"nested": {"path": "parts", "query": {"match": {"parts.text": "part"}}}}, "part"),
    (
        "boosting",
        {
            "boosting": {
                "positive": {"match": {"passage": "lists"}},
                "negative": {"match": {"title": "heaps"}},
                "negative_boost": 0.5,
            }
        },
        "lists",
    ),
    (
        "all of it at once",
        {
            "function_score": {
                "query": {
                    "bool": {
                        "must": {"dis_max": {"queries": [{"match": {"passage": "lists"}}]}},
                        "should": {"constant_score": {"filter": {"match": {"title": "sets"}}}},
                    }
                }
            }
        },
        "lists sets",
    ),
    ("words of any script", {"match": {"passage": "lists списки 名单 🙂"}}, "lists списки 名单 🙂"),
]


@pytest.mark.parametrize(
    ("query", "text"), [(query, text) for _, query, text in TEXTS], ids=[name for name, *_ in TEXTS]
)
def test_the_text_is_found_in_the_query(
    client: OpenSearch, backwards: Recorder, query: dict[str, Any], text: str
) -> None:
    found = search(client, query=query)
    assert report(found)["applied"]
    assert [asked.query for asked in backwards.asked] == [text]
    assert len(hits_of(found)) == 10


@pytest.mark.parametrize(
    "query", [matching(), {"match_all": {}}, None], ids=["another's", "none", "no query"]
)
def test_the_text_can_be_given(
    client: OpenSearch, backwards: Recorder, query: dict[str, Any] | None
) -> None:
    body: dict[str, Any] = {"ext": {"title_rerank": {"query_text": "what they meant"}}}
    if query:
        body["query"] = query
    found = client.search(index=INDEX, body=body)
    assert report(found)["applied"]
    assert [asked.query for asked in backwards.asked] == ["what they meant"]


def test_a_search_in_the_address_is_one_too(client: OpenSearch, backwards: Recorder) -> None:
    found = client.search(index=INDEX, q="passage:lists", size=4, from_=1)
    assert report(found)["applied"]
    assert [asked.query for asked in backwards.asked] == ["passage:lists"]
    assert len(hits_of(found)) == 4


# Ways to search.


def test_searches_sent_together_are_reranked_each(
    client: OpenSearch, cascade: Cascade, real: Recorder
) -> None:
    other = {"match": {"passage": "lists"}}
    lines: list[dict[str, Any]] = [
        {"index": INDEX},
        {"query": matching(), "size": 3},
        {"index": INDEX},
        {"query": other, "size": 3, "from": 3},
        {"index": INDEX},
        {"query": matching(), "size": 3, "search_pipeline": "_none"},
        {"index": INDEX},
        {"query": {"match_all": {}}, "size": 3},
    ]
    first, second, none, untouched = client.msearch(body=lines)["responses"]
    window = hits_of(unpiped(client, size=WINDOW))
    assert hits_of(first) == in_order_of(cascade, window)[:3]
    others = hits_of(unpiped(client, size=WINDOW, query=other))
    assert hits_of(second) == in_order_of(cascade, others, query="lists")[3:6]
    assert hits_of(none) == window[:3]
    assert "ext" not in none
    assert "ext" not in untouched


def test_searches_at_one_time_do_not_mix(client: OpenSearch, backwards: Recorder) -> None:
    queries = [f"lists {subject}" for subject in ("heaps", "sets", "trees", "dates")] * 6
    own = {text: ids(unpiped(client, query=matching(text), size=WINDOW)) for text in set(queries)}
    assert len({tuple(order) for order in own.values()}) == 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: search(client, query=matching(text), size=5), queries))
    for text, page in zip(queries, found, strict=True):
        assert report(page)["applied"]
        assert ids(page) == own[text][::-1][:5]


def test_an_alias_is_searched_like_its_index(client: OpenSearch, backwards: Recorder) -> None:
    client.indices.put_alias(index=INDEX, name=f"{INDEX}-alias")
    found = client.search(index=f"{INDEX}-alias", body={"query": matching()})
    assert report(found)["applied"]
    assert ids(found) == ids(search(client))


@contextlib.contextmanager
def another(client: OpenSearch, *arguments: Any, **options: Any) -> Iterator[str]:
    """One more index, for the time of a test."""
    name = f"{INDEX}-another"
    try:
        make_index(client, name, *arguments, **options)
        yield name
    finally:
        client.indices.delete(index=name, ignore=[404])


def test_several_indices_are_reranked_as_one(
    client: OpenSearch, cascade: Cascade, real: Recorder
) -> None:
    more = {f"more-{key}": document for key, document in list(DOCUMENTS.items())[:12]}
    with another(client, more) as name:
        names = f"{INDEX},{name}"
        window = hits_of(unpiped(client, names, size=WINDOW))
        assert len({hit["_index"] for hit in window}) == 2
        found = client.search(
            index=names,
            body={"query": matching(), "size": WINDOW},
            search_pipeline=PIPELINE,
        )
    assert hits_of(found) == in_order_of(cascade, window, {**DOCUMENTS, **more})


def test_several_shards_are_reranked_as_one(
    client: OpenSearch, cascade: Cascade, real: Recorder
) -> None:
    with another(client, shards=3) as name:
        window = unpiped(client, name, size=WINDOW, aggs={"ranks": {"max": {"field": "rank"}}})
        pages = [
            client.search(
                index=name,
                body={
                    "query": matching(),
                    "from": first,
                    "size": 5,
                    "aggs": {"ranks": {"max": {"field": "rank"}}},
                },
            )
            for first in range(0, WINDOW, 5)
        ]
    assert window["_shards"]["total"] == 3
    assert [hit for page in pages for hit in hits_of(page)] == in_order_of(cascade, hits_of(window))
    assert all(around(page) == around(window) for page in pages)


# Documents as they come.

_TEXTS = {"title": "A list of sorted lists", "passage": "Merging is what heaps are for."}
_ODD: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "both": (_TEXTS, (_TEXTS["title"], _TEXTS["passage"])),
    "no title": ({"passage": "Lists."}, ("", "Lists.")),
    "no passage": ({"title": "Lists"}, ("Lists", "")),
    "neither": ({}, ("", "")),
    "blank": ({"title": "  ", "passage": "\n"}, ("  ", "")),
    "null": ({"title": None, "passage": [None]}, ("", "")),
    "numbers": ({"title": 42, "passage": 3.5}, ("42", "3.5")),
    "arrays": ({"title": ["One", "two"], "passage": ["a", 1, ["b"]]}, ("One\ntwo", "a\n1\nb")),
    "objects": ({"title": {"en": "Lists"}, "passage": [{"text": "Lists"}]}, ("", "")),
    "booleans": ({"title": True, "passage": False}, ("", "")),
    "signs": (
        {"title": 'quote " \\ \u2028 \x00', "passage": "🙂 名单"},
        ('quote " \\ \u2028 \x00', "🙂 名单"),
    ),
    "long": (
        {"title": "lists " * 500, "passage": "lists " * 5000},
        ("lists " * 500, "lists " * 5000),
    ),
}
_ODD_DOCUMENTS = {
    key: {**document, "word": "word" + " filler" * n}
    for n, (key, (document, _)) in enumerate(_ODD.items())
}
# Texts of any form, and none of them indexed.
_ODD_MAPPINGS = {
    "dynamic": False,
    "properties": {
        "title": {"type": "object", "enabled": False},
        "passage": {"type": "object", "enabled": False},
        "word": {"type": "text"},
    },
}


def test_texts_of_any_form_are_read(client: OpenSearch, backwards: Recorder) -> None:
    with another(client, _ODD_DOCUMENTS, mappings=_ODD_MAPPINGS) as name:
        query = {"match": {"word": "word"}}
        window = hits_of(unpiped(client, name, query=query, size=WINDOW))
        found = client.search(index=name, body={"query": query, "size": WINDOW})
    read = {hit.id: (hit.title, hit.passage) for hit in backwards.asked[0].hits}
    assert read == {key: texts for key, (_, texts) in _ODD.items()}
    for hit in hits_of(found):
        assert hit["_source"] == _ODD_DOCUMENTS[hit["_id"]]
    assert ids(found) == [hit["_id"] for hit in window][::-1]


def test_documents_without_texts_keep_a_place(
    client: OpenSearch, cascade: Cascade, real: Recorder
) -> None:
    query = {"match": {"word": "word"}}
    texts = {
        key: dict(zip(("title", "passage"), given, strict=True)) for key, (_, given) in _ODD.items()
    }
    with another(client, _ODD_DOCUMENTS, mappings=_ODD_MAPPINGS) as name:
        window = hits_of(unpiped(client, name, query=query, size=WINDOW))
        found = client.search(index=name, body={"query": query, "size": WINDOW})
    assert hits_of(found) == in_order_of(cascade, window, texts, query="word")
    assert sorted(ids(found)) == sorted(_ODD)
    said = {stage["name"]: stage for stage in report(found)["stages"]}
    assert said["title"]["scored"] == sum(
        1 for title, _ in (t for _, t in _ODD.values()) if title.strip()
    )
    assert said["title"]["truncated"] == 1


def test_documents_without_any_text_stay_in_the_engines_order(
    client: OpenSearch, backwards: Recorder
) -> None:
    documents = {str(n): {"word": "word" + " filler" * n} for n in range(5)}
    with another(client, documents, mappings=_ODD_MAPPINGS) as name:
        query = {"match": {"word": "word"}}
        found = client.search(index=name, body={"query": query, "from": 1, "size": 2})
        own = unpiped(client, name, query=query, from_=1, size=2)
    assert found["hits"] == own["hits"]
    assert report(found)["applied"] is False
    assert "title_field" in report(found)["reason"]
    assert backwards.asked == []


_LONG: dict[str, list[dict[str, Any]]] = {
    "a title": [{"title": "lists " * 20_000}],
    "a passage": [{"title": "Lists", "passage": "lists " * 200_000}],
    # Six bytes a character in JSON: more than 16 MiB, though no passage is too long by itself.
    "the sum": [{"title": f"Lists {n}", "passage": "\x01" * 100_000} for n in range(30)],
}


@pytest.mark.parametrize("name", _LONG)
def test_a_book_does_not_cost_a_search_its_reranking(
    client: OpenSearch, real: Recorder, name: str
) -> None:
    long = [{**document, "word": "word"} for document in _LONG[name]]
    short = [{"title": f"A list of {n}", "word": "word filler"} for n in range(3)]
    documents = {str(n): document for n, document in enumerate([*long, *short])}
    pipe = corpus.pipeline()
    pipe["request_processors"][0]["title_rerank_candidates"]["window"] = 100
    body = {"query": {"match": {"word": "word"}}, "size": 50, "search_pipeline": pipe}
    with another(client, documents, mappings=_ODD_MAPPINGS) as index:
        found = client.search(index=index, body={**body, "_source": False})
    assert report(found)["applied"], report(found)
    assert report(found)["cut"] == len(long)
    assert sorted(ids(found)) == sorted(documents)
    assert {hit.id for hit in real.asked[0].hits} == set(documents)


def test_other_fields_can_be_the_texts(client: OpenSearch, backwards: Recorder) -> None:
    fields = {"title_field": "about.title", "passage_field": ["parts.text", "group"]}
    body = corpus.pipeline()
    body["request_processors"][0]["title_rerank_candidates"] |= fields
    found = search(client, search_pipeline=body, _source=["rank"])
    assert report(found)["applied"]
    for hit in backwards.asked[0].hits:
        n = int(hit.id)
        assert hit.title == "of no concern"
        assert hit.passage == f"part {n}\nanother part of {n}\ngroup {n % 4}"
    assert all(set(hit["_source"]) == {"rank"} for hit in hits_of(found))


# More than one node.


@pytest.mark.usefixtures("needs_local_node")
def test_two_nodes_rerank_an_index_that_lies_on_both(
    sidecar: Any, cascade: Cascade, real: Recorder
) -> None:
    nodes = LocalCluster(
        nodes=2,
        heap="512m",
        java_options=["-XX:TieredStopAtLevel=1"],
        sidecar_urls=[sidecar.url],
        settings=PATIENT,
    )
    with nodes, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(contextlib.closing(OpenSearch([url], timeout=60)))
            for url in nodes.urls
        ]
        clients[0].search_pipeline.put(id=PIPELINE, body=corpus.pipeline())
        make_index(clients[0], shards=4)
        placed = clients[0].cat.shards(index=INDEX, format="json")
        assert {shard["node"] for shard in placed} == {"node-1", "node-2"}
        for client in clients:
            window = hits_of(unpiped(client, size=WINDOW))
            pages = [search(client, from_=first, size=10, _source=["rank"]) for first in (0, 10)]
            expected = in_order_of(cascade, window)
            for hit in expected:
                hit["_source"] = {"rank": hit["_source"]["rank"]}
            assert [hit for page in pages for hit in hits_of(page)] == expected
            assert all(page["_shards"]["successful"] == 4 for page in pages)
            # The text and the report travel between the nodes.
            given = search(client, ext={"title_rerank": {"query_text": "dates"}})
            assert report(given)["applied"]
            assert real.asked[-1].query == "dates"
            assert re.fullmatch(r"\d+", str(report(given)["took_ms"]))
