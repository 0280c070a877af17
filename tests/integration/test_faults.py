"""Everything that goes wrong between a node and its sidecars, and what searches get then."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from plugin.engines import Engine
from plugin.node.tools import find_jdk
from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from tests.integration import corpus
from tests.integration.corpus import INDEX, pipeline, report, unpiped
from tests.integration.fakes import (
    Backwards,
    Gate,
    Recorder,
    SidecarPort,
    blurting,
    endless,
    saying,
)
from tests.integration.faults import (
    FAULTS,
    SHORT,
    Fault,
    World,
    addresses,
    check,
    put_settings,
    search,
    stats,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("index")

PAGE: dict[str, Any] = corpus.body_of(from_=3, size=4, _source=["group"])
NEVER = endless(None)


@pytest.fixture
def world(client: OpenSearch, sidecar: SidecarPort) -> World:
    return World(client, sidecar)


@pytest.fixture
def wary(world: World) -> Iterator[None]:
    """A node that leaves a sidecar alone after three failures, and has seen none by now."""
    with world.sidecar.serving(backwards()):
        assert report(search(world.client, PAGE, "60s").found)["applied"]
    put_settings(world.client, breaker__failures=3, breaker__cool_down="50ms")
    yield
    put_settings(world.client, breaker__failures=None, breaker__cool_down=None)


def backwards() -> Any:
    return build_app(Recorder(Backwards()), load_settings())


def breaker(client: OpenSearch) -> str:
    (one,) = stats(client)["sidecars"]
    return str(one["breaker"])


def check_in_time(world: World, causes: Sequence[str]) -> None:
    """See that a short limit is kept, with the right page, whatever goes wrong."""
    for _ in range(21):  # a busy machine keeps it now and then; a wrong limit, never
        outcome = search(world.client, PAGE, SHORT)
        assert {*outcome.causes} <= {*causes, "timeout"}
        check(world.client, PAGE, outcome, outcome.causes)
        if outcome.milliseconds <= 300 + 50:
            return
    pytest.fail("of 21 searches none was answered within 50 ms of its limit")


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_every_search_has_an_answer_and_its_cause_is_counted(world: World, fault: Fault) -> None:
    with fault.happening(world):
        outcome = search(world.client, PAGE, fault.timeout)
        check_in_time(world, fault.causes)
    check(world.client, PAGE, outcome, fault.causes)
    # The next search finds nothing but a sidecar that is well.
    with world.sidecar.serving(backwards()):
        assert report(search(world.client, PAGE, "60s").found)["applied"]


def calls_in_memory(client: OpenSearch) -> dict[str, int]:
    """What a node on this machine still holds of calls, once it has collected what it can."""
    (node,) = client.nodes.info(metric="process")["nodes"].values()
    command = [find_jdk().home / "bin" / "jcmd", str(node["process"]["id"]), "GC.class_histogram"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.findall(r"(\d+) +\d+ +(?:org\.titlecast|jdk\.internal\.net)\.(\S+)", done.stdout)
    counts = {name.rpartition(".")[2]: int(count) for count, name in found}
    assert "SidecarClient" in counts, done.stdout[:1000]
    held = ("SidecarClient$Exchange", "SidecarClient$Attempt", "BoundedBody", "MultiExchange")
    return {name: counts.get(name, 0) for name in held}


def test_failures_leave_nothing_behind(world: World, cluster: Engine) -> None:
    def in_use() -> tuple[int, int]:
        (node,) = world.client.nodes.stats(metric="process,jvm")["nodes"].values()
        return node["process"]["open_file_descriptors"], node["jvm"]["threads"]["count"]

    def fail(times: int) -> None:
        host, port = world.sidecar.host, world.sidecar.port
        for _ in range(times):
            search(world.client, PAGE, "60s")  # refused
            for app, limit, count in (
                (saying(503), "60s", 1),
                (NEVER, "100ms", 1),
                (NEVER, "1ms", 9),
            ):
                with world.sidecar.serving(app):
                    for _ in range(count):  # over before it has begun, now and then
                        search(world.client, PAGE, limit)
            with blurting(host, port, b"", reset=True):
                search(world.client, PAGE, "60s")

    fail(1)
    files, threads = in_use()
    fail(8)
    for fault in FAULTS:
        with fault.happening(world):
            for _ in range(12):  # more than the slack
                search(world.client, PAGE, fault.timeout)
    assert stats(world.client)["in_flight"] == 0
    assert [one["in_flight"] for one in stats(world.client)["sidecars"]] == [0]
    # Java's client closes what it was told to close within seconds.
    wait_until(lambda: in_use()[0] <= files + 10 and in_use()[1] <= threads + 10)
    if cluster.kind == "local":
        # Of hundreds of calls; the last may lie in the hands of a connection or a thread.
        wait_until(lambda: max(calls_in_memory(world.client).values()) <= 3, 120)


@pytest.mark.usefixtures("wary")
def test_a_sidecar_that_fails_is_left_alone_until_it_is_well(world: World) -> None:
    asked = 0

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        if scope["type"] == "http":
            asked += scope["path"] == "/rerank"
            await saying(500)(scope, receive, send)

    with world.sidecar.serving(failing):
        for _ in range(3):
            assert search(world.client, PAGE, "60s").causes == ["unavailable"]
        assert breaker(world.client) == "open"
        outcome = search(world.client, PAGE, "60s")
        assert outcome.causes == ["breaker_open"]
        assert "left alone until it answers again" in report(outcome.found)["reason"]
        assert asked == 3
    with world.sidecar.serving(backwards()):
        wait_until(lambda: breaker(world.client) == "half_open")
        assert report(search(world.client, PAGE, "60s").found)["applied"]
        assert breaker(world.client) == "closed"


@pytest.mark.usefixtures("wary")
@pytest.mark.parametrize("name", ["its process is stopped (SIGSTOP)", "answers byte by byte"])
def test_a_sidecar_that_hangs_is_left_alone(world: World, name: str) -> None:
    (hang,) = (fault for fault in FAULTS if fault.name == name)
    put_settings(world.client, timeout="1s")
    try:
        with hang.happening(world):
            for _ in range(3):
                assert search(world.client, PAGE, SHORT).causes == ["timeout"]
            wait_until(lambda: breaker(world.client) == "open")  # neither is the probe answered
            assert search(world.client, PAGE, SHORT).causes == ["breaker_open"]
        with world.sidecar.serving(backwards()):
            wait_until(lambda: breaker(world.client) == "half_open")
            assert report(search(world.client, PAGE, "60s").found)["applied"]
    finally:
        put_settings(world.client, timeout=None)


@pytest.mark.usefixtures("wary")
def test_of_two_sidecars_one_may_go_and_come_back(world: World) -> None:
    second = SidecarPort()
    with (
        contextlib.closing(second),
        addresses(world, world.sidecar.url, second.url),
        world.sidecar.serving(backwards()),
    ):

        def breakers() -> list[str]:
            return [one["breaker"] for one in stats(world.client)["sidecars"]]

        wait_until(
            lambda: (
                report(search(world.client, PAGE, "60s").found)["applied"]
                and breakers() == ["closed", "open"]
            )
        )
        with second.serving(backwards()):
            wait_until(
                lambda: (
                    report(search(world.client, PAGE, "60s").found)["applied"]
                    and breakers() == ["closed", "closed"]
                )
            )


def test_a_cancelled_search_hangs_up(world: World) -> None:
    before = stats(world.client)["failures"]["cancelled"]
    gate = Gate()
    with world.sidecar.serving(gate), ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(world.client.search, index=INDEX, body=PAGE)
            wait_until(lambda: gate.held == 1)
            tasks = world.client.tasks.list(actions="indices:data/read/search", group_by="none")[
                "tasks"
            ]
            for task in tasks:
                world.client.tasks.cancel(task_id=f"{task['node']}:{task['id']}")
            with pytest.raises(TransportError, match="cancelled"):
                waiting.result()
            wait_until(lambda: gate.gone == 1)
        finally:
            gate.open.set()
    assert stats(world.client)["failures"]["cancelled"] == before + 1
    assert stats(world.client)["in_flight"] == 0


def test_a_client_that_goes_takes_its_call_along(world: World, cluster: Any) -> None:
    parts = urlsplit(cluster.url)
    gate = Gate()
    with world.sidecar.serving(gate):
        try:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
            with contextlib.closing(connection):
                connection.request(
                    "POST",
                    f"/{INDEX}/_search",
                    json.dumps(PAGE),
                    {"content-type": "application/json"},
                )
                wait_until(lambda: gate.held == 1)
            wait_until(lambda: gate.gone == 1)
        finally:
            gate.open.set()


def test_a_searchs_id_and_trace_are_handed_on(world: World) -> None:
    seen: dict[bytes, bytes] = {}

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.update(scope["headers"])
            await saying(503)(scope, receive, send)

    given = {
        "x-opaque-id": "shop-42",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=value",
    }
    with world.sidecar.serving(noting):
        world.client.search(index=INDEX, body=PAGE, headers=given)
    assert given.items() <= {k.decode(): v.decode() for k, v in seen.items()}.items()


def test_settings_are_changed_while_the_node_runs(world: World) -> None:
    second = SidecarPort()
    with contextlib.closing(second), second.serving(backwards()):
        with addresses(world, second.url):
            assert report(search(world.client, PAGE, "60s").found)["applied"]
        assert search(world.client, PAGE, "60s").causes == ["unreachable"]
    with world.sidecar.serving(NEVER):
        put_settings(world.client, timeout="100ms", connect_timeout="5s")
        try:
            found = search(world.client, PAGE, "60s").found
            assert "within 100 ms" in report(found)["reason"]
        finally:
            put_settings(world.client, timeout=None, connect_timeout=None)
    refused: list[dict[str, Any]] = [{"urls": ["ftp://a"]}, {"urls": []}, {"max_in_flight": 0}]
    for wrong in refused:
        with pytest.raises(TransportError, match="title_rerank"):
            put_settings(world.client, **wrong)
    with pytest.raises(TransportError, match="not dynamically updateable"):
        put_settings(world.client, tls__certificate="node.pem")


def test_no_pipeline_names_an_address(world: World) -> None:
    for option in ("url", "urls", "sidecar", "title_rerank.sidecar.urls"):
        with pytest.raises(TransportError) as caught:
            world.client.search(
                index=INDEX,
                body={**PAGE, "search_pipeline": pipeline(**{option: "http://127.0.0.1:1"})},
            )
        assert caught.value.status_code == 400


def test_ignore_failure_does_not_get_in_the_way(world: World) -> None:
    body = {**PAGE, "search_pipeline": pipeline(ignore_failure=True)}
    found = world.client.search(index=INDEX, body=body)
    assert found["hits"] == unpiped(world.client, **PAGE)["hits"]
    assert report(found)["applied"] is False
    with world.sidecar.serving(backwards()):
        assert report(world.client.search(index=INDEX, body=body))["applied"]
