"""The parts of the local node that need no node: tools, options, assembly, processes."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import plugin.cli.node
from plugin.cli.options import CommandError
from plugin.node import (
    OPENSEARCH_VERSION,
    PLUGIN_NAME,
    AssemblyError,
    ClusterOptions,
    LocalCluster,
    NodeError,
    PortTakenError,
    StartError,
    ToolMissingError,
    assembly,
    cluster,
    detached,
)
from plugin.node.processes import Guard, ProcessId, command_line, terminate
from plugin.node.tools import Jdk, find_jdk, find_maven, is_open_to_all, jdk_version

POMS = Path(assembly.__file__).parent / "maven"
SLEEP = "import sys, time; print('up', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def make_program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_jdk(home: Path, version: str) -> Path:
    make_program(home / "bin" / "java")
    make_program(home / "bin" / "javac")
    (home / "release").write_text(f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\n')
    return home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, used as by a user who is not root."""
    monkeypatch.setenv("TITLECAST_HOME", str(tmp_path / "home"))
    for module in (assembly, cluster):
        monkeypatch.setattr(module, "runs_as_root", lambda: False)
    return tmp_path / "home"


@pytest.fixture
def sleeper() -> Iterator[Callable[..., ProcessId]]:
    """Starts processes that would run for long."""
    started = []

    def start(program: str = SLEEP) -> ProcessId:
        marker = f"-Dmarker={len(started)}-{time.monotonic_ns()}"
        process = subprocess.Popen([sys.executable, "-c", program, marker], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return ProcessId(process.pid, marker)

    yield start
    for process in started:
        process.kill()
        process.communicate()


# Tools


def test_java_home_comes_first(tmp_path: Path) -> None:
    chosen, other = make_jdk(tmp_path / "a", "25.0.1"), make_jdk(tmp_path / "b", "21.0.2")
    environ = {"JAVA_HOME": str(chosen), "PATH": str(other / "bin")}
    assert find_jdk(environ, [str(tmp_path / "*")]) == Jdk(chosen, 25)


def test_an_old_java_home_is_passed_over(tmp_path: Path) -> None:
    old, on_path = make_jdk(tmp_path / "a", "1.8.0_392"), make_jdk(tmp_path / "b", "22")
    environ = {"JAVA_HOME": str(old), "PATH": str(on_path / "bin")}
    assert find_jdk(environ, []) == Jdk(on_path, 22)


def test_a_link_on_path_leads_to_the_jdk(tmp_path: Path) -> None:
    jdk = make_jdk(tmp_path / "jdk", "21.0.2")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "javac").symlink_to(jdk / "bin" / "javac")
    assert find_jdk({"PATH": str(tmp_path / "bin")}, []) == Jdk(jdk, 21)


def test_the_lowest_fitting_jdk_of_the_usual_folders(tmp_path: Path) -> None:
    for version in ("17.0.1", "26-ea", "21.0.1", "25"):
        make_jdk(tmp_path / f"jdk-{version}", version)
    assert find_jdk({}, [str(tmp_path / "*")]).version == 21


def test_without_a_jdk_the_error_names_what_was_found_and_the_remedy(tmp_path: Path) -> None:
    make_jdk(tmp_path / "old", "17.0.1")
    runtime = make_jdk(tmp_path / "runtime", "25")
    (runtime / "bin" / "javac").unlink()  # no compiler: no JDK
    with pytest.raises(ToolMissingError, match="JAVA_HOME") as caught:
        find_jdk({}, [str(tmp_path / "*")])
    assert f"{tmp_path}/old (17)" in str(caught.value)
    assert "runtime" not in str(caught.value)


def test_a_jdk_closed_to_other_users_does_not_count_where_they_must_run_it(tmp_path: Path) -> None:
    jdk = make_jdk(tmp_path / "jdk", "25")
    jdk.chmod(0o700)
    assert not is_open_to_all(jdk / "bin" / "java")
    assert find_jdk({"JAVA_HOME": str(jdk)}, []).version == 25
    with pytest.raises(ToolMissingError, match="readable by every user"):
        find_jdk({"JAVA_HOME": str(jdk)}, [], open_to_all=True)


# Java 5 was the first to be called by its second number: before, "1.0.1" was Java 1.
@given(st.integers(5, 99), st.sampled_from(["", ".0.1", "-ea", ".0.2.1+9", "_05"]))
def test_versions_are_read_from_the_release_file(
    tmp_path_factory: pytest.TempPathFactory, major: int, rest: str
) -> None:
    home = make_jdk(tmp_path_factory.mktemp("jdk"), f"{major}{rest}")
    assert jdk_version(home) == major
    (home / "release").write_text(f'JAVA_VERSION="1.{major}{rest}"')
    assert jdk_version(home) == major


