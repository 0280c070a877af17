"""The local node: it starts with our plugin in it, forms clusters, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opensearchpy import OpenSearch

from plugin.engines import Engine
from plugin.node import (
    OPENSEARCH_VERSION,
    PLUGIN_NAME,
    LocalCluster,
    PortTakenError,
    StartError,
)
from plugin.node.assembly import assemble, prepared_cache_folder, runs_as_root
from plugin.node.processes import ProcessId
from plugin.node.tools import find_jdk
from plugin.ports import free_port

QUICK = ["-XX:TieredStopAtLevel=1"]


def test_the_engine_is_the_version_that_the_plugin_is_built_for(
    cluster: Engine, client: OpenSearch
) -> None:
    version = client.info()["version"]
    assert version["distribution"] == "opensearch"
    if cluster.kind != "url":
        assert version["number"] == OPENSEARCH_VERSION


def test_every_node_has_the_plugin(client: OpenSearch) -> None:
    nodes = {node["name"] for node in client.cat.nodes(format="json", h="name")}
    plugins = client.cat.plugins(format="json")
    assert {row["name"] for row in plugins if row["component"] == PLUGIN_NAME} == nodes


def test_a_client_sees_who_answers_behind_the_sidecar_port(sidecar) -> None:
    import httpx

    async def app(scope, receive, send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": b"me"})

    for _ in range(2):  # nothing, a server, nothing, a server
        with pytest.raises(httpx.ConnectError):
            httpx.get(sidecar.url)
        with sidecar.serving(app):
            assert httpx.get(sidecar.url).status_code == 418


@pytest.mark.usefixtures("needs_local_node")
def test_two_nodes_form_one_cluster_and_leave_nothing_behind() -> None:
    cluster = LocalCluster(
        nodes=2,
        heap="512m",
        java_options=QUICK,
        sidecar_urls=["http://127.0.0.1:1", "http://127.0.0.1:2"],
        secure_settings={"title_rerank.sidecar.key": "a-key"},  # unknown ones stop a node
    )
    with cluster, contextlib.closing(OpenSearch(cluster.urls, timeout=60)) as client:
        nodes = cluster.nodes
        assert len({node.url for node in nodes}) == 2
        assert {one["name"] for one in client.cat.nodes(format="json", h="name")} == {
            "node-1",
            "node-2",
        }
        body = {"settings": {"number_of_shards": 4, "number_of_replicas": 0}}
        client.indices.create(index="wide", body=body)
        for number in range(20):
            client.index(index="wide", body={"title": f"title {number}"}, id=str(number))
        client.indices.refresh(index="wide")
        shards = client.cat.shards(index="wide", format="json")
        assert {shard["node"] for shard in shards} == {"node-1", "node-2"}
        assert client.count(index="wide")["count"] == 20
        given = client.nodes.info(node_id="node-2", metric="settings")["nodes"].popitem()[1]
        assert given["settings"]["title_rerank"]["sidecar"]["urls"] == [
            "http://127.0.0.1:1",
            "http://127.0.0.1:2",
        ]
        with pytest.raises(PortTakenError, match="choose another one"):
            LocalCluster(http_port=nodes[0].http_port).start()
        if runs_as_root():
            assert Path(f"/proc/{nodes[0].pid}").stat().st_uid != 0
    assert not any(node.process.alive() for node in nodes)
    assert not any(node.folder.exists() for node in nodes)
    assert cluster.urls == []
    cluster.stop()  # once more does no harm


@pytest.mark.usefixtures("needs_local_node")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"settings": {"no.such.setting": 1}}, "no.such.setting"),
        ({"secure_settings": {"title_rerank.sidecar.key": "a key"}}, "visible ASCII only"),
    ],
    ids=["setting", "key"],
)
def test_a_node_that_cannot_start_says_why_and_leaves_nothing_behind(
    options: dict[str, Any], reason: str
) -> None:
    cluster = LocalCluster(heap="512m", java_options=QUICK, **options)
    with pytest.raises(StartError, match=re.escape(reason)) as caught:
        cluster.start()
    assert any(reason in line for line in caught.value.log_tail)
    assert cluster.nodes == ()


@pytest.mark.usefixtures("needs_local_node")
def test_a_node_does_not_outlive_a_process_that_was_killed() -> None:
    # It is killed while the node starts: at no moment may a node be left over.
    program = textwrap.dedent("""
        import threading, time
        from plugin.node import LocalCluster
        cluster = LocalCluster(heap="512m")
        threading.Thread(target=cluster.start, daemon=True).start()
        while not cluster.nodes:
            time.sleep(0.01)
        node = cluster.nodes[0]
        print(node.pid, node.process.marker, node.folder, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, marker, folder = parent.stdout.readline().split()
        node = ProcessId(int(pid), marker)
        assert node.alive()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    limit = time.monotonic() + 30
    while (node.alive() or Path(folder).exists()) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not node.alive()
    assert not Path(folder).exists()


@pytest.fixture
def own_home(needs_local_node: None) -> Iterator[Path]:
    """A cache folder of the test's own, so that a node the developer runs is left alone.

    What was assembled already is linked into it.
    """
    cache = prepared_cache_folder()
    assembled = assemble(find_jdk(open_to_all=runs_as_root()))
    (cache / "run").mkdir(exist_ok=True)
    home = Path(tempfile.mkdtemp(dir=cache / "run"))
    home.chmod(0o755)
    for folder in cache.glob("opensearch-*"):
        if assembled.name.startswith(folder.name):
            shutil.copytree(folder, home / folder.name, copy_function=os.link)
    yield home
    shutil.rmtree(home)


def test_the_command_line_starts_shows_and_stops_a_node(own_home: Path) -> None:
    def titlecast(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "plugin.cli.main", "node", *words],
            env={**os.environ, "TITLECAST_HOME": str(own_home), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    port = str(free_port())
    state_file = own_home / "node" / "state.json"
    try:
        assert titlecast("status").returncode == 1

        started = titlecast("start", "--http-port", port, "--heap", "512m")
        assert started.returncode == 0, started.stderr
        assert f"http://127.0.0.1:{port}" in started.stdout
        shown = titlecast("status")
        assert shown.returncode == 0, shown.stdout
        assert "Cluster health: green" in shown.stdout

        again = titlecast("start", "--http-port", port)
        assert again.returncode != 0
        assert "already runs" in again.stderr

        state = state_file.read_text()
        node = json.loads(state)["nodes"][0]
        process = ProcessId(node["pid"], str(own_home))
        assert process.alive()
        assert titlecast("stop").returncode == 0
        assert not process.alive()
        assert titlecast("status").returncode == 1

        # A machine that went down leaves the state file; the number may be somebody else's now.
        state_file.write_text(state.replace(str(node["pid"]), str(os.getpid())))
        assert titlecast("status").returncode == 1
        assert titlecast("stop").returncode == 0
    finally:
        titlecast("stop")
