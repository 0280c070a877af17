"""The choice of the engine, made without starting one."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin import engines
from plugin.engines import (
    Container,
    EngineUnavailable,
    GivenCluster,
    LocalNode,
    choose_engine,
    url_from_container,
    why_no_container,
    why_no_local_node,
)


@pytest.fixture
def can(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What this machine can do; a test says which engine lacks what."""
    lacks: dict[str, str | None] = {"container": None, "local": None}
    monkeypatch.setattr(engines, "why_no_container", lambda environ: lacks["container"])
    monkeypatch.setattr(engines, "why_no_local_node", lambda environ: lacks["local"])
    return lacks


def test_the_order_is_url_container_local_node(can: dict[str, str | None]) -> None:
    given_cluster = choose_engine(environ={"OPENSEARCH_URL": "http://given:9200"})
    assert (given_cluster.kind, given_cluster.url) == ("url", "http://given:9200")

    assert choose_engine(environ={}).kind == "container"
    can["container"] = "no Docker engine answers"
    local = choose_engine(["http://127.0.0.1:8900"], environ={})
    assert isinstance(local, LocalNode)
    assert local.kind == "local"


def test_without_any_engine_the_error_says_what_is_missing(can: dict[str, str | None]) -> None:
    can["container"] = "no Docker engine answers"
    can["local"] = "Maven was not found: install it."
    with pytest.raises(EngineUnavailable) as caught:
        choose_engine(environ={})
    for part in ("OPENSEARCH_URL", "no Docker engine answers", "Maven was not found: install it."):
        assert part in str(caught.value)


def test_a_machine_without_docker_says_so(tmp_path: Path) -> None:
    nobody = f"unix://{tmp_path}/docker.sock"
    assert why_no_container({"DOCKER_HOST": nobody}) == "no Docker engine answers"


def test_a_wheel_has_no_image_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_REPOSITORY", tmp_path)
    assert "checkout" in (why_no_container({}) or "")


def test_without_maven_there_is_no_local_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.node.tools._MAVEN_FOLDERS", ())
    reason = why_no_local_node({"PATH": ""})
    assert reason is not None
    assert "install" in reason


class _Cluster(http.server.BaseHTTPRequestHandler):
    """As much of a cluster as is asked for."""

    def do_GET(self) -> None:
        body = json.dumps({"version": {"number": "3.8.0", "distribution": "opensearch"}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Cluster) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_given_cluster_is_used_as_it_is(answering: str) -> None:
    with GivenCluster(answering) as engine:
        assert engine.url == answering
        assert answering in engine.describe()
    with engine:  # it is still there
        pass


def test_a_given_cluster_that_does_not_answer_is_named() -> None:
    engine = GivenCluster("http://somebody:secret@127.0.0.1:1")
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:1.*unset") as caught:
        engine.start()
    assert "secret" not in str(caught.value)


@given(
    st.sampled_from(["http", "https"]),
    st.integers(1, 65535),
    st.sampled_from(["", "/", "/base", "/a/b?c=d"]),
)
def test_a_container_reaches_this_host_under_another_name(
    scheme: str, port: int, path: str
) -> None:
    for name in ("localhost", "127.0.0.1", "[::1]"):
        moved = url_from_container(f"{scheme}://{name}:{port}{path}")
        assert moved == f"{scheme}://host.docker.internal:{port}{path}"
        assert url_from_container(moved) == moved
    elsewhere = f"{scheme}://sidecar.example:{port}{path}"
    assert url_from_container(elsewhere) == elsewhere


def test_settings_reach_a_container_as_its_environment() -> None:
    container = Container(
        ["http://127.0.0.1:8900", "http://elsewhere:8900"],
        heap="1g",
        java_options=["-Da=b"],
        settings={"a.flag": True, "a.list": [1, 2], "a.word": "w"},
    )
    environment = container._environment
    assert environment["title_rerank.sidecar.urls"] == (
        "http://host.docker.internal:8900,http://elsewhere:8900"
    )
    assert environment["OPENSEARCH_JAVA_OPTS"] == "-Xms1g -Xmx1g -Da=b"
    assert (environment["a.flag"], environment["a.list"]) == ("true", "1,2")
    assert environment["a.word"] == "w"
    container.stop()  # nothing was started, nothing happens


@pytest.mark.docker
def test_a_container_answers_and_has_the_plugin() -> None:
    if reason := why_no_container():
        pytest.skip(reason)
    from opensearchpy import OpenSearch

    with Container(["http://127.0.0.1:8900"]) as engine, OpenSearch([engine.url]) as client:
        components = {row["component"] for row in client.cat.plugins(format="json")}
    assert "title-rerank" in components
