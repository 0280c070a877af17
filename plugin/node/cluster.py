"""Starts and stops the nodes of a local cluster: folders, settings, processes, readiness.

`LocalCluster` lives as long as the process that started it; `plugin.node.detached` builds on the
same functions for a cluster that outlives its command.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from plugin.node.assembly import assemble, prepared_cache_folder, runs_as_root
from plugin.node.errors import NodeError, PortTakenError, StartError
from plugin.node.processes import Guard, ProcessId, terminate
from plugin.node.tools import Jdk, find_jdk
from plugin.ports import free_ports

_log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_STOP_SECONDS = 20.0
_LOG_LINES = 30
_USERS = ("opensearch", "nobody")  # whom the nodes run as where root starts them

_LOGGED = re.compile(r"\[[^]]+\]\[([A-Z]+) *\]")  # the pattern below
_LOG4J = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%-25c{1.}] %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


@dataclass(frozen=True)
class ClusterOptions:
    """What a local cluster is to be; raises ValueError where that cannot be.

    Attributes:
        nodes: how many nodes; the first one manages the cluster, all of them hold data.
        http_port: the first node's port, the others' follow it; 0 for any free ones.
        heap: each node's Java heap, such as `512m` or `1g`.
        data: where the indices are kept, one folder for each node in it; None for the run's own.
        with_plugin: whether the title-rerank plugin is built and put in.
        sidecar_urls: the node setting `title_rerank.sidecar.urls`; needs the plugin.
        settings: further node settings, by their dotted names.
        node_settings: the same of single nodes, by the node's name, which is node-1, node-2, ….
        secure_settings: settings of the keystore.
        config_files: further files of the configuration folder, by name, such as certificates.
        java_options: further options of the Java machine.
    """

    nodes: int = 1
    http_port: int = 0
    heap: str = "1g"
    data: Path | None = None
    with_plugin: bool = True
    sidecar_urls: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    node_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    secure_settings: Mapping[str, str] = field(default_factory=dict)
    config_files: Mapping[str, str] = field(default_factory=dict)
    java_options: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"a cluster cannot have {self.nodes} nodes: give 1 or more.")
        if not 0 <= self.http_port <= 65536 - self.nodes:
            raise ValueError(
                f"{self.http_port} is no port to start {self.nodes} nodes from: give 1 to "
                f"{65536 - self.nodes}, or 0 for any free one."
            )
        if not re.fullmatch(r"[1-9]\d*[kmgKMG]", self.heap):
            raise ValueError(f"{self.heap!r} is no heap size: write it as 512m or 1g.")
        if self.sidecar_urls and not self.with_plugin:
            raise ValueError("a sidecar's address needs the plugin: leave one of the two out.")
        if any("\n" in text for item in self.secure_settings.items() for text in item):
            raise ValueError("a secure setting is one line: take the line breaks out of it.")
        names = {f"node-{number}" for number in range(1, self.nodes + 1)}
        for name in self.node_settings:
            if name not in names:
                raise ValueError(f"{name} is no node of this cluster: name one of {sorted(names)}.")


@dataclass(frozen=True)
class Node:
    """One running node: its process, its port and the folder that is its own."""

    name: str
    pid: int
    http_port: int
    folder: Path

    @property
    def url(self) -> str:
        """Where the node answers."""
        return f"http://{_HOST}:{self.http_port}"

    @property
    def process(self) -> ProcessId:
        """The node's process, which the path of its configuration names beyond doubt."""
        return ProcessId(self.pid, _marker(self.folder))

    @property
    def log_file(self) -> Path:
        """All that the node has said since its start."""
        return self.folder / "logs" / "console.log"

    def log_tail(self, lines: int = _LOG_LINES) -> tuple[str, ...]:
        """Return the last lines of the node's log."""
        try:
            text = self.log_file.read_text(errors="replace")
        except OSError:
            return ()
        return tuple(text.splitlines()[-lines:])


