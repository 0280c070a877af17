"""Chooses the search engine that the tests and the demo run on.

The order: the cluster that `OPENSEARCH_URL` names; a container, where Docker answers; a local
node, where a JDK and Maven are there. An engine is a context manager: inside its block it
answers at `url`, and what it started is gone afterwards.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from opensearchpy.exceptions import OpenSearchException

from plugin.clusters import ClusterError, connect, shown_address
from plugin.node import OPENSEARCH_VERSION, LocalCluster, ToolMissingError
from plugin.node.assembly import runs_as_root
from plugin.node.tools import find_jdk, find_maven

_log = logging.getLogger(__name__)

_REPOSITORY = Path(__file__).parent.parent
_DOCKERFILE = "docker/opensearch.Dockerfile"
_DOCKER_SECONDS = 5
_HOST_FROM_CONTAINER = "host.docker.internal"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EngineUnavailable(RuntimeError):  # noqa: N818 - a state of the world, not of the program
    """No engine can be had; the message says what is missing and the remedy."""


class Engine(abc.ABC):
    """A search engine to be used in a `with` block."""

    kind: Literal["url", "container", "local"]

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Where it answers; inside the block only."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Say in a few words what it is, without secrets."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start it, or see that it answers; raises `EngineUnavailable` or `NodeError`."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End what `start` started; may be called again."""

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class GivenCluster(Engine):
    """A cluster that somebody else runs; its settings, the sidecars' included, are theirs."""

    kind = "url"

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        """The address that was given."""
        return self._url

    def describe(self) -> str:
        """Say where it is, without a name and password in the address."""
        return f"the cluster at {shown_address(self._url)}"

    def start(self) -> None:
        """See that it answers."""
        try:
            connect(self._url, seconds=10).close()
        except ClusterError as error:
            raise EngineUnavailable(str(error)) from error

    def stop(self) -> None:
        """Leave it as it is."""


class LocalNode(Engine):
    """A cluster of `plugin.node`, assembled from published artifacts."""

    kind = "local"

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    @property
    def url(self) -> str:
        """The first node's address."""
        return self.cluster.url

    def describe(self) -> str:
        """Say what it is."""
        return f"a local OpenSearch {OPENSEARCH_VERSION} node"

    def start(self) -> None:
        """Assemble and start the nodes."""
        self.cluster.start()

    def stop(self) -> None:
        """End the nodes and remove their data."""
        self.cluster.stop()


class Container(Engine):
    """The official image with our plugin, built from `docker/opensearch.Dockerfile`.

    One node: several of them are the local cluster's matter.
    """

    kind = "container"

    def __init__(
        self,
        sidecar_urls: Sequence[str] = (),
        *,
        heap: str = "512m",
        java_options: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        start_seconds: float = 300.0,
    ) -> None:
        self._environment = {
            "discovery.type": "single-node",
            "DISABLE_SECURITY_PLUGIN": "true",
            "DISABLE_INSTALL_DEMO_CONFIG": "true",
            "OPENSEARCH_JAVA_OPTS": " ".join([f"-Xms{heap}", f"-Xmx{heap}", *java_options]),
            **{name: _setting_text(value) for name, value in (settings or {}).items()},
        }
        if sidecar_urls:
            self._environment["title_rerank.sidecar.urls"] = ",".join(
                url_from_container(url) for url in sidecar_urls
            )
        self._start_seconds = start_seconds
        self._container: Any = None
        self._url = ""

    @property
    def url(self) -> str:
        """The address on this host that the container's port is published at."""
        return self._url

    def describe(self) -> str:
        """Say what it is."""
        return f"an OpenSearch {OPENSEARCH_VERSION} container"

    def start(self) -> None:
        """Build the image if need be, start the container and wait until it answers."""
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.image import DockerImage

        if self._container is not None:
            return
        image = DockerImage(
            path=_REPOSITORY,
            dockerfile_path=_DOCKERFILE,
            tag=f"titlecast-opensearch:{OPENSEARCH_VERSION}",
            clean_up=False,  # the layers are the cache of the next start
        )
        image.build()
        container = (
            DockerContainer(str(image))
            .with_envs(**self._environment)
            .with_exposed_ports(9200)
            .with_kwargs(extra_hosts={_HOST_FROM_CONTAINER: "host-gateway"})
        )
        try:
            container.start()
            self._container = container
            port = container.get_exposed_port(9200)
            self._url = f"http://{container.get_container_host_ip()}:{port}"
            self._wait()
        except BaseException:
            container.stop()
            self._container = None
            raise

    def stop(self) -> None:
        """Remove the container."""
        if self._container is not None:
            self._container.stop()
            self._container = None

    def _wait(self) -> None:
        limit = time.monotonic() + self._start_seconds
        while time.monotonic() < limit:
            with (
                contextlib.suppress(ClusterError, OpenSearchException),
                connect(self._url, seconds=5) as client,
            ):
                client.cluster.health(wait_for_status="yellow", timeout="2s")
                return
            time.sleep(0.5)
        output, errors = self._container.get_logs()
        for line in (output + errors).decode(errors="replace").splitlines()[-30:]:
            _log.error("%s", line)
        raise EngineUnavailable(
            f"the container did not answer within {self._start_seconds:.0f} seconds: see the end "
            "of its log, and that Docker has about 2 GB of memory to give."
        )


