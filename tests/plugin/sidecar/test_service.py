"""The application over real connections: names, numbers, readiness, TLS, slow callers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from plugin.sidecar.app import Sidecar, build_app
from plugin.sidecar.models import Loaded, Models, hash_models
from plugin.sidecar.server import Server, limited_protocol
from plugin.sidecar.settings import load_settings
from reranker import RerankResult, StageReport
from reranker.lru import CacheUse
from tests.plugin.sidecar.fakes import (
    Gated,
    background,
    sample,
    search,
    sentence,
    serving,
)
from tests.waiting import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def opened() -> Gated:
    gated = Gated()
    gated.open.set()
    return gated


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with serving(build_app(opened(), load_settings())) as client:
        yield client


# Names that a search has elsewhere.


def test_names_of_a_search_come_back_and_are_logged(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"X-Opaque-Id": "shop 42", "traceparent": PARENT, "tracestate": "vendor=a,b=c"}
    with caplog.at_level(logging.INFO, "plugin.sidecar"):
        response = client.post("/rerank", json=search(), headers=headers)
    assert {name: response.headers[name] for name in headers} == headers
    (record,) = [record for record in caplog.records if "hits in" in record.getMessage()]
    assert vars(record)["opaque_id"] == "shop 42"
    assert vars(record)["trace_id"] == TRACE
    assert vars(record)["hits"] == 1
    refused = client.post("/rerank", content=b"{", headers=headers)
    assert refused.headers["traceparent"] == PARENT


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"tracestate": "vendor=a"},  # of no trace
        {"traceparent": PARENT[:-1]},
        {"traceparent": PARENT.upper()},
        {"traceparent": f"ff{PARENT[2:]}"},
        {"traceparent": PARENT.replace(TRACE, "0" * 32)},
        {"X-Opaque-Id": "x" * 513},
        {"X-Opaque-Id": "schlüssel".encode("latin-1")},
    ],
    ids=str,
)
def test_names_that_are_none_are_left_out(client: httpx.Client, headers: Any) -> None:
    response = client.post("/rerank", json=search(), headers=headers)
    assert response.status_code == 200
    assert not {"x-opaque-id", "traceparent", "tracestate"} & set(response.headers)


# Numbers.


def test_what_happened_is_counted() -> None:
    class Counting(Gated):
        def rerank(self, *args: Any, **more: Any) -> RerankResult:
            result = super().rerank(*args, **more)
            stages = [
                StageReport("title", 1, 20.0, truncated=3, tokens=50),
                StageReport("passage", 2, 40.0, 1, "deadline", tokens=70, unscored=4),
            ]
            return RerankResult(result.hits, stages, complete=False)

    counting = Counting()
    settings = load_settings(max_concurrent=1, max_waiting=1, api_key="open-sesame")
    key = {"Authorization": "Bearer open-sesame"}
    with serving(build_app(counting, settings)) as client:
        assert client.get("/metrics").status_code == 401
        client.headers.update(key)
        with background(client, search()):
            wait_until(lambda: len(counting.asked) == 1)
            with background(client, search()):
                wait_until(lambda: sample(client, "titlecast_waiting_requests") == 1)
                assert sample(client, "titlecast_waiting_tokens") > 0
                assert sample(client, "titlecast_computed_requests") == 1
                assert client.post("/rerank", json=search()).status_code == 429
                counting.open.set()
        client.post("/rerank", content=b"{")
        client.get("/nowhere/at/all")
        requests = 'titlecast_requests_total{{outcome="{}",path="{}"}}'
        for outcome, path, count in (
            ("answered", "/rerank", 2),
            ("refused", "/rerank", 1),
            ("invalid", "/rerank", 1),
            ("unauthorized", "/metrics", 1),
            ("not_found", "other", 1),
        ):
            assert sample(client, requests.format(outcome, path)) == count
        assert sample(client, 'titlecast_request_seconds_count{path="/rerank"}') == 2
        assert sample(client, "titlecast_waited_seconds_count") == 2
        assert sample(client, 'titlecast_stage_seconds_sum{stage="passage"}') == pytest.approx(0.08)
        assert sample(client, 'titlecast_tokens_total{stage="title"}') == 100
        assert sample(client, 'titlecast_scored_hits_total{stage="passage"}') == 4
        assert sample(client, 'titlecast_truncated_texts_total{stage="title"}') == 6
        assert sample(client, "titlecast_deadline_skipped_passages_total") == 8
        assert sample(client, "titlecast_partial_answers_total") == 2
        assert sample(client, "titlecast_waiting_requests") == 0
        assert sample(client, "titlecast_computed_requests") == 0
        assert sample(client, "titlecast_ready") == 1
        assert sample(client, "process_resident_memory_bytes") > 0
        assert re.search(
            r'^titlecast_model_info\{hash="",name="gated",version=".+"\} 1\.0$',
            client.get("/metrics").text,
            re.MULTILINE,
        )


def test_what_was_not_answered_is_counted_by_its_cause() -> None:
    class Failing(Gated):
        def rerank(self, query: str, *args: Any, **more: Any) -> RerankResult:
            if query == "fail":
                raise RuntimeError("as models do")
            return super().rerank(query, *args, **more)

    app = build_app(Failing(), load_settings(read_seconds=0.5, max_body_bytes=5000))
    with serving(app) as client:
        with connect(client) as raw:
            raw.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")
        client.post("/rerank", json=search(query="a" * 6000))
        client.post("/rerank", json=search(query=""))
        client.post("/rerank", json=search(query="fail"))
        client.put("/rerank")
        app.state.sidecar.close()
        client.post("/rerank", json=search())
        for outcome in (
            "slow_caller",
            "too_large",
            "invalid",
            "failed",
            "not_found",
            "unavailable",
        ):
            name = f'titlecast_requests_total{{outcome="{outcome}",path="/rerank"}}'
            assert sample(client, name) == 1, outcome


def test_one_process_counts_in_no_folder_of_another_program(tmp_path: Path) -> None:
    program = "from plugin.sidecar.metrics import Metrics; print(Metrics().write().decode())"
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    environ.pop("TITLECAST_WORKER_PLACE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "titlecast_ready 0.0" in done.stdout
    assert "process_start_time_seconds" in done.stdout or sys.platform != "linux"
    assert list(tmp_path.iterdir()) == []


def test_cache_hits_are_counted_across_models() -> None:
    use = {"title": CacheUse(5, 7, 1, 1)}
    app = build_app(Models(lambda: Loaded(opened(), "", lambda: dict(use))), load_settings())
    with serving(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        for hits in (5, 6, 16):
            use["title"] = CacheUse(hits, 7, 1, 1)
            client.post("/rerank", json=search())
        assert sample(client, 'titlecast_cache_hits_total{stage="title"}') == 16
        assert sample(client, 'titlecast_cache_misses_total{stage="title"}') == 7


# Readiness, draining, other models.


def test_while_models_are_loaded_it_lives_and_is_not_ready() -> None:
    go_on = threading.Event()

    def load() -> Loaded:
        assert go_on.wait(60)
        return Loaded(opened(), "hash")

    with serving(build_app(Models(load), load_settings())) as client:
        assert client.get("/livez").status_code == 200
        for response in (
            client.get("/readyz"),
            client.get("/health"),
            client.post("/rerank", json=search()),
        ):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert "being loaded" in sentence(response)
        go_on.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/rerank", json=search()).status_code == 200


def test_models_that_cannot_be_loaded_are_kept_as_the_reason() -> None:
    def load() -> Loaded:
        raise FileNotFoundError("there is no model")

    app = build_app(Models(load), load_settings())
    with serving(app) as client:
        wait_until(lambda: app.state.sidecar.failure is not None)
        assert "no model" in str(app.state.sidecar.failure)
        assert client.get("/readyz").status_code == 503


def test_a_reload_during_the_first_load_comes_after_it() -> None:
    first, models = threading.Event(), iter(["old", "new"])

    def load() -> Loaded:
        name = next(models)
        if name == "old":  # read before they were exchanged, and slowly
            first.wait(60)
        return Loaded(Named(name), name)

    async def load_both() -> str:
        sidecar = Sidecar(Models(load), load_settings())
        loading = asyncio.ensure_future(sidecar.begin())
        await asyncio.sleep(0.1)
        again = asyncio.ensure_future(sidecar.reload())
        await asyncio.wait([again], timeout=0.5)
        first.set()
        await loading
        assert await again
        await sidecar.end()
        assert sidecar.models.current is not None
        return sidecar.models.current.reranker.name

    assert asyncio.run(load_both()) == "new"


def test_a_sidecar_that_leaves_answers_but_is_not_ready(client: httpx.Client) -> None:
    gated = Gated()
    app = build_app(gated, load_settings())
    sidecar: Sidecar = app.state.sidecar
    with serving(app) as client:
        with background(client, search()) as before:
            wait_until(lambda: len(gated.asked) == 1)
            sidecar.leave()
            unready = client.get("/readyz")
            assert unready.status_code == 503
            assert unready.headers["retry-after"] == "1"
            assert client.get("/livez").status_code == 200
            gated.open.set()
            answered = client.post("/rerank", json=search())
            assert answered.status_code == 200
            assert answered.headers["connection"] == "close"  # to be opened at another sidecar
        assert [response.status_code for response in before] == [200]
        sidecar.close()
        refused = client.post("/rerank", json=search())
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "stopping" in sentence(refused)


def test_what_is_not_done_when_patience_ends_is_told_so() -> None:
    gated = Gated()
    answers: list[httpx.Response] = []
    with serving(build_app(gated, load_settings(max_concurrent=1))) as client:
        url = client.base_url.join("/rerank")

        def ask() -> None:
            answers.append(httpx.post(url, json=search(), timeout=120, trust_env=False))

        callers = [threading.Thread(target=ask) for _ in range(2)]  # one computed, one in line
        for caller in callers:
            caller.start()
        wait_until(lambda: sample(client, "titlecast_waiting_requests") == 1)
    for caller in callers:
        caller.join()
    assert [answer.status_code for answer in answers] == [503, 503]
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert "stopping" in sentence(answers[0])


class Named(Gated):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.open.set()


def test_models_are_exchanged_while_searches_are_answered() -> None:
    old, new = Named("old"), Named("new")
    coming: list[Any] = [Loaded(old, "1")]

    def load() -> Loaded:
        if isinstance(coming[0], Exception):
            raise coming[0]
        return coming[0]

    app = build_app(Models(load), load_settings())
    sidecar: Sidecar = app.state.sidecar
    loops: list[asyncio.AbstractEventLoop] = []

    @app.get("/loop")
    async def loop() -> None:
        loops.append(asyncio.get_running_loop())

    def reload() -> bool:
        return asyncio.run_coroutine_threadsafe(sidecar.reload(), loops[0]).result(60)

    with serving(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        client.get("/loop")
        old.open.clear()
        with background(client, search()) as during:
            wait_until(lambda: len(old.asked) == 1)
            coming[0] = Loaded(new, "2")
            assert reload()
            assert new.warm  # before the first search comes
            assert client.post("/rerank", json=search()).json()["model"] == "new"
            old.open.set()
        assert during[0].json()["model"] == "old"  # finished by those it began with
        coming[0] = ValueError("broken")
        assert not reload()
        assert client.post("/rerank", json=search()).json()["model"] == "new"
        assert client.get("/readyz").json()["model"] == "new"
        metrics = client.get("/metrics").text
        assert 'titlecast_model_reloads_total{outcome="done"} 1.0' in metrics
        assert 'titlecast_model_reloads_total{outcome="failed"} 1.0' in metrics
        assert re.search(r'model_info\{hash="2",name="new",version=".*"\} 1\.0', metrics)
        assert re.search(r'model_info\{hash="1",name="old",version=".*"\} 0\.0', metrics)


def test_the_hash_is_of_all_that_serving_reads(tmp_path: Path) -> None:
    (tmp_path / "title").mkdir()
    (tmp_path / "title" / "weights.bin").write_bytes(b"1")
    (tmp_path / "README.md").write_text("card")
    first = hash_models(tmp_path)
    (tmp_path / "README.md").write_text("another card")
    assert hash_models(tmp_path) == first
    (tmp_path / "title" / "weights.bin").write_bytes(b"2")
    second = hash_models(tmp_path)
    (tmp_path / "title").rename(tmp_path.with_name("elsewhere"))
    (tmp_path / "title").symlink_to("../elsewhere")
    assert hash_models(tmp_path) == second
    (tmp_path / "title" / "weights.bin").rename(tmp_path / "weights.bin")
    assert len({first, second, hash_models(tmp_path)}) == 3


# Callers that are slow, or send too much before they have sent anything.


@pytest.fixture(scope="module")
def hurried() -> Iterator[httpx.Client]:
    """A sidecar that waits half a second, and no longer."""
    settings = load_settings(read_seconds=0.5, write_seconds=0.5, max_header_bytes=4096)
    with serving(build_app(opened(), settings), http=limited_protocol(settings)) as client:
        yield client


def connect(client: httpx.Client) -> socket.socket:
    raw = socket.create_connection((client.base_url.host, client.base_url.port or 0))
    raw.settimeout(60)
    return raw


def dribble(raw: socket.socket, data: bytes) -> bytes:
    """Send byte by byte until the other side has had enough; give what it said."""
    said = b""
    try:
        for place in range(len(data)):
            raw.sendall(data[place : place + 1])
            raw.settimeout(0.05)
            try:
                part = raw.recv(10_000)
            except TimeoutError:
                continue
            said += part
            if not part:
                return said
        raise AssertionError("it took every byte")
    except (ConnectionResetError, BrokenPipeError):
        return said


HEAD = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_connection_that_says_nothing_is_closed(hurried: httpx.Client) -> None:
    with connect(hurried) as raw, contextlib.suppress(ConnectionResetError):
        assert raw.recv(1000) == b""


def test_a_head_byte_by_byte_is_not_waited_for(hurried: httpx.Client) -> None:
    with connect(hurried) as raw:
        assert dribble(raw, HEAD + b"X: " + b"a" * 1000) == b""
    with connect(hurried) as raw:  # nor on a connection that was good before
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b""
        while not said.endswith(b'{"status":"ok"}'):
            said += raw.recv(10_000)
        time.sleep(0.7)  # idle is no matter: only a head that was begun must go on
        assert dribble(raw, HEAD + b"X: " + b"a" * 1000) == b""


def test_a_body_byte_by_byte_is_answered_408(hurried: httpx.Client) -> None:
    body = json.dumps(search(query="a" * 1000)).encode()
    with connect(hurried) as raw:
        raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        said = dribble(raw, body)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in said.lower()
    assert b"READ_SECONDS" in said
    # The slow ones cost the others nothing.
    assert hurried.post("/rerank", json=search()).status_code == 200


@pytest.mark.parametrize("asked", ["GET /livez", "POST /health", "GET /rerank", "PUT /nothing"])
@pytest.mark.parametrize("body", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_nobody_reads_is_not_taken_in_for_ever(
    hurried: httpx.Client, asked: str, body: str
) -> None:
    head = f"{asked} HTTP/1.1\r\nHost: x\r\n{body}\r\n\r\n"
    with connect(hurried) as raw:
        raw.sendall(head.encode())
        said = dribble(raw, b"1\r\na\r\n" * 200)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in said.lower()
    if "Length" in body:
        with connect(hurried) as raw:
            raw.sendall(head.replace("1000", "99999999999").encode())
            assert raw.recv(10_000).startswith(b"HTTP/1.1 413 ")
    # One that comes in time is taken in, and its connection goes on.
    for _ in range(2):
        answer = hurried.request(*asked.split(), content=b"a" * 1000)
        assert answer.status_code in (200, 404, 405)
        assert "connection" not in answer.headers


def test_a_head_too_long_is_refused_in_json(hurried: httpx.Client) -> None:
    with connect(hurried) as raw:
        raw.sendall(HEAD + b"X: " + b"a" * 5000)
        said = raw.recv(10_000)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert "error" in json.loads(said.partition(b"\r\n\r\n")[2])


def test_a_caller_that_takes_up_no_answer_is_cut_off() -> None:
    settings = load_settings(write_seconds=0.5, max_hits=100_000)
    app = build_app(opened(), settings)
    many = [{"id": "x" * 500}] * 20_000
    body = json.dumps(search(hits=many)).encode()
    with serving(app, http=limited_protocol(settings)) as client, connect(client) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        sent = 'titlecast_requests_total{outcome="answered",path="/rerank"}'
        wait_until(lambda: sample(client, sent) == 1)  # or else it would wait for ever


# TLS.


class Certificates:
    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.renew()

    def renew(self, ca: trustme.CA | None = None) -> None:
        issued = (ca or self.ca).issue_cert("127.0.0.1")
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def settings(self, **more: Any) -> Any:
        return load_settings(tls_cert=self.cert, tls_key=self.key, **more)

    def context(self, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if client:
            client.configure_cert(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def ask(client: httpx.Client, context: ssl.SSLContext) -> int:
    url = f"https://127.0.0.1:{client.base_url.port}/rerank"
    with httpx.Client(verify=context, timeout=60, trust_env=False) as secure:
        return secure.post(url, json=search()).status_code


def test_with_a_certificate_it_speaks_tls_only(certificates: Certificates) -> None:
    settings = certificates.settings()
    with serving(build_app(opened(), settings), **settings.ssl_options()) as client:
        assert ask(client, certificates.context()) == 200
        with pytest.raises(httpx.TransportError):
            client.post("/rerank", json=search())
        old = certificates.context()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert ask(client, old) == 200
        with pytest.raises(httpx.ConnectError):  # a caller that trusts another authority
            ask(client, ssl.create_default_context())


def test_callers_must_show_a_certificate_where_they_are_told_to(
    certificates: Certificates,
) -> None:
    settings = certificates.settings(tls_client_ca=certificates.ca_file)
    known = certificates.ca.issue_cert("opensearch")
    stranger = trustme.CA().issue_cert("opensearch")
    with serving(build_app(opened(), settings), **settings.ssl_options()) as client:
        assert ask(client, certificates.context(known)) == 200
        for context in (certificates.context(), certificates.context(stranger)):
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                ask(client, context)


def test_a_caller_that_begins_no_handshake_is_cut_off(certificates: Certificates) -> None:
    settings = certificates.settings(read_seconds=0.3)
    server = Server(build_app(opened(), settings), settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=[[listener]], daemon=True)
        thread.start()
        with socket.create_connection(listener.getsockname()) as silent:
            silent.settimeout(30)  # asyncio's own patience is a minute
            with contextlib.suppress(ConnectionResetError):
                assert silent.recv(1) == b""
        server.end()
        thread.join()


def shown(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """The certificate that a server shows to a client, which trusts it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, server_hostname="127.0.0.1")
    answering = server.wrap_bio(there, back, server_side=True)
    for side in (asking, answering, asking):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return asking.getpeercert(binary_form=True)