class LocalCluster:
    """A cluster that ends with the block, or at the latest with the process, that started it.

    Takes the options of `ClusterOptions`. Each node has a folder of its own in the cache folder,
    removed at the end (a `data` folder that was given stays). It can be started again after it
    was stopped. Raises `NodeError` where a cluster cannot be started.
    """

    def __init__(
        self,
        *,
        nodes: int = 1,
        http_port: int = 0,
        heap: str = "1g",
        data: Path | None = None,
        with_plugin: bool = True,
        sidecar_urls: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        node_settings: Mapping[str, Mapping[str, object]] | None = None,
        secure_settings: Mapping[str, str] | None = None,
        config_files: Mapping[str, str] | None = None,
        java_options: Sequence[str] = (),
        start_seconds: float = 300.0,
    ) -> None:
        self._options = ClusterOptions(
            nodes=nodes,
            http_port=http_port,
            heap=heap,
            data=data,
            with_plugin=with_plugin,
            sidecar_urls=tuple(sidecar_urls),
            settings=dict(settings or {}),
            node_settings=dict(node_settings or {}),
            secure_settings=dict(secure_settings or {}),
            config_files=dict(config_files or {}),
            java_options=tuple(java_options),
        )
        self._start_seconds = start_seconds
        self._launched: list[Launched] = []
        self._guard: Guard | None = None
        self._folder: Path | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The running nodes, none before `start` and after `stop`."""
        return tuple(launched.node for launched in self._launched)

    @property
    def urls(self) -> list[str]:
        """Every node's address."""
        return [node.url for node in self.nodes]

    @property
    def url(self) -> str:
        """The first node's address."""
        if not self._launched:
            raise NodeError("the cluster does not run: call start() first.")
        return self._launched[0].node.url

    def start(self) -> None:
        """Start the nodes and wait until they form a cluster that answers."""
        if self._launched:
            return
        cache = prepared_cache_folder()
        (cache / "run").mkdir(mode=0o755, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=cache / "run"))
        self._folder.chmod(0o755)  # the nodes' own folders in it are closed
        self._guard = Guard(self._folder)
        try:
            for launched in launch(self._options, self._folder):
                self._guard.watch(launched.node.process)
                self._launched.append(launched)
            wait_until_ready(self._launched, self._start_seconds)
        except BaseException as error:
            for line in error.log_tail if isinstance(error, NodeError) else ():
                _log.error("%s", line)
            self.stop()
            raise

    def stop(self) -> None:
        """End every node, by force if need be, and remove their folders; may be called again."""
        launched, self._launched = self._launched, []
        end(launched)
        if self._guard is not None:
            self._guard.release()
            self._guard = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@dataclass(frozen=True)
class Launched:
    """A node and the handle of its process, which only the process that started it has."""

    node: Node
    process: subprocess.Popen[bytes]


def launch(options: ClusterOptions, folder: Path) -> Iterator[Launched]:
    """Start the nodes of a cluster one after the other, without waiting until they are ready.

    An iterator, so that the caller knows of each process before the next one is started.
    """
    ports = _http_ports(options)
    transport_ports = _transport_ports(ports)
    owner = _Owner.of_nodes()
    jdk = find_jdk(open_to_all=owner is not None)
    home = assemble(jdk, with_plugin=options.with_plugin)
    for number, (port, transport_port) in enumerate(zip(ports, transport_ports, strict=True), 1):
        name = f"node-{number}"
        own = folder / name
        data = options.data.absolute() / name if options.data else own / "data"
        for part in (own, own / "config", own / "logs", own / "tmp"):
            _own_folder(part, owner)
        _own_folder(data, owner)
        settings = {
            **_settings(options, name, port, transport_ports),
            "transport.port": transport_port,
            "path.data": str(data),
            "path.logs": str(own / "logs"),
        }
        # JSON values are YAML values.
        configuration = "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
        files = {"opensearch.yml": configuration, "log4j2.properties": _LOG4J}
        for file, text in {**options.config_files, **files}.items():
            (own / "config" / file).write_text(text)
            (own / "config" / file).chmod(0o644)
        if options.secure_settings:
            _write_keystore(own, home, jdk, options.secure_settings, owner)
        with (own / "logs" / "console.log").open("wb") as log:
            process = _spawn(_command(home, own, jdk, options), own, owner, log.fileno())
        yield Launched(Node(name, process.pid, port, own), process)


