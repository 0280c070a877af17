"""The choice of the engine, made without starting one."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
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


@contextlib.contextmanager
def answering(status: int = 200, certificate: trustme.LeafCert | None = None) -> Iterator[str]:
    """Serve as much of a cluster as is asked for; gives HOST:PORT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = {"number": "3.8.0", "distribution": "opensearch"}
            body = json.dumps({"version": version}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            # The handshake in the connection's own thread, so that a refused one ends nothing.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the client's own log says, as in a process that has not connected yet."""
    logging.getLogger("opensearch").setLevel(logging.NOTSET)
    caplog.set_level(logging.WARNING)
    return caplog


def test_a_given_cluster_is_used_as_it_is() -> None:
    with answering() as place:
        with GivenCluster(f"http://{place}") as engine:
            assert engine.url == f"http://{place}"
            assert place in engine.describe()
        with engine:  # it is still there
            pass


def test_a_given_cluster_that_does_not_answer_is_named_in_one_sentence(
    heard: pytest.LogCaptureFixture,
) -> None:
    engine = GivenCluster("http://somebody:secret@127.0.0.1:1")
    with pytest.raises(EngineUnavailable, match=r"^no cluster .*127\.0\.0\.1:1.*OPENSEARCH_URL$"):
        engine.start()
    assert not heard.records


@pytest.mark.parametrize("url", ["https://us:sec@ret@host:9200", "us:sec@ret@host:9200"])
def test_no_password_is_told(url: str) -> None:
    assert GivenCluster(url).describe().endswith("host:9200")
    assert "ret@" not in GivenCluster(url).describe()


def test_a_given_cluster_that_refuses_the_user_says_so() -> None:
    with answering(401) as place, pytest.raises(EngineUnavailable, match="put user and password"):
        GivenCluster(f"http://{place}").start()


def test_a_given_cluster_may_have_any_certificate_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(certificate=trustme.CA().issue_cert("127.0.0.1")) as place:
        engine = GivenCluster(f"https://{place}")
        with pytest.raises(EngineUnavailable, match=r"is not trusted.*OPENSEARCH_INSECURE=true"):
            engine.start()
        monkeypatch.setenv("OPENSEARCH_INSECURE", "true")
        engine.start()


def test_a_container_is_waited_for_without_a_trace_in_the_log(
    heard: pytest.LogCaptureFixture,
) -> None:
    class Logs:
        def get_logs(self) -> tuple[bytes, bytes]:
            return b"its last line\n", b""

    container = Container(start_seconds=0.7)
    container._container, container._url = Logs(), "http://127.0.0.1:1"
    with pytest.raises(EngineUnavailable, match="did not answer within"):
        container._wait()
    assert [record.message for record in heard.records] == ["its last line"]


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
