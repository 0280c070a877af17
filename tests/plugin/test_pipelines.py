import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
from opensearchpy import Connection, OpenSearch

from plugin import pipelines
from plugin.clusters import ClusterError
from plugin.pipelines import Pipeline, PipelineError, pipeline_body
from plugin.sidecar.settings import load_settings

TEXT = {"type": "text", "fields": {"exact": {"type": "keyword"}}}
PROPERTIES = {
    "title": TEXT,
    "passage": {"type": "text"},
    "price": {"type": "integer"},
    "meta": {"properties": {"headline": {"type": "text"}}},
}
FOREIGN = {"response_processors": [{"truncate_hits": {"target_size": 5}}]}


class FakeCluster(Connection):
    """Indices and search pipelines in memory, behind the part of the API that is used."""

    def __init__(self, state: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.state = state

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
        answer = self._answer(method, url.strip("/").split("/"), json.loads(body or b"null"))
        if answer is None:
            self._raise_error(404, '{"error": "not found"}')
        return 200, {"content-type": "application/json"}, json.dumps(answer)

    def _answer(self, method: str, path: list[str], body: Any) -> Any:
        state = self.state
        if path[0] == "_nodes":
            return {"nodes": state["nodes"]}
        if path[0] == "_search":
            stored = state["pipelines"]
            if method == "GET":
                return stored or None  # no pipelines at all are a 404
            if method == "PUT":
                stored[path[2]] = body
            else:
                del stored[path[2]]
            return {"acknowledged": True}
        meant = state["aliases"].get(path[0], [path[0]])
        names = [name for name in state["indices"] if path[0] == "*" or name in meant]
        if not names and path[0] != "*":
            return None
        if path[1] == "_mapping":
            return {name: {"mappings": state["indices"][name]["mappings"]} for name in names}
        assert path[1] == "_settings"
        for name in names if method == "PUT" else ():
            state["indices"][name]["settings"].update(body)
        return {
            name: {"settings": {k: v for k, v in state["indices"][name]["settings"].items() if v}}
            for name in names
        }


def node(*processors: str) -> dict[str, Any]:
    return {
        "name": f"node-with-{len(processors)}",
        "version": "3.8.0",
        "search_pipelines": {
            kind: [{"type": name} for name in processors]
            for kind in ("request_processors", "response_processors")
        },
    }


@pytest.fixture
def state() -> dict[str, Any]:
    index = {"mappings": {"properties": PROPERTIES}, "settings": {}}
    return {
        "nodes": {"a": node("title_rerank_candidates", "title_rerank")},
        "pipelines": {},
        "aliases": {"both": ["docs", "more"]},
        "indices": {"docs": copy.deepcopy(index), "more": copy.deepcopy(index)},
    }


@pytest.fixture
def client(state: dict[str, Any]) -> OpenSearch:
    return OpenSearch(hosts=[{}], connection_class=FakeCluster, state=state)


def default_of(state: dict[str, Any], index: str) -> Any:
    return state["indices"][index]["settings"].get("index.search.default_pipeline")


def test_the_body_names_both_processors_and_their_options() -> None:
    body = pipeline_body(Pipeline("meta.headline", ("passage",), 50, 10, "1s"))
    assert body["request_processors"] == [
        {
            "title_rerank_candidates": {
                "window": 50,
                "title_field": "meta.headline",
                "passage_field": "passage",
            }
        }
    ]
    assert body["response_processors"] == [
        {
            "title_rerank": {
                "title_field": "meta.headline",
                "passage_field": "passage",
                "passage_depth": 10,
                "timeout": "1s",
                "on_failure": "engine_order",
            }
        }
    ]


def test_several_passage_fields_are_a_list() -> None:
    body = pipeline_body(Pipeline(passage_fields=("a", "b")))
    assert body["request_processors"][0]["title_rerank_candidates"]["passage_field"] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title_field": ""}, "name is empty"),
        ({"passage_fields": ()}, "no passage field"),
        ({"passage_fields": ("a", "")}, "name is empty"),
        ({"window": 0}, "use 1 to 10000"),
        ({"window": 10_001}, "use 1 to 10000"),
        ({"passage_depth": -1}, "use 0"),
        ({"timeout": "500"}, "500ms or 2s"),
        ({"timeout": "0ms"}, "500ms or 2s"),
        ({"timeout": "1s "}, "500ms or 2s"),
    ],
)
def test_options_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        pipeline_body(Pipeline()._replace(**change))


