"""A node that is killed and started again while documents are loaded into it.

With a node of the test's own: the session's goes on answering the other tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from opensearchpy import OpenSearch
from opensearchpy.helpers import scan

from indexing import target
from indexing.load import Options, load
from indexing.records import Document
from plugin.node import LocalCluster

INDEX = "test-restart"


def documents(count: int) -> list[Document]:
    return [Document(str(n), f"title {n}", "word " * 20) for n in range(count)]


def test_a_node_that_restarts_during_a_load(needs_local_node: None) -> None:
    """With a node of the test's own, killed and started again on its data."""
    data = Path(tempfile.mkdtemp())
    data.chmod(0o755)  # the node may run as another user
    options = {"heap": "256m", "with_plugin": False, "java_options": ["-XX:TieredStopAtLevel=1"]}
    count = 3000
    first = LocalCluster(data=data, **options)  # type: ignore[arg-type]
    second: LocalCluster | None = None
    waited: list[str] = []
    try:
        first.start()
        second = LocalCluster(data=data, http_port=first.nodes[0].http_port, **options)  # type: ignore[arg-type]
        starting = threading.Thread(target=second.start)
        with contextlib.closing(
            OpenSearch([first.url], max_retries=0, pool_maxsize=2, timeout=60)
        ) as client:
            target.make_index(client, INDEX)

            def records() -> Iterator[Document]:
                for n, record in enumerate(documents(count)):
                    if n == count // 2:
                        os.kill(first.nodes[0].pid, signal.SIGKILL)
                        first.stop()
                        starting.start()  # while the load goes on
                    yield record

            summary = load(
                client,
                INDEX,
                records(),
                options=Options(workers=2, bulk_bytes=8_000, patience=300, request_seconds=60),
                on_progress=lambda progress: waited.append(progress.waiting),
            )
            starting.join()
            assert summary.verified, summary.differences
            assert summary.documents == count
            assert {hit["_id"]: hit["_source"] for hit in scan(client, index=INDEX)} == {
                one.id: one.fields() for one in documents(count)
            }
    finally:
        for node in (first, second):
            if node is not None:
                node.stop()
        shutil.rmtree(data, ignore_errors=True)
    assert any(waited)