@given(st.binary(max_size=60))
def test_any_release_file_is_survived(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    home = make_jdk(tmp_path_factory.mktemp("jdk"), "25")
    (home / "release").write_bytes(content)
    assert jdk_version(home) is None or b"JAVA_VERSION" in content


def test_maven_is_found_by_variable_path_and_folder(tmp_path: Path) -> None:
    by_variable, on_path, in_folder = (
        make_program(tmp_path / name / "bin" / "mvn") for name in "abc"
    )
    environ = {"MAVEN_HOME": str(tmp_path / "a"), "PATH": str(on_path.parent)}
    assert find_maven(environ) == by_variable
    assert find_maven({"PATH": str(on_path.parent)}) == on_path
    assert find_maven({"PATH": ""}, [str(tmp_path / "c*")]) == in_folder
    with pytest.raises(ToolMissingError, match="MAVEN_HOME"):
        find_maven({"PATH": ""}, [])


# POMs


def test_poms_are_whole() -> None:
    name = "{http://maven.apache.org/POM/4.0.0}"
    parent = ElementTree.parse(POMS / "pom.xml")  # noqa: S314 - our own file
    assert parent.findtext(f"{name}properties/{name}opensearch.version") == OPENSEARCH_VERSION
    listed = {module.text for module in parent.iter(f"{name}module")}
    there = {str(pom.parent.relative_to(POMS)) for pom in POMS.rglob("pom.xml")} - {"."}
    assert listed == there
    for folder in there:
        pom = ElementTree.parse(POMS / folder / "pom.xml")  # noqa: S314 - our own file
        assert pom.findtext(f"{name}properties/{name}folder") == folder
        if folder.startswith("modules/"):
            text = (POMS / folder / "plugin-descriptor.properties").read_text()
            descriptor = dict(line.split("=", 1) for line in text.splitlines())
            assert descriptor["name"] == Path(folder).name
            assert descriptor.keys() == {
                "name",
                "description",
                "version",
                "opensearch.version",
                "java.version",
                "classname",
            }


def test_the_poms_name_no_repository() -> None:
    for pom in POMS.rglob("pom.xml"):
        assert not re.search(
            r"<(repositor|pluginRepositor|distributionManagement)", pom.read_text()
        )


# Assembly

FAKE_MAVEN = """#!/bin/sh
echo call >> "$CALLS"
case "$*" in
*-Dnode.folder=*)
    for word in "$@"; do case "$word" in -Dnode.folder=*) out="${word#*=}" ;; esac; done
    mkdir -p "$out/lib" "$out/agent" "$out/modules/reindex"
    touch "$out/lib/shared.jar" "$out/modules/reindex/shared.jar" "$out/modules/reindex/own.jar"
    ;;
*)
    test -f src/main/Plugin.java && test ! -e src/test || exit 3
    mkdir target
    printf '%s' "$ZIP" | base64 -d > target/titlecast-opensearch-plugin-1.zip
    ;;
esac
"""
ZIP = (  # one file, plugin-descriptor.properties, of no content
    "UEsDBBQAAAAAAAAAIQAAAAAAAAAAAAAAAAAcAAAAcGx1Z2luLWRlc2NyaXB0b3IucHJvcGVydGllc1BLAQIUABQAAAAA"
    "AAAAIQAAAAAAAAAAAAAAAAAcAAAAAAAAAAAAAAAAAAAAAABwbHVnaW4tZGVzY3JpcHRvci5wcm9wZXJ0aWVzUEsFBgAA"
    "AAABAAEASgAAADoAAAAAAA=="
)


@pytest.fixture
def sources(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of a plugin and a Maven that needs no network."""
    sources = tmp_path / "sources"
    (sources / "src" / "main").mkdir(parents=True)
    (sources / "src" / "main" / "Plugin.java").write_text("class Plugin {}")
    (sources / "src" / "test").mkdir()
    (sources / "pom.xml").write_text("<project/>")
    monkeypatch.setattr(assembly, "plugin_sources", lambda: sources)
    make_program(tmp_path / "maven" / "bin" / "mvn", FAKE_MAVEN)
    monkeypatch.setenv("MAVEN_HOME", str(tmp_path / "maven"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("ZIP", ZIP)
    return sources


def calls(sources: Path) -> int:
    file = sources.parent / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_node_is_assembled_once(sources: Path) -> None:
    jdk = Jdk(Path("/jdk"), 25)
    home = assembly.assemble(jdk)
    assert calls(sources) == 2
    modules = {str(path.relative_to(home / "modules")) for path in home.glob("modules/*/*")}
    assert modules == {  # what lib/ has is not there twice
        "reindex/own.jar",
        "reindex/plugin-descriptor.properties",
        "reindex/plugin-security.policy",
    }
    descriptor = (home / "modules" / "reindex" / "plugin-descriptor.properties").read_text()
    assert f"opensearch.version={OPENSEARCH_VERSION}\n" in descriptor
    assert (home / "plugins" / PLUGIN_NAME / "plugin-descriptor.properties").is_file()

    assert assembly.assemble(jdk) == home
    base = assembly.assemble(jdk, with_plugin=False)
    assert not any((base / "plugins").iterdir())
    assert calls(sources) == 2


def test_a_changed_plugin_gets_a_home_of_its_own(sources: Path) -> None:
    jdk = Jdk(Path("/jdk"), 25)
    first = assembly.assemble(jdk)
    (sources / "src" / "test" / "PluginTest.java").write_text("changes nothing of the plugin")
    (sources / "target").mkdir()
    (sources / "target" / "old.zip").write_text("neither does this")
    assert assembly.assemble(jdk) == first
    (sources / "src" / "main" / "Plugin.java").write_text("class Plugin { int more; }")
    assert assembly.assemble(jdk) != first
    assert calls(sources) == 3


def test_a_failed_build_leaves_nothing_half_done(sources: Path) -> None:
    make_program(
        sources.parent / "maven/bin/mvn", "#!/bin/sh\necho '[ERROR] no such thing'\nexit 1"
    )
    with pytest.raises(AssemblyError, match=r"no such thing.*compile") as caught:
        assembly.assemble(Jdk(Path("/jdk"), 25))
    assert caught.value.log_tail == ("[ERROR] no such thing",)
    assert [path.name for path in assembly.cache_folder().iterdir()] == [".lock"]


def test_without_the_plugins_sources_a_node_can_be_had_without_it(sources: Path) -> None:
    (sources / "pom.xml").unlink()
    with pytest.raises(AssemblyError, match="without the plugin"):
        assembly.assemble(Jdk(Path("/jdk"), 25))
    assert assembly.assemble(Jdk(Path("/jdk"), 25), with_plugin=False).is_dir()


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.binary(max_size=8), max_size=4))
def test_the_digest_tells_files_and_contents_apart(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("digest")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    listed = assembly._files(folder)
    digest = assembly._digest(folder, listed)
    assert assembly._digest(folder, assembly._files(folder)) == digest
    for file in listed:
        before = (folder / file).read_bytes()
        (folder / file).write_bytes(before + b"x")
        assert assembly._digest(folder, listed) != digest
        (folder / file).write_bytes(before)


def test_where_the_cache_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert assembly.cache_folder({"TITLECAST_HOME": "/somewhere"}) == Path("/somewhere")
    monkeypatch.setattr(assembly, "runs_as_root", lambda: False)
    assert assembly.cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/titlecast")
    assert assembly.cache_folder({}) == Path.home() / ".cache" / "titlecast"
    monkeypatch.setattr(assembly, "runs_as_root", lambda: True)
    assert assembly.cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/var/cache/titlecast")


def test_a_cache_folder_that_the_nodes_user_cannot_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("TITLECAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(assembly, "runs_as_root", lambda: True)
    with pytest.raises(AssemblyError, match="TITLECAST_HOME"):
        assembly.prepared_cache_folder()


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"nodes": 0},
        {"http_port": -1},
        {"http_port": 65535, "nodes": 2},
        {"heap": "much"},
        {"heap": "0m"},
        {"with_plugin": False, "sidecar_urls": ["http://sidecar"]},
        {"secure_settings": {"a": "two\nlines"}},
        {"node_settings": {"node-2": {}}},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+: "):
        ClusterOptions(**options)
    with pytest.raises(ValueError, match=r".+: "):
        LocalCluster(**options)


@given(st.integers(1, 4), st.integers(1, 9))
def test_settings_form_one_cluster_of_any_size(nodes: int, number: int) -> None:
    name = f"node-{min(number, nodes)}"
    options = ClusterOptions(
        nodes=nodes,
        sidecar_urls=["http://one", "http://two"],
        settings={"a": 1, "b": 2},
        node_settings={name: {"b": 3}},
    )
    settings = cluster._settings(options, name, 9200, [9300 + n for n in range(nodes)])
    assert (settings["a"], settings["b"]) == (1, 3)
    assert cluster._settings(options, "another", 9200, [9300] * nodes)["b"] == 2
    assert settings["title_rerank.sidecar.urls"] == ["http://one", "http://two"]
    assert settings["network.host"] == "127.0.0.1"
    if nodes == 1:
        assert settings["discovery.type"] == "single-node"
    else:
        assert settings["discovery.seed_hosts"] == ["127.0.0.1:9300"]
        roles = settings["node.roles"]
        assert isinstance(roles, list)
        assert ("cluster_manager" in roles) == (name == "node-1")
    json.dumps(settings)


def test_a_node_listens_at_two_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "free_ports", lambda count: list(range(20_000, 20_000 + count)))
    taken = cluster._http_ports(ClusterOptions(nodes=2))
    assert cluster._transport_ports(taken) == [20_002, 20_003]


def test_a_taken_port_is_told_before_anything_is_built(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        local = LocalCluster(http_port=port)
        with pytest.raises(PortTakenError, match=f"port {port}.*--http-port"):
            local.start()
    assert local.nodes == ()
    with pytest.raises(NodeError, match="start"):
        _ = local.url
    assert list((home / "run").iterdir()) == []


# Processes


def test_a_process_is_known_by_its_number_and_its_marker(sleeper: Callable[..., ProcessId]) -> None:
    process = sleeper()
    assert process.alive()
    assert any(process.marker in word for word in command_line(process.pid))
    assert not ProcessId(process.pid, "-Dmarker=another").alive()
    assert command_line(2**22 + 1) == []


def test_only_the_process_that_was_meant_is_ended(sleeper: Callable[..., ProcessId]) -> None:
    meant, other = sleeper(), sleeper()
    stale = ProcessId(other.pid, "-Dmarker=of-a-process-long-gone")
    assert terminate([meant, stale], grace=10) == []
    assert not meant.alive()
    assert other.alive()


def test_a_process_that_does_not_listen_is_killed(sleeper: Callable[..., ProcessId]) -> None:
    stubborn = sleeper(STUBBORN)
    assert terminate([stubborn], grace=0.3) == [stubborn]
    assert not stubborn.alive()


def test_the_guard_ends_what_is_left_and_removes_the_folder(
    tmp_path: Path, sleeper: Callable[..., ProcessId]
) -> None:
    (tmp_path / "run" / "node-1").mkdir(parents=True)
    process = sleeper()
    guard = Guard(tmp_path / "run")
    guard.watch(process)
    assert process.alive()
    guard.release()
    assert not process.alive()
    assert not (tmp_path / "run").exists()


def test_the_guard_acts_when_its_owner_is_killed(
    tmp_path: Path, sleeper: Callable[..., ProcessId]
) -> None:
    process = sleeper()
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from plugin.node.processes import Guard, ProcessId\n"
        f"Guard(Path({str(tmp_path / 'run')!r})).watch({process!r})\n"
        "print('watched', flush=True)\ntime.sleep(600)\n"
    )
    root = Path(assembly.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"watched\n"
        assert process.alive()
        owner.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 20
    while process.alive() and time.monotonic() < limit:
        time.sleep(0.05)
    assert not process.alive()


# State file


def test_a_stale_state_file_harms_nobody(home: Path, sleeper: Callable[..., ProcessId]) -> None:
    somebody = sleeper()
    (home / "node").mkdir(parents=True)
    state = {"nodes": [{"name": "node-1", "pid": somebody.pid, "http_port": 9200}]}
    (home / "node" / "state.json").write_text(json.dumps(state))
    assert detached.status() == detached.Status((), None)
    assert not detached.status().running
    assert detached.stop() == ()
    assert somebody.alive()
    assert not (home / "node" / "state.json").exists()


@given(st.one_of(st.text(max_size=20), st.just('{"nodes": [1]}'), st.just('{"nodes": [{}]}')))
def test_any_state_file_is_survived(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / "node").mkdir()
    (home / "node" / "state.json").write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITLECAST_HOME", str(home))
        assert detached.status().nodes == ()


def test_a_failed_start_leaves_no_state(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortTakenError):
            detached.start(ClusterOptions(http_port=taken.getsockname()[1]))
    assert not (home / "node" / "state.json").exists()


def launched(folder: Path, program: str = SLEEP) -> cluster.Launched:
    """A process as a node of that folder."""
    node = cluster.Node("node-1", 0, 9200, folder / "node-1")
    process = subprocess.Popen(
        [sys.executable, "-c", program, node.process.marker], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return cluster.Launched(dataclasses.replace(node, pid=process.pid), process)


@pytest.fixture
def other(home: Path) -> Iterator[cluster.Launched]:
    """A node in the folder of the command line's cluster."""
    one = launched(home / "node")
    yield one
    one.process.kill()
    one.process.communicate()


def test_two_starts_at_a_time_do_not_get_into_each_others_way(
    home: Path, other: cluster.Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def launch(options: ClusterOptions, folder: Path) -> Iterator[cluster.Launched]:
        begun.append(folder)
        assert len(begun) == 1
        with pytest.raises(NodeError, match="another start is under way"):
            detached.start(options)
        yield other

    monkeypatch.setattr(detached, "launch", launch)
    monkeypatch.setattr(detached, "wait_until_ready", lambda *_: None)
    assert detached.start(ClusterOptions()) == (other.node,)
    assert detached.status().nodes == (other.node,)
    with pytest.raises(NodeError, match="already runs"):
        detached.start(ClusterOptions())


def test_a_failed_start_keeps_the_state_of_a_node_that_runs(
    home: Path, other: cluster.Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(options: ClusterOptions, folder: Path) -> Iterator[cluster.Launched]:
        detached._write_state([other.node])
        yield from ()
        raise AssemblyError("no")

    monkeypatch.setattr(detached, "launch", launch)
    with pytest.raises(AssemblyError):
        detached.start(ClusterOptions())
    assert detached.status().nodes == (other.node,)


NOTE = """\
[2026-01-05T06:57:17,422][WARN ][o.t.o.SidecarClient      ] no sidecar (java.net.ConnectException)
java.net.ConnectException: Connection refused
\tat java.base/sun.nio.ch.Net.pollConnect(Native Method)
[2026-01-05T06:57:18,422][INFO ][o.o.n.Node               ] CircuitBreakingException is possible
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (NOTE, ""),
        (
            f"{NOTE}[2026-01-05][ERROR][o.o.b.B] node failed\na.b.CException: x\n",
            "a.b.C",
        ),
        (f'{NOTE}Exception in thread "main" a.b.DException: x\n', "Exception in thread"),
        (f"{NOTE}uncaught exception in thread [main]\na.b.EException: x\n", "a.b.E"),
        ("Error occurred during initialization of VM\nno room\n", "Error occurred"),
        (f"{NOTE}a.b.FException: x\nLikely root cause: a.b.GException: y\n", "Likely root cause"),
    ],
)
def test_a_start_that_failed_tells_of_an_error_and_of_no_warning(
    tmp_path: Path, log: str, reason: str
) -> None:
    one = launched(tmp_path, "")
    one.process.communicate()
    one.node.log_file.parent.mkdir(parents=True)
    one.node.log_file.write_text(log)
    with pytest.raises(StartError) as caught:
        cluster.wait_until_ready([one], 5)
    told = f" ({reason}" if reason else ": see"
    assert str(caught.value).startswith(f"node-1 ended with status 0{told}")


# Command line


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(callback=lambda: None)
    plugin.cli.node.register(app)
    return app


def test_status_and_stop_without_a_node(home: Path, app: typer.Typer) -> None:
    status = CliRunner().invoke(app, ["node", "status"])
    assert status.exit_code == 1
    assert "No node is running" in status.output
    stop = CliRunner().invoke(app, ["node", "stop"])
    assert stop.exit_code == 0
    assert "No node was running" in stop.output


def test_errors_are_sentences_with_the_remedy(home: Path, app: typer.Typer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["node", "start", "--http-port", str(port)])
    assert isinstance(result.exception, CommandError)
    assert str(port) in str(result.exception)


def test_the_commands_options_reach_the_cluster(
    home: Path, app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ClusterOptions] = []
    monkeypatch.setattr(detached, "start", lambda options: given.append(options) or ())
    words = (
        "node start --nodes 2 --heap 512m --data d --sidecar-url http://a --sidecar-url http://b"
    )
    environ = {"TITLECAST_SIDECAR_KEY": "a key"}
    assert CliRunner().invoke(app, words.split(), env=environ).exit_code == 0
    assert CliRunner().invoke(app, ["node", "start", "--no-plugin"]).exit_code == 0
    assert CliRunner().invoke(app, ["node", "start"]).exit_code == 0
    assert given == [
        ClusterOptions(
            nodes=2,
            http_port=9200,
            heap="512m",
            data=Path("d"),
            sidecar_urls=["http://a", "http://b"],
            secure_settings={"title_rerank.sidecar.key": "a key"},
        ),
        ClusterOptions(http_port=9200, with_plugin=False, sidecar_urls=[]),
        ClusterOptions(http_port=9200, sidecar_urls=["http://127.0.0.1:8900"]),
    ]