def test_a_certificate_is_renewed_without_a_restart(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(build_app(opened(), certificates.settings()), certificates.settings())
    server.config.load()

    async def reload() -> None:  # as SIGHUP does
        server.reload()
        await server.on_tick(1)
        await asyncio.gather(*server._tasks)

    context = server.config.ssl
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    before, first = certificates.key.read_bytes(), shown(context, certificates.context())
    assert first is not None
    certificates.key.write_bytes(b"broken")
    asyncio.run(reload())
    assert "the certificate before stays" in caplog.text
    assert shown(context, certificates.context()) == first
    certificates.renew()
    assert certificates.key.read_bytes() != before
    with caplog.at_level(logging.INFO):
        asyncio.run(reload())
    assert "read anew" in caplog.text
    assert server.config.ssl is context
    assert shown(context, certificates.context()) not in (None, first)


def test_an_authority_of_callers_counts_without_a_restart(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    callers = tmp_path / "callers.pem"
    old, new = trustme.CA(), trustme.CA()
    old.cert_pem.write_to_path(str(callers))
    settings = certificates.settings(tls_client_ca=callers)
    server = Server(build_app(opened(), settings), settings)
    server.config.load()
    context = server.config.ssl
    assert context is not None

    def admitted(authority: trustme.CA) -> bool:
        known = certificates.context(authority.issue_cert("opensearch"))
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        asking = known.wrap_bio(back, there, server_hostname="127.0.0.1")
        answering = context.wrap_bio(there, back, server_side=True)
        try:
            for side in (asking, answering, asking, answering):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLError:
            return False
        return True

    assert (admitted(old), admitted(new)) == (True, False)
    new.cert_pem.write_to_path(str(callers), append=True)
    server._reload_certificate()
    assert (admitted(old), admitted(new)) == (True, True)
    callers.write_text("broken")
    certificates.renew()
    first = shown(context, certificates.context(old.issue_cert("opensearch")))
    server._reload_certificate()  # all of the files or none
    assert shown(context, certificates.context(old.issue_cert("opensearch"))) == first