def choose_engine(
    sidecar_urls: Sequence[str] = (),
    *,
    heap: str = "512m",
    http_port: int = 0,
    java_options: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Engine:
    """Return the first engine that can be had, not started yet.

    `sidecar_urls` and `settings` become node settings of an engine that is started; a cluster
    named by `OPENSEARCH_URL` has its own. `http_port` is where a local node listens, 0 for any
    free port. Raises `EngineUnavailable`, which says what each kind lacks.
    """
    if url := environ.get("OPENSEARCH_URL"):
        return GivenCluster(url)
    no_container = why_no_container(environ)
    if no_container is None:
        return Container(sidecar_urls, heap=heap, java_options=java_options, settings=settings)
    _log.info("no container: %s", no_container)
    no_local_node = why_no_local_node(environ)
    if no_local_node is None:
        return LocalNode(
            LocalCluster(
                sidecar_urls=sidecar_urls,
                heap=heap,
                http_port=http_port,
                java_options=java_options,
                settings=settings,
            )
        )
    raise EngineUnavailable(
        "no search engine can be had: OPENSEARCH_URL is not set; no container can be started, as "
        f"{no_container}; and no local node, as {no_local_node}"
    )


def why_no_container(environ: Mapping[str, str] = os.environ) -> str | None:
    """Say what a container lacks; None where one can be started."""
    if not (_REPOSITORY / _DOCKERFILE).is_file():
        return "the image's Dockerfile is part of a checkout only"
    try:
        import docker
        import testcontainers  # noqa: F401
    except ImportError:
        return "testcontainers is not installed (pip install 'titlecast[demo]')"
    try:
        _knock(environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
        with contextlib.closing(docker.from_env(timeout=_DOCKER_SECONDS)) as client:
            client.ping()
    except Exception as error:  # docker's own, requests', urllib3's: whatever it is, no answer
        _log.debug("Docker: %s", error)
        return "no Docker engine answers"
    return None


def _knock(docker_host: str) -> None:
    """Connect to Docker's socket file; its client leaves one open where nobody is there."""
    parts = urlsplit(docker_host)
    if parts.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(_DOCKER_SECONDS)
            knocking.connect(parts.path)


def why_no_local_node(environ: Mapping[str, str] = os.environ) -> str | None:
    """Say what a local node lacks; None where one can be assembled and started."""
    if sys.platform == "win32":
        return "it runs on Linux and macOS only."
    try:
        find_jdk(environ, open_to_all=runs_as_root())
        find_maven(environ)
    except ToolMissingError as error:
        return str(error)
    return None


def url_from_container(url: str) -> str:
    """Return a URL by which a container reaches what a URL names on this host.

    What listens there must do so on all of the host's addresses, not on 127.0.0.1 only.
    """
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK:
        return url
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit(parts._replace(netloc=f"{_HOST_FROM_CONTAINER}{port}"))


def _setting_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
