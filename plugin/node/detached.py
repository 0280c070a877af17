"""The one cluster of the command line: it outlives the command that started it.

A state file in the cache folder tells the next command which processes and ports it has. What
the file says is checked against the processes' command lines, so a file that was left behind by
a machine that went down does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plugin.node.assembly import OPENSEARCH_VERSION, cache_folder, prepared_cache_folder
from plugin.node.cluster import (
    ClusterOptions,
    Launched,
    Node,
    end,
    get_json,
    launch,
    wait_until_ready,
)
from plugin.node.errors import NodeError
from plugin.node.processes import terminate

_STATE_FORMAT = 1
# Popen complains of a process that still runs when its handle goes; these are meant to.
_kept: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Status:
    """What is known of the cluster: its nodes, and its health where it answers."""

    nodes: tuple[Node, ...]
    health: str | None  # green, yellow or red; None where no node answers

    @property
    def running(self) -> bool:
        """Tell whether every node that was started still runs, and the cluster answers."""
        return bool(self.nodes) and self.health is not None


def start(options: ClusterOptions, start_seconds: float = 300.0) -> tuple[Node, ...]:
    """Start the cluster and leave it running.

    Raises `NodeError` if it already runs, or if another process is starting it.
    """
    prepared_cache_folder()
    folder = _folder()
    folder.mkdir(mode=0o755, exist_ok=True)
    with _only_start(folder / "start.lock"):
        if running := _running_nodes():
            raise NodeError(
                f"a node already runs at {running[0].url}: "
                "stop it with `titlecast node stop` first."
            )
        launched: list[Launched] = []
        try:
            for one in launch(options, folder):
                launched.append(one)
                # At once, so that `stop` finds the process even if this one is killed meanwhile.
                _write_state([known.node for known in launched])
            wait_until_ready(launched, start_seconds)
        except BaseException:
            end(launched)
            _forget()
            raise
    _kept.extend(one.process for one in launched)
    return tuple(one.node for one in launched)


def stop(grace: float = 20.0) -> tuple[Node, ...]:
    """End the cluster's processes, by force after `grace` seconds; return the nodes that ran."""
    running = _running_nodes()
    terminate([node.process for node in running], grace)
    _forget()
    return running


def status() -> Status:
    """Tell which nodes run and how the cluster is."""
    nodes = _running_nodes()
    for node in nodes:
        health = get_json(node, "/_cluster/health")
        if health is not None:
            return Status(nodes, str(health.get("status")))
    return Status(nodes, None)


@contextlib.contextmanager
def _only_start(path: Path) -> Iterator[None]:
    """Let one process at a time start: assembling may take a minute, and the folders are the same.

    Raises `NodeError` where another one is at it. The lock ends with the process that holds it.
    """
    import fcntl  # not on Windows, where no node runs either

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NodeError(
                "another start is under way: wait for it, then see `titlecast node status`."
            ) from error
        yield


def _folder() -> Path:
    return cache_folder() / "node"


def _state_file() -> Path:
    return _folder() / "state.json"


def _write_state(nodes: list[Node]) -> None:
    state = {
        "format": _STATE_FORMAT,
        "opensearch": OPENSEARCH_VERSION,
        "nodes": [
            {"name": node.name, "pid": node.pid, "http_port": node.http_port} for node in nodes
        ],
    }
    path = _state_file()
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(state, indent=2) + "\n")
    temporary.replace(path)


def _forget() -> None:
    """Remove the state file, unless another start has written it meanwhile."""
    if not _running_nodes():
        _state_file().unlink(missing_ok=True)


def _running_nodes() -> tuple[Node, ...]:
    try:
        state = json.loads(_state_file().read_text())
        nodes = [
            Node(
                str(one["name"]),
                int(one["pid"]),
                int(one["http_port"]),
                _folder() / str(one["name"]),
            )
            for one in state["nodes"]
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ()  # none was written, or it is not ours to read: nothing that we could stop
    return tuple(node for node in nodes if node.process.alive())