def test_install_makes_the_default(client: OpenSearch, state: dict[str, Any]) -> None:
    assert pipelines.install(client, "docs", Pipeline(window=7)) == []
    assert state["pipelines"] == {"titlecast-docs": pipeline_body(Pipeline(window=7))}
    assert default_of(state, "docs") == "titlecast-docs"
    assert default_of(state, "more") is None


def test_install_again_changes_the_pipeline(client: OpenSearch, state: dict[str, Any]) -> None:
    pipelines.install(client, "docs", Pipeline())
    pipelines.install(client, "docs", Pipeline(window=7))
    assert [found.pipeline.window for found in pipelines.installed(client)] == [7]


def unchanged(state: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(state)


def test_a_node_without_the_processors_is_named(client: OpenSearch, state: dict[str, Any]) -> None:
    state["nodes"]["b"] = node("title_rerank_candidates")
    before = unchanged(state)
    with pytest.raises(ClusterError, match=r"node-with-1 .*no processor title_rerank:.*install"):
        pipelines.install(client, "docs", Pipeline())
    assert state == before


@pytest.mark.parametrize(
    ("index", "pipeline", "message"),
    [
        ("nothing", Pipeline(), "no index nothing"),
        ("docs", Pipeline("headline"), "no field headline: its text fields are meta.headline, p"),
        ("docs", Pipeline("price"), "price of index docs is integer, not text"),
        ("docs", Pipeline("meta"), "meta of index docs is object, not text"),
        ("docs", Pipeline("title.exact"), "is a sub-field, which hits do not carry: use title"),
        ("docs", Pipeline(passage_fields=("passage", "body")), "no field body"),
    ],
)
def test_a_wrong_index_or_field_is_refused_before_anything_changes(
    client: OpenSearch, state: dict[str, Any], index: str, pipeline: Pipeline, message: str
) -> None:
    before = unchanged(state)
    with pytest.raises(PipelineError, match=message):
        pipelines.install(client, index, pipeline)
    assert state == before


def test_an_index_without_any_field_is_to_be_filled_first(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["indices"]["docs"]["mappings"] = {}
    with pytest.raises(PipelineError, match="its text fields are none; index documents first"):
        pipelines.install(client, "docs", Pipeline())


@pytest.mark.parametrize(
    "kind", ["text", "match_only_text", "search_as_you_type", "keyword", "wildcard"]
)
def test_whatever_holds_text_can_be_reranked_by(
    client: OpenSearch, state: dict[str, Any], kind: str
) -> None:
    state["indices"]["docs"]["mappings"]["properties"] = {
        "title": {"type": kind},
        "passage": {"type": "text"},
    }
    assert pipelines.install(client, "docs", Pipeline()) == []
    assert default_of(state, "docs") == "titlecast-docs"


@pytest.mark.parametrize(
    ("source", "warned"),
    [
        ({}, []),
        ({"enabled": False}, ["title", "meta.headline"]),
        ({"excludes": ["meta"]}, ["meta.headline"]),
        ({"excludes": ["meta.*"]}, ["meta.headline"]),
        ({"includes": ["ti*"]}, ["meta.headline"]),
        ({"includes": ["title", "meta"]}, []),
    ],
)
def test_fields_that_do_not_come_back_are_warned_of(
    client: OpenSearch, state: dict[str, Any], source: dict[str, Any], warned: list[str]
) -> None:
    state["indices"]["docs"]["mappings"]["_source"] = source
    warnings = pipelines.install(client, "docs", Pipeline("title", ("meta.headline",)))
    assert [warning.split(" of index")[0] for warning in warnings] == warned


def test_a_window_that_an_index_does_not_give_out_is_refused_before_anything_changes(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["indices"]["docs"]["settings"]["index.max_result_window"] = "80"
    state["indices"]["more"]["settings"]["index.max_result_window"] = "50"
    before = unchanged(state)
    for index, limit in (("docs", 80), ("both", 50), ("*", 50)):
        for force in (False, True):
            with pytest.raises(PipelineError, match=rf"is {limit}\): give --window {limit}$"):
                pipelines.install(client, index, Pipeline(), force=force)
    assert state == before
    pipelines.install(client, "both", Pipeline(window=50))
    assert default_of(state, "docs") == default_of(state, "more") == "titlecast-both"


def test_a_window_as_large_as_an_index_gives_out_by_default_is_taken(client: OpenSearch) -> None:
    pipelines.install(client, "docs", Pipeline(window=10_000))


def test_another_default_is_replaced_by_force_only(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["indices"]["docs"]["settings"]["index.search.default_pipeline"] = "theirs"
    before = unchanged(state)
    with pytest.raises(PipelineError, match="default pipeline theirs: give --force"):
        pipelines.install(client, "docs", Pipeline())
    assert state == before
    pipelines.install(client, "docs", Pipeline(), force=True)
    assert default_of(state, "docs") == "titlecast-docs"


def test_the_setting_for_no_pipeline_is_not_another(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["indices"]["docs"]["settings"]["index.search.default_pipeline"] = "_none"
    pipelines.install(client, "docs", Pipeline())
    assert default_of(state, "docs") == "titlecast-docs"


def test_a_foreign_pipeline_of_the_name_is_replaced_by_force_only(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["pipelines"]["theirs"] = FOREIGN
    with pytest.raises(PipelineError, match="not Titlecast's"):
        pipelines.install(client, "docs", Pipeline(), name="theirs")
    assert state["pipelines"]["theirs"] == FOREIGN
    pipelines.install(client, "docs", Pipeline(), name="theirs", force=True)
    assert state["pipelines"]["theirs"] == pipeline_body(Pipeline())


def with_parts(change: str) -> dict[str, Any]:
    """Ours, with one thing that `install` does not write."""
    body = pipeline_body(Pipeline())
    request, response = body["request_processors"], body["response_processors"]
    if change == "filter_query":
        request.insert(0, {"filter_query": {"query": {"term": {"public": True}}}})
    elif change == "truncate_hits":
        response.append({"truncate_hits": {"target_size": 5}})
    elif change == "normalization-processor":
        body["phase_results_processors"] = [{"normalization-processor": {}}]
    elif change == "title_rerank.on_failure":
        response[0]["title_rerank"]["on_failure"] = "error"
    elif change == "title_rerank_candidates.ignore_failure":
        request[0]["title_rerank_candidates"]["ignore_failure"] = True
    elif change == "title_rerank_candidates.title_field":
        request[0]["title_rerank_candidates"]["title_field"] = "meta.headline"
    else:
        body[change] = "theirs"
    return body


@pytest.mark.parametrize(
    "part",
    [
        *("filter_query", "truncate_hits", "normalization-processor", "title_rerank.on_failure"),
        *("title_rerank_candidates.ignore_failure", "title_rerank_candidates.title_field"),
        *("version", "description"),
    ],
)
def test_a_pipeline_that_holds_more_is_replaced_by_force_only(
    client: OpenSearch, state: dict[str, Any], part: str
) -> None:
    pipelines.install(client, "docs", Pipeline())
    state["pipelines"]["titlecast-docs"] = with_parts(part)
    before = unchanged(state)
    with pytest.raises(PipelineError, match=rf"\({part}\): choose another --name, or give --force"):
        pipelines.install(client, "docs", Pipeline(window=7))
    assert state == before
    pipelines.install(client, "docs", Pipeline(window=7), force=True)
    assert state["pipelines"]["titlecast-docs"] == pipeline_body(Pipeline(window=7))


def test_a_pipeline_that_leaves_options_out_loses_nothing(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["pipelines"]["titlecast-docs"] = {
        "request_processors": [{"title_rerank_candidates": {}}],
        "response_processors": [{"title_rerank": {"timeout": "1m"}}],
    }
    pipelines.install(client, "docs", Pipeline())
    assert state["pipelines"]["titlecast-docs"] == pipeline_body(Pipeline())


def test_a_pipeline_that_other_indices_use_is_changed_by_force_only(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["indices"]["third"] = copy.deepcopy(state["indices"]["docs"])
    for index in ("more", "third"):
        pipelines.install(client, index, Pipeline(), name="site")
    before = unchanged(state)
    changed = Pipeline("meta.headline")
    for index in ("docs", "more"):  # it is the default of one of them already
        others = "more, third" if index == "docs" else "third"
        with pytest.raises(PipelineError, match=f"also the default of {others}: choose another"):
            pipelines.install(client, index, changed, name="site")
    assert state == before
    pipelines.install(client, "docs", Pipeline(), name="site")  # nothing changes for the others
    pipelines.install(client, "*", changed, name="site")  # all of them are meant
    pipelines.install(client, "docs", Pipeline(window=7), name="site", force=True)
    assert state["pipelines"] == {"site": pipeline_body(Pipeline(window=7))}


def test_installed_reads_back_what_was_installed(client: OpenSearch, state: dict[str, Any]) -> None:
    pipeline = Pipeline("meta.headline", ("passage", "title"), 50, 0, "2s")
    pipelines.install(client, "docs", pipeline, name="ours")
    pipelines.install(client, "more", pipeline, name="ours")
    state["pipelines"]["theirs"] = FOREIGN
    (found,) = pipelines.installed(client)
    assert (found.name, found.pipeline, found.indices) == ("ours", pipeline, ("docs", "more"))
    assert found.body == pipeline_body(pipeline)


@pytest.mark.parametrize(
    ("request_", "response", "fields"),
    [
        ({"title_field": "t", "passage_field": ["a", "b"]}, {}, ("t", ("a", "b"))),
        ({"title_field": "t", "passage_field": "a"}, {"title_field": "r"}, ("r", ("passage",))),
        ({"title_field": "t"}, {"passage_field": "p"}, ("title", ("p",))),
        ({"passage_field": "a"}, {"passage_depth": 5}, ("title", ("a",))),
        ({}, {}, ("title", ("passage",))),
        ({"title_field": "t", "passage_field": None}, {}, ("t", ("passage",))),
        ({"title_field": "t"}, {"title_field": None}, ("title", ("passage",))),
    ],
)
def test_fields_are_those_that_the_plugin_reads(
    client: OpenSearch,
    state: dict[str, Any],
    request_: dict[str, Any],
    response: dict[str, Any],
    fields: tuple[str, tuple[str, ...]],
) -> None:
    state["pipelines"]["ours"] = {
        "request_processors": [{"title_rerank_candidates": request_}],
        "response_processors": [{"title_rerank": response}],
    }
    (found,) = pipelines.installed(client)
    assert (found.pipeline.title_field, found.pipeline.passage_fields) == fields


def test_an_option_that_is_null_has_its_default(client: OpenSearch, state: dict[str, Any]) -> None:
    options = {"passage_depth": None, "timeout": None}
    state["pipelines"]["ours"] = {
        "request_processors": [{"title_rerank_candidates": {"window": None}}],
        "response_processors": [{"title_rerank": options}],
    }
    (found,) = pipelines.installed(client)
    assert found.pipeline == Pipeline()


def test_installed_can_be_asked_of_one_index(client: OpenSearch) -> None:
    pipelines.install(client, "docs", Pipeline())
    assert len(pipelines.installed(client, "docs")) == 1
    assert pipelines.installed(client, "more") == []
    with pytest.raises(PipelineError, match="no index nothing"):
        pipelines.installed(client, "nothing")


def test_remove_releases_every_index_that_uses_it(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    pipelines.install(client, "docs", Pipeline(), name="ours")
    pipelines.install(client, "more", Pipeline(), name="ours")
    assert pipelines.remove(client, "ours") == ("docs", "more")
    assert state["pipelines"] == {}
    assert default_of(state, "docs") is default_of(state, "more") is None


def test_remove_leaves_other_defaults_and_foreign_pipelines(
    client: OpenSearch, state: dict[str, Any]
) -> None:
    state["pipelines"]["theirs"] = FOREIGN
    state["indices"]["more"]["settings"]["index.search.default_pipeline"] = "theirs"
    pipelines.install(client, "docs", Pipeline())
    pipelines.remove(client, "titlecast-docs")
    assert default_of(state, "more") == "theirs"
    with pytest.raises(PipelineError, match="left alone"):
        pipelines.remove(client, "theirs")
    with pytest.raises(PipelineError, match="there is no pipeline ours: Titlecast's are none"):
        pipelines.remove(client, "ours")
    assert list(state["pipelines"]) == ["theirs"]


@pytest.mark.parametrize("part", ["filter_query", "truncate_hits", "normalization-processor"])
def test_a_pipeline_with_others_processors_is_removed_by_force_only(
    client: OpenSearch, state: dict[str, Any], part: str
) -> None:
    pipelines.install(client, "docs", Pipeline())
    state["pipelines"]["titlecast-docs"] = with_parts(part)
    before = unchanged(state)
    with pytest.raises(
        PipelineError, match=rf"other processors, too \({part}\): take title_rerank"
    ):
        pipelines.remove(client, "titlecast-docs")
    assert state == before
    assert pipelines.remove(client, "titlecast-docs", force=True) == ("docs",)
    assert state["pipelines"] == {}


def test_a_name_that_is_a_pattern_is_refused(client: OpenSearch, state: dict[str, Any]) -> None:
    before = unchanged(state)
    for index, name in (("*", None), ("docs", "titlecast-*")):
        with pytest.raises(
            PipelineError, match="would remove all that are like it: choose a --name"
        ):
            pipelines.install(client, index, Pipeline(), name=name)
    assert state == before
    pipelines.install(client, "docs", Pipeline())
    state["pipelines"]["titlecast-*"] = pipeline_body(Pipeline())  # by other means
    with pytest.raises(PipelineError, match="would delete titlecast-docs, too"):
        pipelines.remove(client, "titlecast-*")
    assert set(state["pipelines"]) == {"titlecast-docs", "titlecast-*"}
    pipelines.remove(client, "titlecast-docs")
    pipelines.remove(client, "titlecast-*")


@pytest.mark.parametrize("part", ["version", "description", "title_rerank.on_failure"])
def test_a_pipeline_of_other_options_is_removed_as_any(
    client: OpenSearch, state: dict[str, Any], part: str
) -> None:
    pipelines.install(client, "docs", Pipeline())
    state["pipelines"]["titlecast-docs"] = with_parts(part)
    assert pipelines.remove(client, "titlecast-docs") == ("docs",)


def test_a_window_that_sidecars_refuse_is_warned_of(client: OpenSearch) -> None:
    most = load_settings().max_hits
    assert pipelines.install(client, "docs", Pipeline(window=most)) == []
    (warning,) = pipelines.install(client, "docs", Pipeline(window=most + 1))
    assert warning.endswith(f"started with TITLECAST_MAX_HITS={most + 1}")
