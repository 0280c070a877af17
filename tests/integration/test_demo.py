"""The demo as a user runs it, on real engines; and that it leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opensearchpy import OpenSearch

from plugin.engines import Engine

REPOSITORY = Path(__file__).parents[2]
INDEX = "titlecast-demo"
MARK = "OF_THE_TEST_DEMO"  # an environment variable that all inherit from the demo
SECONDS = 1200


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    documents = [
        ("d1", "Heaps", "A heap is a tree whose parents are never larger than their children."),
        ("d2", "Sorting", "Merging sorted lists takes linear time."),
        ("d3", "Lists", "A list holds items in order; lists can be sorted."),
    ]
    queries = [("q1", "merge sorted lists"), ("q2", "What is a heap?"), ("q3", "nothing at all")]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": k, "title": t, "text": p}) + "\n" for k, t, p in documents)
    )
    (tmp_path / "tiny-queries.jsonl").write_text(
        "".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in queries)
    )
    (tmp_path / "tiny-qrels.tsv").write_text("q1\td2\t1\nq2\td1\t1\nq3\td3\t1\n")
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line's demo; what a failed test left running is ended."""
    started = []

    def popen(*options: str, **environ: str) -> subprocess.Popen[str]:
        given = {name: text for name, text in os.environ.items() if name != "OPENSEARCH_URL"}
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "plugin.cli.main", "demo", *options],
            cwd=REPOSITORY,
            env={**given, "COLUMNS": "100", **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=300)


@pytest.fixture
def given_cluster(cluster: Engine, client: OpenSearch) -> Iterator[dict[str, str]]:
    """The session's cluster as one that somebody else runs."""
    yield {"OPENSEARCH_URL": cluster.url}
    client.indices.delete(index=INDEX, ignore=[404])
    client.search_pipeline.delete(id=INDEX, ignore=[404])


def left_behind(client: OpenSearch) -> list[str]:
    left = [INDEX] if client.indices.exists(index=INDEX) else []
    return left + [name for name in client.search_pipeline.get(ignore=[404]) if name == INDEX]


def test_a_given_cluster_is_measured_and_left_as_it_was(
    beir: Path, start: Callable[..., Any], client: OpenSearch, given_cluster: dict[str, str]
) -> None:
    demo = start("--beir", str(beir), **given_cluster)
    shown, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 0, shown
    assert "the cluster at http" in shown
    assert "tiny: 3 queries, 3 judged" in shown
    assert "3 run, 0 failed" in shown
    assert "nDCG@10" in shown
    assert "Not on OpenSearch" not in shown
    assert left_behind(client) == []


def test_what_is_kept_is_not_touched_by_the_next(
    beir: Path, start: Callable[..., Any], client: OpenSearch, given_cluster: dict[str, str]
) -> None:
    kept = start("--beir", str(beir), "--keep", **given_cluster)
    shown, _ = kept.communicate(timeout=SECONDS)
    assert kept.returncode == 0, shown
    assert left_behind(client) == [INDEX, INDEX]
    refused = start("--beir", str(beir), **given_cluster)
    shown, _ = refused.communicate(timeout=SECONDS)
    assert refused.returncode == 1
    assert f"an index {INDEX} already" in " ".join(shown.split())
    assert "Traceback" not in shown
    assert left_behind(client) == [INDEX, INDEX]


def test_ctrl_c_leaves_a_given_cluster_as_it_was(
    start: Callable[..., Any], client: OpenSearch, given_cluster: dict[str, str]
) -> None:
    demo = start(**given_cluster)  # the documentation: it takes a while
    limit = time.monotonic() + SECONDS
    while not client.indices.exists(index=INDEX):
        assert demo.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.1)
    demo.send_signal(signal.SIGINT)
    shown, _ = demo.communicate(timeout=300)
    assert demo.returncode == 128 + signal.SIGINT, shown
    assert left_behind(client) == []


def marked(mark: str) -> list[str]:
    """The processes that were started, by however many steps, from the marked one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found.append(f"{folder.name} {command.decode(errors='replace')}")
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
@pytest.mark.usefixtures("needs_local_node")
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize(
    ("number", "sight"),
    [
        (signal.SIGINT, "serve"),  # right after the first process
        (signal.SIGTERM, "org.opensearch.bootstrap.OpenSearch"),  # while the node starts
        (signal.SIGINT, "Indexed"),  # with all of it running
    ],
    ids=["sidecar", "node", "searches"],
)
def test_nothing_is_left_of_an_interrupted_demo(
    start: Callable[..., Any], number: signal.Signals, sight: str
) -> None:
    mark = uuid.uuid4().hex
    demo = start("--engine", "local", **{MARK: mark})
    shown = ""
    if sight == "Indexed":
        while sight not in shown:
            line = demo.stdout.readline()
            assert line, shown
            shown += line
        assert len(marked(mark)) >= 3  # the demo, the sidecar and the node
    else:
        limit = time.monotonic() + SECONDS
        while not any(sight in process for process in marked(mark)):
            assert demo.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
    demo.send_signal(number)
    rest, _ = demo.communicate(timeout=300)
    assert demo.returncode == 128 + number, shown + rest
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    limit = time.monotonic() + 60
    while left := marked(mark):
        assert time.monotonic() < limit, left
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
@pytest.mark.usefixtures("needs_local_node")
@pytest.mark.timeout(2 * SECONDS)
def test_the_whole_demo_on_a_node_of_its_own(start: Callable[..., Any]) -> None:
    mark = uuid.uuid4().hex
    demo = start("--engine", "local", **{MARK: mark})
    shown, _ = demo.communicate(timeout=2 * SECONDS)
    assert demo.returncode == 0, shown
    assert "a local OpenSearch" in shown
    assert "heapq.merge" in shown
    assert "not reranked" not in shown
    assert "searches, medians:" in shown
    assert marked(mark) == []
