"""Loads through the real engine that are killed, refused, stalled, dropped, and looked at."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from opensearchpy import OpenSearch
from opensearchpy.helpers import scan
from typer.testing import CliRunner, Result

import plugin.cli.index
from indexing import target
from indexing.bulk import IndexingError
from indexing.checkpoint import Checkpoint
from indexing.deadletter import entries
from indexing.job import Destination, run
from indexing.load import Options, load
from indexing.records import Document, Failure, Record
from indexing.sources import open_source
from tests.integration import loader
from tests.integration.proxy import Dropped, Proxy
from tests.waiting import wait_until

NAME = "test-loading"
ROOT = Path(__file__).parents[2]
COUNT = 1500


@pytest.fixture(autouse=True)
def clean(client: OpenSearch) -> Iterator[None]:
    yield
    client.indices.delete(index=f"{NAME}*", ignore=[404])


@pytest.fixture
def url(client: OpenSearch) -> str:
    host: str = client.transport.connection_pool.connections[0].host
    return host


def held(client: OpenSearch, name: str) -> dict[str, dict[str, Any]]:
    client.indices.refresh(index=name)
    return {hit["_id"]: hit["_source"] for hit in scan(client, index=name)}


def told(result: Result) -> str:
    """What a command printed, and the trace of what ended it, with its causes."""
    trace = "".join(traceback.format_exception(*result.exc_info)) if result.exc_info else ""
    return f"{result.output}\n{trace}"


def start(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.loader", json.dumps(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def killed_at(config: dict[str, Any], target_url: str, when: str, what: str, nth: int) -> int:
    """Kill a load `when` (before or after) the engine gets the nth request that holds `what`.

    Gives the exit status: that of the signal, or 0 where the load had no so many.
    """
    seen = 0
    lock = threading.Lock()
    ready = threading.Event()

    def strike(method: str, path: str) -> int | None:
        nonlocal seen
        with lock:
            if what not in f"{method} {path}":
                return None
            seen += 1
            if seen != nth:
                return None
            ready.wait(60)
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        raise Dropped

    with Proxy(target_url) as proxy:
        if when == "before":
            proxy.before = strike
        else:
            proxy.after = strike  # type: ignore[assignment]
        process = start({**config, "url": proxy.url})
        ready.set()
        _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode


def test_a_load_that_is_killed_again_and_again_loses_and_doubles_nothing(
    client: OpenSearch, url: str, tmp_path: Path
) -> None:
    """Each run is killed at another moment; meanwhile, searches see the old index, whole."""
    client.indices.create(index=f"{NAME}-0", body={"aliases": {NAME: {}}})
    old = {str(n): {"title": f"old {n}", "passage": ""} for n in range(3)}
    for key, source in old.items():
        client.index(index=f"{NAME}-0", id=key, body=source)
    config = {"folder": str(tmp_path / "load"), "alias": NAME, "documents": COUNT}
    config["delete_old"] = True
    draw = random.Random(11)
    moments = [
        ("after", f"PUT /{NAME}-", 1),  # the index is made, and the load does not know it
        ("before", "_bulk", draw.randint(2, 4)),
        ("after", "_bulk", draw.randint(2, 8)),
        ("after", "_refresh", 1),
        ("after", "POST /_aliases", 1),  # switched, and the load does not know it
        ("before", f"DELETE /{NAME}-0", 1),
    ]
    for when, what, nth in moments:
        if when != "before" or "DELETE" not in what:
            assert held(client, NAME) == old
        assert killed_at(config, url, when, what, nth) == -signal.SIGKILL
    result = loader.load({**config, "url": url})
    assert result.summary.verified
    assert result.resumed_at is not None
    assert result.switched
    wanted = loader.expected(COUNT)
    assert held(client, NAME) == wanted
    assert result.summary.distinct == result.summary.documents == len(wanted)
    dead = [entry["position"] for entry in entries(Path(result.summary.dead_letters))]
    assert sorted(dead) == [n for n in range(COUNT) if n % 41 in (7, 9)]
    assert result.summary.read == COUNT
    # Nothing of all those runs is left.
    assert set(client.indices.get(index=f"{NAME}-*")) == {result.summary.index}
    assert result.old == (f"{NAME}-0",)
    assert not target.is_loading(client, NAME)
    with Checkpoint(tmp_path / "load") as checkpoint:
        assert checkpoint.read() is None


def settings_of(client: OpenSearch) -> dict[str, Any]:
    settings: dict[str, Any] = client.indices.get_settings(index=NAME, flat_settings=True)[NAME]
    return {
        name: settings["settings"].get(f"index.{name}")
        for name in ("refresh_interval", "number_of_replicas")
    }


def test_a_killed_loads_settings_are_put_right(
    client: OpenSearch, url: str, tmp_path: Path
) -> None:
    own = {"refresh_interval": "3s", "number_of_replicas": "1"}
    client.indices.create(
        index=NAME,
        body={
            **loader.BODY,
            "settings": {"index.refresh_interval": "3s", "index.number_of_replicas": 1},
        },
    )
    config = {"folder": str(tmp_path), "index": NAME, "documents": 300, "tune": True}
    killed_at(config, url, "after", "_bulk", 2)
    assert settings_of(client) == {"refresh_interval": "-1", "number_of_replicas": "0"}
    # By hand …
    app = typer.Typer()
    plugin.cli.index.register(app)
    result = CliRunner().invoke(app, ["--restore", "--index", NAME, "--url", url])
    assert result.exit_code == 0, told(result)
    assert settings_of(client) == own
    # … or by the load that goes on; it ends with what was there before both.
    killed_at(config, url, "after", "_bulk", 2)
    assert settings_of(client)["refresh_interval"] == "-1"
    assert loader.load({**config, "url": url}).summary.verified
    assert settings_of(client) == own
    assert held(client, NAME) == loader.expected(300)


def test_a_load_that_is_told_to_end_leaves_settings_restored(
    client: OpenSearch, url: str, tmp_path: Path
) -> None:
    """SIGTERM through the real command line: status 2, what to do, and a load that goes on."""
    path = tmp_path / "corpus.tsv"
    path.write_text("".join(f"{n}\tpassage {n} {'word ' * 50}\n" for n in range(3000)))
    arguments = [str(path), "--index", NAME, "--state", str(tmp_path), "--bulk-mib", "0.05"]
    process: subprocess.Popen[bytes]
    ready = threading.Event()
    seen = Counter[str]()

    def strike(method: str, request: str) -> None:
        if "_bulk" in request:
            seen["bulk"] += 1
            if seen["bulk"] == 3:
                ready.wait(60)
                process.send_signal(signal.SIGTERM)

    with Proxy(url) as proxy:
        proxy.after = strike
        code = (
            "import typer, plugin.cli.index as i; a = typer.Typer(); i.register(a)\n"
            "try: a()\nexcept i.CommandError as e: print(e); raise SystemExit(e.status)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--url", proxy.url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        ready.set()
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors.decode()
    assert b"run the same command again" in output
    assert settings_of(client) == {"refresh_interval": None, "number_of_replicas": "0"}
    app = typer.Typer()
    plugin.cli.index.register(app)
    result = CliRunner().invoke(app, [*arguments, "--url", url, "--json"])
    assert result.exit_code == 0, told(result)
    summary = json.loads(result.stdout)
    assert summary["verified"]
    assert summary["resumed_at"] is not None
    assert (summary["read"], summary["documents"], summary["failed"]) == (3000, 3000, 0)


def numbered(count: int) -> list[Record]:
    return [Document(str(n), f"title {n}", "word " * 20) for n in range(count)]


def test_an_engine_that_rejects_stalls_and_drops_gets_everything_in_the_end(
    client: OpenSearch, url: str
) -> None:
    """With every third request going wrong, before or after the engine has carried it out."""
    target.make_index(client, NAME)
    draw = random.Random(5)
    wrongs = Counter[str]()
    lock = threading.Lock()

    def before(method: str, path: str) -> int | None:
        if "_bulk" not in path:
            return None
        with lock:
            wrong = draw.choice(["429", "503", "drop", "stall", *["fine"] * 8])
            wrongs[wrong] += 1
            if wrong == "stall" and wrongs[wrong] > 2:  # each costs its time
                wrong = "fine"
        if wrong == "drop":
            raise Dropped
        if wrong == "stall":
            time.sleep(2.5)
        return int(wrong) if wrong.isdigit() else None

    def after(method: str, path: str) -> None:
        with lock:
            lost = "_bulk" in path and draw.random() < 0.1
            wrongs["lost answer"] += lost
        if lost:
            raise Dropped

    waited: list[str] = []
    with (
        Proxy(url) as proxy,
        contextlib.closing(OpenSearch([proxy.url], max_retries=0, pool_maxsize=3)) as through,
    ):
        proxy.before, proxy.after = before, after
        summary = load(
            through,
            NAME,
            numbered(4000),
            options=Options(workers=3, bulk_bytes=16_000, request_seconds=1.5, patience=120),
            on_progress=lambda progress: waited.append(progress.waiting),
        )
    assert summary.verified, summary.differences
    assert (summary.read, summary.indexed, summary.failed) == (4000, 4000, 0)
    assert summary.documents == 4000
    assert all(wrongs[kind] for kind in ("429", "503", "drop", "stall", "lost answer")), wrongs
    for said in ("status 429", "status 503", "no connection", "no answer within"):
        assert any(text.startswith(said) for text in waited), said
    assert held(client, NAME) == {one.id: one.fields() for one in numbered(4000)}  # type: ignore[union-attr]


def test_an_engine_that_never_answers_again_ends_the_load_which_then_goes_on(
    client: OpenSearch, url: str, tmp_path: Path
) -> None:
    seen = Counter[str]()

    def before(method: str, path: str) -> int | None:
        seen["bulk"] += "_bulk" in path
        return 503 if seen["bulk"] > 4 and "_bulk" in path else None

    job: dict[str, Any] = {
        "identity": {},
        "destination": Destination(NAME),
        "folder": tmp_path,
    }
    options = Options(workers=2, bulk_bytes=8_000, patience=1.0, checkpoint_seconds=0.0)
    with (
        Proxy(url) as proxy,
        contextlib.closing(OpenSearch([proxy.url], max_retries=0, pool_maxsize=3)) as through,
    ):
        proxy.before = before
        with pytest.raises(IndexingError, match=r"status 503.* run the same load again"):
            run(through, numbered(2000), options=options, **job)
    result = run(client, numbered(2000), options=options, **job)
    assert result.resumed_at
    assert result.summary.verified
    assert result.summary.documents == 2000


def test_searches_of_an_alias_see_the_old_or_the_new_index_whole(
    client: OpenSearch, url: str, tmp_path: Path
) -> None:
    seen: set[tuple[int, str]] = set()
    wrong: list[Exception] = []
    over = threading.Event()

    def search() -> None:
        body = {"size": 5, "track_total_hits": True, "query": {"match_all": {}}}
        with contextlib.closing(OpenSearch([url])) as own:
            while not over.is_set():
                try:
                    hits = own.search(index=NAME, body=body)["hits"]
                except Exception as error:
                    wrong.append(error)
                    return
                titles = {hit["_source"]["title"].split()[0] for hit in hits["hits"]}
                seen.add((hits["total"]["value"], "+".join(sorted(titles))))
                time.sleep(0.01)

    sizes = {"a": 200, "b": 300, "c": 250}
    made: list[str] = []
    threads = [threading.Thread(target=search) for _ in range(2)]
    for number, (generation, size) in enumerate(sizes.items()):
        records = [Document(str(n), f"{generation} {n}", "text") for n in range(size)]
        result = run(
            client,
            records,
            {"generation": generation},
            Destination(alias=NAME, body=loader.BODY, delete_old=generation == "c"),
            folder=tmp_path,
            options=Options(bulk_bytes=4096),
        )
        assert result.switched
        assert result.old == tuple(made[-1:])
        made.append(result.summary.index)
        if number == 0:
            for thread in threads:
                thread.start()
        now = (size, generation)
        wait_until(lambda now=now: now in seen or wrong)
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    # Never a part of an index, never two at once; each was seen.
    assert seen == {(size, generation) for generation, size in sizes.items()}
    # Old ones are kept, or deleted where that was asked for.
    assert set(client.indices.get(index=f"{NAME}-*")) == {made[0], made[2]}


def test_an_alias_keeps_its_filter_and_is_written_through(
    client: OpenSearch, tmp_path: Path
) -> None:
    """Twice, so that what was carried over is itself carried over."""
    properties = {"filter": {"term": {"page_id": "seen"}}, "is_write_index": True}
    client.indices.create(index=f"{NAME}-0", body={"aliases": {NAME: properties}})
    for number in range(2):
        records = [Document("1", "t", "p", page_id="seen"), Document("2", "t", "p", page_id="not")]
        result = run(
            client,
            records,
            {"number": number},
            Destination(alias=NAME, delete_old=True),
            folder=tmp_path,
        )
        assert result.switched
        assert list(held(client, NAME)) == ["1"]
        (found,) = client.indices.get_alias(name=NAME).values()
        assert found["aliases"][NAME] == properties


def test_an_alias_with_several_filters_is_refused_before_it_is_loaded_for(
    client: OpenSearch, tmp_path: Path
) -> None:
    aliased = {NAME: {"filter": {"term": {"page_id": "seen"}}}}
    client.indices.create(index=f"{NAME}-0", body={"aliases": aliased})
    client.indices.create(index=f"{NAME}-1", body={"aliases": {NAME: {}}})
    with pytest.raises(IndexingError, match="another filter for each of its indices"):
        run(client, numbered(3), {}, Destination(alias=NAME), folder=tmp_path)
    assert set(client.indices.get(index=f"{NAME}-*")) == {f"{NAME}-0", f"{NAME}-1"}


def test_an_index_gives_its_name_to_an_alias_only_when_asked_to(
    client: OpenSearch, tmp_path: Path
) -> None:
    client.indices.create(index=NAME, body={"settings": {"index.search.default_pipeline": "some"}})
    with pytest.raises(IndexingError, match="--delete-old"):
        run(client, numbered(3), {}, Destination(alias=NAME), folder=tmp_path)
    result = run(client, numbered(3), {}, Destination(alias=NAME, delete_old=True), folder=tmp_path)
    assert result.old == (NAME,)
    assert target.indices_of(client, NAME) == [result.summary.index]
    settings = client.indices.get_settings(index=NAME, flat_settings=True)[result.summary.index]
    assert settings["settings"]["index.search.default_pipeline"] == "some"


def test_an_alias_is_not_switched_to_an_index_that_lacks_too_much(
    client: OpenSearch, tmp_path: Path
) -> None:
    records = [*loader.records(400), Failure("f:401", "the rest cannot be read", cut=True)]
    for share in (0.001, 0.5):  # too many failed; few enough, but nobody knows what the cut hides
        few = Destination(alias=NAME, body=loader.BODY, most_failures=share)
        result = run(client, records, {}, few, folder=tmp_path)
        assert not result.switched
        assert not client.indices.exists_alias(name=NAME)
    # The same load again, which only has its last step to do.
    enough = Destination(alias=NAME, body=loader.BODY, most_failures=1)
    again = run(client, iter(()), {}, enough, folder=tmp_path)
    assert again.switched
    assert again.summary.index == result.summary.index
    assert held(client, NAME) == loader.expected(400)


@pytest.mark.parametrize("source", ["quote", "folder"])
def test_an_alias_is_not_switched_where_one_failure_hides_many(
    client: OpenSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "quote":
        rows = [f'{n},Pipe {n}" wide' for n in range(300)]
        path = tmp_path / "some.csv"
        path.write_text("\n".join(["id,title", *rows, '300,"open', *["301,lost"] * 9]))
    else:
        path = tmp_path / "pages"
        for number in range(300):
            page = path / f"{number // 150}" / f"{number}.md"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text("text")
        (path / "shut").mkdir()
        scandir = os.scandir

        def refuse(folder: str) -> object:
            if Path(folder).name == "shut":
                raise PermissionError(13, "Permission denied", folder)
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refuse)
    opened = open_source(str(path))
    result = run(client, opened.records, {}, Destination(alias=NAME), folder=tmp_path / "load")
    assert (result.summary.indexed, result.summary.failed, result.summary.cut) == (300, 1, 1)
    assert not result.switched
    assert not client.indices.exists_alias(name=NAME)


def interrupted() -> Iterator[Record]:
    yield from numbered(300)
    raise OSError("cut")


def test_another_load_does_not_go_on_with_an_interrupted_one(
    client: OpenSearch, tmp_path: Path
) -> None:
    options = Options(workers=1, bulk_bytes=1024, checkpoint_seconds=0.0)
    destination = Destination(alias=NAME)

    def attempt(source: str, records: Any, **more: Any) -> Any:
        return run(
            client, records, {"source": source}, destination, folder=tmp_path, options=options,
            **more,
        )  # fmt: skip

    with pytest.raises(OSError, match="cut"):
        attempt("one", interrupted())
    (half,) = client.indices.get(index=f"{NAME}-*")
    with pytest.raises(IndexingError, match="source was 'one' and is now 'two'"):
        attempt("two", numbered(10))
    time.sleep(1.1)  # staged indices are named by the second
    result = attempt("two", numbered(10), discard=True)
    assert result.resumed_at is None
    assert result.summary.documents == 10
    assert not client.indices.exists(index=half)


def test_an_index_that_was_deleted_meanwhile_is_not_made_again_unseen(
    client: OpenSearch, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="cut"):
        run(client, interrupted(), {}, Destination(NAME), folder=tmp_path)
    client.indices.delete(index=NAME)
    with pytest.raises(IndexingError, match="was deleted since"):
        run(client, numbered(300), {}, Destination(NAME), folder=tmp_path)
    assert not client.indices.exists(index=NAME)


def test_half_loaded_indices_of_other_loads_are_named(client: OpenSearch, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cut"):
        run(client, interrupted(), {}, Destination(alias=NAME), folder=tmp_path / "lost")
    (half,) = client.indices.get(index=f"{NAME}-*")
    time.sleep(1.1)  # staged indices are named by the second
    result = run(client, numbered(3), {}, Destination(alias=NAME), folder=tmp_path / "new")
    assert result.leftovers == (half,)


def test_what_something_else_writes_meanwhile_is_overwritten_unless_its_version_is_higher(
    client: OpenSearch,
) -> None:
    target.make_index(client, NAME)

    def records() -> Iterator[Record]:
        yield from numbered(5)
        client.index(index=NAME, id="6", body={"title": "newer"})
        yield Document("6", "older", "")
        newer = {"version": 2**62, "version_type": "external_gte"}
        client.index(index=NAME, id="7", body={"title": "newer"}, params=newer)
        yield Document("7", "older", "")

    summary = load(client, NAME, records())
    assert (summary.created, summary.replaced, summary.failed) == (5, 1, 1)
    assert client.get(index=NAME, id="6")["_source"] == {"title": "older", "passage": ""}
    assert "something else wrote this document" in summary.failures[0].reason
    assert client.get(index=NAME, id="7")["_source"] == {"title": "newer"}
