"""What can go wrong between a node and its sidecars, made to happen, and what a search gets then.

`python -m tests.integration.faults` makes the table of docs/faults.md.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trustme
from opensearchpy import OpenSearch

from plugin.clusters import connect
from plugin.engines import choose_engine
from plugin.node import LocalCluster
from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from tests.integration import corpus
from tests.integration.fakes import (
    PATIENT,
    Backwards,
    Recorder,
    SidecarPort,
    blurting,
    changing,
    endless,
    saying,
)

_REPOSITORY = Path(__file__).parents[2]
_URLS = "title_rerank.sidecar.urls"
SHORT = "300ms"


class World(NamedTuple):
    """The engine, and the port that it calls."""

    client: OpenSearch
    sidecar: SidecarPort


class Fault(NamedTuple):
    """Something that goes wrong inside of a `with` block.

    `causes` are what the statistics may call it; none where the search is reranked all the same.
    """

    name: str
    happening: Callable[[World], contextlib.AbstractContextManager[Any]]
    causes: tuple[str, ...]
    timeout: str = "60s"


class PairFault(NamedTuple):
    """Something that goes wrong in a cluster of two nodes: the causes, by node, as in `Fault`."""

    name: str
    happening: Callable[[Sequence[World]], contextlib.AbstractContextManager[Any]]
    causes: tuple[tuple[str, ...], tuple[str, ...]]
    timeout: str = "60s"


class Outcome(NamedTuple):
    """What one search got."""

    found: dict[str, Any]
    causes: list[str]  # what the statistics counted meanwhile
    milliseconds: float


def stats(client: OpenSearch) -> dict[str, Any]:
    """The statistics of the node that the client calls."""
    answer = client.transport.perform_request("GET", "/_plugins/_title_rerank/stats/_local")
    assert answer["_nodes"] == {"total": 1, "successful": 1, "failed": 0}, answer
    (node,) = answer["nodes"].values()
    found: dict[str, Any] = node
    return found


def put_settings(client: OpenSearch, **settings: Any) -> None:
    """Change settings `title_rerank.sidecar.…` of the running node; None: as in its file."""
    named = {f"title_rerank.sidecar.{k.replace('__', '.')}": v for k, v in settings.items()}
    client.cluster.put_settings(body={"persistent": named})


def search(client: OpenSearch, page: dict[str, Any], timeout: str) -> Outcome:
    """Search once, and see what it was counted as."""
    before = stats(client)
    started = time.perf_counter()
    found = client.search(
        index=corpus.INDEX, body={**page, "search_pipeline": corpus.pipeline(timeout=timeout)}
    )
    milliseconds = 1000 * (time.perf_counter() - started)
    after = stats(client)
    assert after["calls"] == before["calls"] + 1
    failures = after["failures"]
    causes = [name for name in failures if failures[name] != before["failures"][name]]
    return Outcome(found, causes, milliseconds)


def check(
    client: OpenSearch, page: dict[str, Any], outcome: Outcome, causes: Sequence[str]
) -> None:
    """See that it is the right page: the engine's, for one of the causes; reranked for none."""
    said = corpus.report(outcome.found)
    if causes:
        own = corpus.unpiped(client, **page)
        assert outcome.found["hits"] == own["hits"]
        assert said["applied"] is False
        assert said["reason"]
        assert len(outcome.causes) == 1
        assert outcome.causes[0] in causes
    else:
        window = corpus.unpiped(client, **{**page, "from": 0, "size": corpus.WINDOW})
        start = page.get("from", 0)
        expected = corpus.ids(window)[::-1][start : start + page["size"]]
        assert corpus.ids(outcome.found) == expected
        assert said["applied"]
        assert outcome.causes == []


@contextlib.contextmanager
def two_nodes() -> Iterator[list[World]]:
    """Start a cluster of two nodes that share an index, each with an own sidecar's address."""
    with contextlib.ExitStack() as stack:
        sidecars = [stack.enter_context(contextlib.closing(SidecarPort())) for _ in range(2)]
        names = ("node-1", "node-2")
        cluster = LocalCluster(
            nodes=2,
            heap="512m",
            java_options=["-XX:TieredStopAtLevel=1"],
            settings=PATIENT,
            node_settings={
                name: {_URLS: [sidecar.url]} for name, sidecar in zip(names, sidecars, strict=True)
            },
        )
        stack.callback(cluster.stop)
        cluster.start()
        clients = [
            stack.enter_context(contextlib.closing(OpenSearch([url], timeout=60)))
            for url in cluster.urls
        ]
        corpus.make_index(clients[0], default=None, shards=2)
        yield [World(*each) for each in zip(clients, sidecars, strict=True)]