def wait_until_ready(launched: Sequence[Launched], seconds: float) -> None:
    """Wait until the nodes form one cluster and every primary shard is there.

    Raises `StartError`, with the end of the log, if a node ends or `seconds` have passed.
    """
    limit = time.monotonic() + seconds
    query = f"wait_for_status=yellow&wait_for_nodes={len(launched)}&timeout=1s"
    while time.monotonic() < limit:
        for one in launched:
            if (status := one.process.poll()) is not None:
                raise _start_error(f"{one.node.name} ended with status {status}", [one.node])
        health = get_json(launched[0].node, f"/_cluster/health?{query}")
        if health is not None and health.get("timed_out") is False:
            return
        time.sleep(0.1)
    raise _start_error(
        f"the cluster was not ready after {seconds:.0f} seconds", [one.node for one in launched]
    )


def end(launched: Sequence[Launched]) -> None:
    """End the processes of nodes that this process started."""
    killed = terminate([one.node.process for one in launched], _STOP_SECONDS)
    for process in killed:
        _log.warning("process %d did not end when asked to and was killed", process.pid)
    for one in launched:
        one.process.wait()


def get_json(node: Node, path: str, seconds: float = 5.0) -> dict[str, object] | None:
    """Ask a node; None where it does not answer, or not with a JSON object."""
    connection = http.client.HTTPConnection(_HOST, node.http_port, timeout=seconds)
    try:
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else None


def _http_ports(options: ClusterOptions) -> list[int]:
    if options.http_port == 0:
        return free_ports(options.nodes)
    ports = list(range(options.http_port, options.http_port + options.nodes))
    for port in ports:
        with socket.socket() as probe:
            # As the node does, so that a port closed a moment ago counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError as error:
                raise PortTakenError(
                    f"port {port} cannot be used ({error.strerror}): stop what listens there or "
                    "choose another one with --http-port."
                ) from error
    return ports


def _transport_ports(taken: Sequence[int]) -> list[int]:
    """As many more: the nodes do not hold theirs yet, so the same could be found again."""
    found = [port for port in free_ports(2 * len(taken)) if port not in taken]
    return found[: len(taken)]


def _settings(
    options: ClusterOptions, name: str, port: int, transport_ports: Sequence[int]
) -> dict[str, object]:
    settings: dict[str, object] = {
        "cluster.name": "titlecast",
        "node.name": name,
        "network.host": _HOST,
        "http.port": port,
        # A laptop's disk is often fuller than the 95 % at which indices become read-only.
        "cluster.routing.allocation.disk.threshold_enabled": False,
    }
    if options.nodes == 1:
        settings["discovery.type"] = "single-node"
    else:
        # One manager: with two of them, neither could start without the other, and a data
        # folder could not be used with fewer nodes again.
        first = name == "node-1"
        settings["node.roles"] = ["cluster_manager"] * first + ["data", "ingest"]
        settings["discovery.seed_hosts"] = [f"{_HOST}:{transport_ports[0]}"]
        if first:
            settings["cluster.initial_cluster_manager_nodes"] = [name]
    if options.sidecar_urls:
        settings["title_rerank.sidecar.urls"] = list(options.sidecar_urls)
    return {**settings, **options.settings, **options.node_settings.get(name, {})}


