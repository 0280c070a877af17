"""One search engine for the whole session, and one port behind which a sidecar can be put.

Tests of this folder are marked `node`. Where no engine at all can be had they fail, with the
reason: a suite that skips its heart is not green.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from opensearchpy import OpenSearch

from plugin.clusters import connect
from plugin.engines import Engine, EngineUnavailable, choose_engine, why_no_local_node
from plugin.sidecar.app import Reranker, build_app
from plugin.sidecar.settings import load_settings
from reranker import Cascade
from tests.integration import corpus
from tests.integration.fakes import PATIENT, Backwards, Recorder, SidecarPort

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.node)


@pytest.fixture(scope="session")
def sidecar() -> Iterator[SidecarPort]:
    """The sidecar's address; `with sidecar.serving(app):` puts one there.

    For a cluster named by OPENSEARCH_URL, TITLECAST_TEST_SIDECAR_PORT says which port its node
    setting `title_rerank.sidecar.urls` names; it should have the settings `PATIENT` as well.
    """
    port = SidecarPort(int(os.environ.get("TITLECAST_TEST_SIDECAR_PORT", "0")))
    yield port
    port.close()


@pytest.fixture(scope="session")
def cluster(sidecar: SidecarPort) -> Iterator[Engine]:
    """The engine, with our plugin, that calls `sidecar`."""
    try:
        engine = choose_engine(
            [sidecar.url],
            heap="512m",
            # The quick compiler only: half the time to start, and no test is about speed.
            java_options=["-XX:TieredStopAtLevel=1"],
            settings=PATIENT,
        )
        if engine.kind == "container":
            sidecar.host = "0.0.0.0"  # a container does not come from 127.0.0.1
        with engine:
            yield engine
    except EngineUnavailable as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def client(cluster: Engine) -> Iterator[OpenSearch]:
    """A client of the engine."""
    with connect(cluster.url, seconds=60) as client:
        yield client


@pytest.fixture(scope="session")
def needs_local_node() -> None:
    """For tests of the local node itself, which say nothing about another engine."""
    reason = why_no_local_node()
    if reason is not None:
        if "OPENSEARCH_URL" not in os.environ:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cascade() -> Cascade:
    """The shipped models, which read as many passages as they are told to."""
    return Cascade.load(threads=1, early_stop=False)


@pytest.fixture(scope="module")
def index(client: OpenSearch) -> Iterator[str]:
    """The index of `corpus`, reranked by default."""
    client.search_pipeline.put(id=corpus.PIPELINE, body=corpus.pipeline())
    corpus.make_index(client)
    yield corpus.INDEX
    client.indices.delete(index=f"{corpus.INDEX}*", ignore=[404])
    client.search_pipeline.delete(id=corpus.PIPELINE, ignore=[404])


@contextlib.contextmanager
def _served(models: Reranker, sidecar: SidecarPort) -> Iterator[Recorder]:
    recorder = Recorder(models)
    with sidecar.serving(build_app(recorder, load_settings())):
        recorder.asked.clear()  # the warm-up is nobody's search
        yield recorder


@pytest.fixture
def real(cascade: Cascade, sidecar: SidecarPort) -> Iterator[Recorder]:
    """The sidecar with the shipped models."""
    with _served(cascade, sidecar) as recorder:
        yield recorder


@pytest.fixture
def backwards(sidecar: SidecarPort) -> Iterator[Recorder]:
    """The sidecar with models that turn the engine's order around."""
    with _served(Backwards(), sidecar) as recorder:
        yield recorder