# Ways to go wrong.


def _app(app: Any, **options: Any) -> Callable[[World], contextlib.AbstractContextManager[Any]]:
    return lambda world: world.sidecar.serving(app, **options)


def _sidecar() -> Any:
    return build_app(Recorder(Backwards()), load_settings())


def _blurting(
    data: bytes, reset: bool = False
) -> Callable[[World], contextlib.AbstractContextManager[Any]]:
    return lambda world: blurting(world.sidecar.host, world.sidecar.port, data, reset=reset)


@contextlib.contextmanager
def addresses(world: World, *urls: str) -> Iterator[None]:
    """Have the node call these addresses."""
    put_settings(world.client, urls=list(urls))
    try:
        yield
    finally:
        put_settings(world.client, urls=None)


@contextlib.contextmanager
def child(port: int, seconds: float = 0, *, exhausted: bool = False) -> Iterator[Any]:
    """Run the service in a process of its own."""
    command = [sys.executable, "-m", "tests.integration.child", str(port), str(seconds)]
    process = subprocess.Popen(
        command + ["exhausted"] * exhausted,
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def _stopped(world: World) -> Iterator[None]:
    with child(world.sidecar.port) as process:
        process.send_signal(signal.SIGSTOP)
        yield


@contextlib.contextmanager
def _killed(world: World) -> Iterator[None]:
    with child(world.sidecar.port, 60) as process:
        done = threading.Event()

        def kill() -> None:
            while not done.wait(0.01):
                (one,) = stats(world.client)["sidecars"]
                if one["in_flight"]:
                    process.kill()
                    return

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@contextlib.contextmanager
def _tls(world: World) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
        pem = Path(folder) / "server.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(pem)
        with (
            world.sidecar.serving(_sidecar(), ssl_certfile=pem),
            addresses(world, f"https://127.0.0.1:{world.sidecar.port}"),
        ):
            yield


@contextlib.contextmanager
def _not_tls(world: World) -> Iterator[None]:
    with (
        world.sidecar.serving(_sidecar()),
        addresses(world, f"https://127.0.0.1:{world.sidecar.port}"),
    ):
        yield


@contextlib.contextmanager
def _two(world: World, app: Any, other: Any = None) -> Iterator[None]:
    second = SidecarPort()
    with contextlib.ExitStack() as stack:
        stack.callback(second.close)
        stack.enter_context(world.sidecar.serving(app))
        if other is not None:
            stack.enter_context(second.serving(other))
        stack.enter_context(addresses(world, second.url, world.sidecar.url))
        yield


def _hit(number: int, **change: Any) -> Any:
    return changing(lambda answer: answer["hits"][number].update(change) or answer)


def _hits(change: Callable[[list[Any]], list[Any]]) -> Any:
    return changing(lambda answer: {**answer, "hits": change(answer["hits"])})


_HALF = b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"hits": ['

FAULTS = [
    Fault("nothing listens", lambda world: contextlib.nullcontext(), ("unreachable",)),
    Fault(
        "a name that does not resolve",
        lambda world: addresses(world, "http://no-such-host.invalid:8900"),
        ("unresolved",),
    ),
    Fault("accepts, and says nothing", _app(endless(None)), ("timeout",), SHORT),
    Fault("answers byte by byte", _app(endless(b'{"hits": [', b" ")), ("timeout",), SHORT),
    Fault("its process is stopped (SIGSTOP)", _stopped, ("timeout",), SHORT),
    Fault(
        "its process has no file descriptor left",
        lambda world: child(world.sidecar.port, exhausted=True),
        ("timeout",),
        SHORT,
    ),
    Fault("its process is killed in mid-request", _killed, ("connection", "unreachable")),
    Fault("resets the connection", _blurting(b"", reset=True), ("connection",)),
    Fault("less than its Content-Length", _blurting(_HALF), ("connection",)),
    Fault("speaks another protocol", _blurting(b"220 mail ESMTP\r\n"), ("connection",)),
    Fault("TLS, of an authority unknown to the node", _tls, ("tls",)),
    Fault("no TLS where the address says https", _not_tls, ("tls",)),
    Fault("HTML instead of JSON", _app(saying(200, b"<html>Welcome")), ("unusable",)),
    Fault("half of its JSON", _app(changing(lambda a: repr(a).encode()[:99])), ("unusable",)),
    Fault("a score of NaN", _app(_hit(7, score=float("nan"))), ("unusable",)),
    Fault("a score of infinity", _app(_hit(0, score=float("inf"))), ("unusable",)),
    Fault("fewer hits than were sent", _app(_hits(lambda hits: hits[:-1])), ("unusable",)),
    Fault("more hits than were sent", _app(_hits(lambda hits: [*hits, hits[0]])), ("unusable",)),
    Fault("10 MB", _app(saying(200, b" " * 10_000_000)), ("too_long",)),
    Fault("HTTP 302", _app(saying(302, location="http://127.0.0.1:1/")), ("misdirected",)),
    Fault("HTTP 401", _app(saying(401)), ("misdirected",)),
    Fault("HTTP 413", _app(saying(413)), ("refused",)),
    Fault("HTTP 429", _app(saying(429, retry_after="1")), ("busy",)),
    Fault("HTTP 500", _app(saying(500)), ("unavailable",)),
    Fault("HTTP 503", _app(saying(503, retry_after="1")), ("postponed",)),
    Fault("two sidecars, one is gone", lambda world: _two(world, _sidecar()), ()),
    Fault(
        "two sidecars, one answers HTTP 429",
        lambda world: _two(world, _sidecar(), saying(429, retry_after="1")),
        (),
    ),
    Fault(
        "two sidecars, one does not know the node's key",
        lambda world: _two(world, _sidecar(), saying(401)),
        (),
    ),
    Fault(
        "two sidecars, one talks nonsense",
        lambda world: _two(world, _sidecar(), saying(200, b"<html>Welcome")),
        (),
    ),
    Fault("none (for comparison)", lambda world: world.sidecar.serving(_sidecar()), ()),
]


@contextlib.contextmanager
def _both(worlds: Sequence[World]) -> Iterator[None]:
    """Both nodes know both addresses, and at the first there is a sidecar."""
    with (
        worlds[0].sidecar.serving(_sidecar()),
        addresses(worlds[0], *(world.sidecar.url for world in worlds)),
    ):
        yield


@contextlib.contextmanager
def _each(worlds: Sequence[World], second: Any) -> Iterator[None]:
    """At the first node's address there is a sidecar, at the second's an app, if any."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(worlds[0].sidecar.serving(_sidecar()))
        if second is not None:
            stack.enter_context(worlds[1].sidecar.serving(second))
        yield


PAIR_FAULTS = [
    PairFault("two nodes that share two sidecars, one is gone", _both, ((), ())),
    PairFault(
        "two nodes, each with a sidecar of its own, the second's is gone",
        lambda worlds: _each(worlds, None),
        ((), ("unreachable",)),
    ),
    PairFault(
        "two nodes, each with a sidecar of its own, the second's says nothing",
        lambda worlds: _each(worlds, endless(None)),
        ((), ("timeout",)),
        SHORT,
    ),
]

PAGE = corpus.body_of(size=10)
HEAD = """\
| the sidecar | time limit | the search gets | after | counted as |
| --- | --- | --- | --- | --- |"""


def row(name: str, timeout: str, outcome: Outcome) -> str:
    """One line of a table in Markdown."""
    got = f"the {'sidecar' if corpus.report(outcome.found)['applied'] else 'engine'}'s order"
    causes = ", ".join(outcome.causes) or "reranked"
    limit = timeout if timeout == SHORT else ""
    return f"| {name} | {limit} | {got} | {outcome.milliseconds:.0f} ms | `{causes}` |"


def rows(world: World) -> Iterator[str]:
    """Let everything go wrong in turn."""
    for fault in FAULTS:
        with fault.happening(world):
            yield row(fault.name, fault.timeout, search(world.client, PAGE, fault.timeout))


def pair_rows(worlds: Sequence[World]) -> Iterator[str]:
    """The same for two nodes; a search by way of each."""
    for fault in PAIR_FAULTS:
        with fault.happening(worlds):
            for number, world in enumerate(worlds, 1):
                outcome = search(world.client, PAGE, fault.timeout)
                yield row(f"{fault.name}: by node {number}", fault.timeout, outcome)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    sidecar = SidecarPort()
    with (
        contextlib.closing(sidecar),
        choose_engine([sidecar.url], settings=PATIENT) as engine,
        connect(engine.url, seconds=60) as client,
    ):
        corpus.make_index(client, default=None)
        world = World(client, sidecar)
        _warm_up(world)
        print(HEAD)
        for line in rows(world):
            print(line, flush=True)
    with two_nodes() as worlds:
        for world in worlds:
            _warm_up(world)
        for line in pair_rows(worlds):
            print(line, flush=True)


def _warm_up(world: World) -> None:
    """Search once: that loads classes."""
    with world.sidecar.serving(_sidecar()):
        search(world.client, PAGE, "60s")


if __name__ == "__main__":
    main()
