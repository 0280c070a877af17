"""Installing, using and removing a pipeline on a real node."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from fastapi import FastAPI
from opensearchpy import OpenSearch
from typer.testing import CliRunner, Result

import plugin.cli.pipeline
import plugin.cli.search
from indexing.load import load
from indexing.records import Document
from indexing.target import end_loading, make_index
from plugin import pipelines
from plugin.cli.search import compare
from plugin.clusters import connect
from plugin.engines import Engine
from plugin.pipelines import Pipeline, PipelineError
from plugin.sidecar.protocol import (
    RerankRequest,
    RerankResponse,
    WireRankedHit,
    WireStage,
)

INDEX = "test-pipelines"
NAME = "titlecast-test-pipelines"


@pytest.fixture(autouse=True)
def index(client: OpenSearch) -> Iterator[None]:
    make_index(client, INDEX)
    # The longer the passage, the lower the engine ranks the one matching word in it.
    words = [Document(str(n), f"title {n}", "word" + " filler" * n) for n in range(1, 21)]
    load(client, INDEX, words)
    end_loading(client, INDEX)
    yield
    client.indices.delete(index=f"{INDEX}*", ignore=[404])
    for name in client.search_pipeline.get(ignore=[404]):
        client.search_pipeline.delete(id=name)


@pytest.fixture
def run(cluster: Engine) -> Callable[..., Result]:
    app = typer.Typer()
    plugin.cli.pipeline.register(app)
    plugin.cli.search.register(app)
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "--url", cluster.url])


def backwards() -> FastAPI:
    """A sidecar that turns the order of the hits around."""
    app = FastAPI()

    @app.post("/rerank")
    def rerank(request: RerankRequest) -> RerankResponse:
        count = len(request.hits)
        hits = [
            WireRankedHit(
                index=position,
                id=request.hits[position].id,
                score=1 + (position + 1) / (count + 1),
                first_stage_score=request.hits[position].score,
                title_score=float(position),
                passage_score=None,
            )
            for position in reversed(range(count))
        ]
        stages = [WireStage(name="title", scored=count, milliseconds=1.5)]
        return RerankResponse(
            hits=hits, stages=stages, complete=True, milliseconds=2.0, model="backwards"
        )

    return app


def test_a_search_is_reranked_once_the_pipeline_is_there(
    client: OpenSearch, sidecar: Any, run: Callable[..., Result]
) -> None:
    plain = compare(client, INDEX, "word", 5)
    assert not plain.applied
    assert [hit.id for hit in plain.after] == ["1", "2", "3", "4", "5"]
    assert run("pipeline", "install", "--index", INDEX, "--timeout", "5s").exit_code == 0
    with sidecar.serving(backwards()):
        reranked = compare(client, INDEX, "word", 5)
        assert [hit.id for hit in reranked.before][:5] == ["1", "2", "3", "4", "5"]
        assert [hit.id for hit in reranked.after] == ["20", "19", "18", "17", "16"]
        assert reranked.applied, reranked.reason
        assert reranked.complete
        assert reranked.model == "backwards"
        assert [(stage.name, stage.scored) for stage in reranked.stages] == [("title", 20)]
        shown = run("search", "word", "--index", INDEX, "--size", "5")
    assert shown.exit_code == 0, shown.output
    assert "title 20" in shown.output
    assert "▲ 19" in shown.output
    assert "model: backwards" in shown.output


def test_without_a_sidecar_the_reason_is_shown(
    client: OpenSearch, sidecar: Any, run: Callable[..., Result]
) -> None:
    run("pipeline", "install", "--index", INDEX)
    comparison = compare(client, INDEX, "word", 3)
    assert [hit.id for hit in comparison.after] == ["1", "2", "3"]
    assert not comparison.applied
    assert comparison.reason
    shown = run("search", "word", "--index", INDEX)
    assert shown.exit_code == 0
    assert "not reranked" in shown.output


def test_a_page_larger_than_the_window_is_not_told_that_there_is_no_pipeline(
    client: OpenSearch, sidecar: Any, run: Callable[..., Result]
) -> None:
    pipelines.install(client, INDEX, Pipeline(window=5, timeout="5s"))
    with sidecar.serving(backwards()):
        shown = run("search", "word", "--index", INDEX, "--size", "6")
    assert shown.exit_code == 0, shown.output
    assert "no pipeline" not in shown.output


def test_a_search_reads_the_fields_that_the_pipeline_reads(
    client: OpenSearch, sidecar: Any, run: Callable[..., Result]
) -> None:
    body = {
        "request_processors": [
            {"title_rerank_candidates": {"title_field": "section", "passage_field": ["passage"]}}
        ],
        "response_processors": [{"title_rerank": {"timeout": "5s"}}],
    }
    client.search_pipeline.put(id=NAME, body=body)
    client.indices.put_settings(index=INDEX, body={"index.search.default_pipeline": NAME})
    client.index(
        index=INDEX, id="x", body={"section": "its section", "passage": "word"}, refresh=True
    )
    with sidecar.serving(backwards()):
        shown = run("search", "word", "--index", INDEX, "--size", "30")
    assert "its section" in shown.output


def test_the_window_bounds_what_is_reranked(client: OpenSearch, sidecar: Any) -> None:
    pipelines.install(client, INDEX, Pipeline(window=10, timeout="5s"))
    with sidecar.serving(backwards()):
        comparison = compare(client, INDEX, "word", 3, Pipeline(window=10))
    assert [hit.id for hit in comparison.after] == ["10", "9", "8"]


def test_the_engine_takes_every_option_and_gives_it_back(client: OpenSearch) -> None:
    pipeline = Pipeline("title", ("passage", "title"), 50, 0, "2s")
    assert pipelines.install(client, INDEX, pipeline, name="some") == []
    (found,) = pipelines.installed(client, INDEX)
    assert (found.name, found.pipeline, found.indices) == ("some", pipeline, (INDEX,))


def test_show_prints_what_install_made(run: Callable[..., Result]) -> None:
    assert run("pipeline", "show").exit_code == 1
    run("pipeline", "install", "--index", INDEX, "--window", "77")
    shown = run("pipeline", "show", "--index", INDEX)
    assert shown.exit_code == 0
    assert NAME in shown.output
    assert '"window": 77' in shown.output


@pytest.mark.parametrize("terminal", [False, True])
def test_show_prints_the_whole_pipeline_however_narrow_the_console(
    client: OpenSearch,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    if terminal:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")
    name = f"{NAME}-with-a-name-that-is-too-long-for-a-line"
    pipelines.install(client, INDEX, Pipeline(), name=name)
    heading, shown = run("pipeline", "show").stdout.split("\n", 1)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    if terminal:
        assert max(map(len, text.splitlines())) <= 40
        text = text.replace("\n", "")
    body = client.search_pipeline.get(id=name)[name]
    assert re.sub(r"\s", "", text) == re.sub(r"\s", "", json.dumps(body))
    if not terminal:
        assert json.loads(shown) == body
        assert heading == f"{name}, the default of {INDEX}"


def test_remove_gives_the_index_back(client: OpenSearch, run: Callable[..., Result]) -> None:
    run("pipeline", "install", "--index", INDEX)
    removed = run("pipeline", "remove", "--index", INDEX)
    assert removed.exit_code == 0, removed.output
    assert client.search_pipeline.get(ignore=[404]) == {}
    assert pipelines.default_pipelines(client, INDEX) == {}
    assert client.search(index=INDEX)["hits"]["total"]["value"] == 20
    assert run("pipeline", "remove", "--index", INDEX).exit_code == 1


def test_another_default_is_kept_without_force(
    client: OpenSearch, run: Callable[..., Result]
) -> None:
    body = {"response_processors": [{"truncate_hits": {"target_size": 5}}]}
    client.search_pipeline.put(id="theirs", body=body)
    setting = {"index.search.default_pipeline": "theirs"}
    client.indices.put_settings(index=INDEX, body=setting)
    refused = run("pipeline", "install", "--index", INDEX)
    assert isinstance(refused.exception, PipelineError)
    assert pipelines.default_pipelines(client, INDEX) == {INDEX: "theirs"}
    assert run("pipeline", "install", "--index", INDEX, "--force").exit_code == 0
    assert pipelines.default_pipelines(client, INDEX) == {INDEX: NAME}


def test_an_alias_stands_for_its_indices(client: OpenSearch) -> None:
    client.indices.put_alias(index=INDEX, name=f"{INDEX}-alias")
    pipelines.install(client, f"{INDEX}-alias", Pipeline())
    assert pipelines.default_pipelines(client, INDEX) == {INDEX: f"{NAME}-alias"}
    assert [found.indices for found in pipelines.installed(client)] == [(INDEX,)]


def test_a_window_above_max_result_window_is_refused_through_an_alias_too(
    client: OpenSearch,
) -> None:
    client.indices.put_alias(index=INDEX, name=f"{INDEX}-alias")
    client.indices.put_settings(index=INDEX, body={"index.max_result_window": 50})
    with pytest.raises(PipelineError, match=f"{INDEX} .*give --window 50"):
        pipelines.install(client, f"{INDEX}-alias", Pipeline())
    assert client.search_pipeline.get(ignore=[404]) == {}
    pipelines.install(client, f"{INDEX}-alias", Pipeline(window=50))
    body = {"query": {"match": {"passage": "word"}}, "size": 3}
    assert len(client.search(index=INDEX, body=body)["hits"]["hits"]) == 3


def test_a_pipeline_with_a_filter_keeps_it(client: OpenSearch) -> None:
    pipelines.install(client, INDEX, Pipeline())
    pipelines.install(client, INDEX, Pipeline(window=50))  # ours, as the engine gives it back
    body = client.search_pipeline.get(id=NAME)[NAME]
    body["request_processors"].insert(0, {"filter_query": {"query": {"term": {"title": "1"}}}})
    client.search_pipeline.put(id=NAME, body=body)
    with pytest.raises(PipelineError, match="filter_query"):
        pipelines.install(client, INDEX, Pipeline())
    assert client.search_pipeline.get(id=NAME)[NAME] == body


def test_wrong_fields_are_refused_on_a_real_mapping(client: OpenSearch) -> None:
    for field, message in (
        ("headline", "its text fields are page_id, passage, section, title, url"),
        ("title.exact", "use title"),
        ("metadata", "not text"),
    ):
        with pytest.raises(PipelineError, match=message):
            pipelines.install(client, INDEX, Pipeline(field))
    assert client.search_pipeline.get(ignore=[404]) == {}


def test_connect_takes_the_node_for_what_it_is(cluster: Engine) -> None:
    with connect(cluster.url) as client:
        pipelines.check_plugin(client)