def _command(home: Path, own: Path, jdk: Jdk, options: ClusterOptions) -> list[str]:
    return [
        str(jdk.java),
        f"-Xms{options.heap}",
        f"-Xmx{options.heap}",
        *options.java_options,
        "-XX:+ExitOnOutOfMemoryError",
        f"-XX:ErrorFile={own / 'logs' / 'java-error.log'}",
        "--add-modules=jdk.incubator.vector",
        "--enable-native-access=ALL-UNNAMED",
        # The agent enforces the plugins' security policies, as in the distribution.
        f"-javaagent:{next((home / 'agent').glob('opensearch-agent-[0-9]*.jar'))}",
        "-Djava.awt.headless=true",
        f"-Djava.io.tmpdir={own / 'tmp'}",
        "-Dlog4j2.disable.jmx=true",
        "-Dlog4j.shutdownHookEnabled=false",
        "-Dopensearch.distribution.type=tar",
        f"-Dopensearch.path.home={home}",
        _marker(own),
        "-cp",
        f"{home / 'lib'}/*",
        "org.opensearch.bootstrap.OpenSearch",
    ]


def _marker(folder: Path) -> str:
    return f"-Dopensearch.path.conf={folder / 'config'}"


def _write_keystore(
    own: Path, home: Path, jdk: Jdk, secrets: Mapping[str, str], owner: _Owner | None
) -> None:
    program = own / "tmp" / "WriteKeystore.java"  # the package's own may be closed to the user
    shutil.copyfile(Path(__file__).with_name("WriteKeystore.java"), program)
    process = _spawn(
        [str(jdk.java), "-cp", f"{home / 'lib'}/*", str(program), str(own / "config")],
        own,
        owner,
        subprocess.PIPE,
        subprocess.PIPE,
    )
    lines = "".join(f"{name}\n{value}\n" for name, value in secrets.items())
    output, _ = process.communicate(lines.encode())
    if process.returncode != 0:
        raise StartError(
            "the keystore could not be written: see that the secure settings' names are valid.",
            tuple(output.decode(errors="replace").splitlines()[-_LOG_LINES:]),
        )


def _spawn(
    command: Sequence[str],
    folder: Path,
    owner: _Owner | None,
    output: int,
    source: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    # Options in these variables are somebody else's; the distribution's scripts drop them too.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH")
    }
    environment["HOME"] = str(folder)
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=source,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches us, and we stop the nodes in order
        user=owner.user if owner else None,
        group=owner.group if owner else None,
        extra_groups=[] if owner else None,
    )


@dataclass(frozen=True)
class _Owner:
    """The user that nodes run as when root starts them."""

    name: str
    user: int
    group: int

    @classmethod
    def of_nodes(cls) -> _Owner | None:
        if not runs_as_root():
            return None
        import pwd

        for name in _USERS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name, entry.pw_uid, entry.pw_gid)
        raise NodeError(
            "OpenSearch does not run as root, and there is no user "
            f"{' or '.join(_USERS)} to run it as: start it as another user."
        )


def _own_folder(folder: Path, owner: _Owner | None) -> None:
    """Make a folder that the node can write to; one with content is never given away."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if owner is None or folder.stat().st_uid == owner.user:
            return
        if any(folder.iterdir()):
            raise StartError(
                f"{folder} belongs to another user than {owner.name}, whom OpenSearch runs as: "
                "choose another folder, or change its owner."
            )
        os.chown(folder, owner.user, owner.group)
    except OSError as error:
        raise StartError(
            f"{folder} cannot be used ({error.strerror}): choose another folder."
        ) from error


def _start_error(what: str, nodes: Sequence[Node]) -> StartError:
    tail = tuple(line for node in nodes for line in node.log_tail())
    # What failed to load matters less than why, which comes after it.
    causes = [line for line in tail if "Likely root cause" in line]
    reason = next(iter(causes or _errors(tail)), "")
    return StartError(
        f"{what}{f' ({reason.strip()[:300]})' if reason else ''}: see the end of its log.", tail
    )


def _errors(lines: Sequence[str]) -> list[str]:
    """Give the lines that tell of an error: none of a warning or note, nor of its trace."""
    found, harmless = [], False
    for line in lines:
        if logged := _LOGGED.match(line):
            harmless = logged[1] not in ("ERROR", "FATAL")
        elif "exception in thread" in line.lower():  # Java's own words, in no log
            harmless = False
        if not harmless and re.search(r"(Exception|Error)\b", line):
            found.append(line)
    return found
