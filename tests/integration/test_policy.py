"""What the plugin's policy grants on a real node: what it must, and no more."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from plugin.node import OPENSEARCH_VERSION, PLUGIN_NAME, LocalCluster
from plugin.node.assembly import assemble
from plugin.node.tools import find_jdk

PROBE = Path(__file__).parent / "probe" / "Probe.java"
GRANTED = ["connect", "connect a channel"]
REFUSED = ["connect a Unix socket", "read", "open", "write", "delete"]


def make_probe(home: Path, name: str, policy: str) -> None:
    """Put a plugin into a node's home that tries what such a policy grants."""
    jdk = find_jdk()
    folder = home / "plugins" / name
    folder.mkdir()
    (folder / "plugin-security.policy").write_text(policy)
    (folder / "plugin-descriptor.properties").write_text(
        f"name={name}\nversion=1\nopensearch.version={OPENSEARCH_VERSION}\njava.version=21\n"
        "description=tries what it may do\nclassname=org.titlecast.probe.Probe\n"
    )
    with tempfile.TemporaryDirectory() as classes:
        for command in (
            ["javac", "-cp", f"{home / 'lib'}/*", "-d", classes, PROBE],
            ["jar", "-cf", folder / "probe.jar", "-C", classes, "."],
        ):
            program = jdk.home / "bin" / str(command[0])
            subprocess.run([program, *command[1:]], check=True, timeout=300)


def test_the_policy_grants_connecting_and_nothing_else(
    needs_local_node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin with our policy, and one with none, try the same things under the node's agent."""
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.chmod(0o755)  # the node may run as another user
        tried = root / "tried"
        tried.mkdir()
        tried.chmod(0o777)
        (tried / "file").write_text("text")

        whole = assemble(find_jdk(open_to_all=True))
        home = root / "cache" / whole.name
        shutil.copytree(whole, home)
        policy = (home / "plugins" / PLUGIN_NAME / "plugin-security.policy").read_text()
        make_probe(home, "with-ours", policy)
        make_probe(home, "with-none", "grant {\n};\n")
        monkeypatch.setenv("TITLECAST_HOME", str(home.parent))

        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(tried / "socket"))
        (tried / "socket").chmod(0o777)
        unix.listen()
        node = LocalCluster(
            heap="512m",
            java_options=[
                "-XX:TieredStopAtLevel=1",
                f"-Dprobe.folder={tried}",
                f"-Dprobe.port={listener.getsockname()[1]}",
            ],
        )
        stack.enter_context(node)
        log = node.nodes[0].log_file.read_text()
    said = re.findall(r"(with-\w+) (.*): (.*)", log)
    assert [(how, what) for name, how, what in said if name == "with-ours"] == [
        *(("may", what) for what in GRANTED),
        *(("may not", what) for what in REFUSED),
    ]
    assert [(how, what) for name, how, what in said if name == "with-none"] == [
        ("may not", what) for what in (*GRANTED, *REFUSED)
    ]
    # What the agent does not look at yet could still be granted: there is nothing else in it.
    assert re.findall(r"^\s*(?!//)(\S.*)$", policy, re.MULTILINE) == [
        "grant {",
        'permission java.net.SocketPermission "*", "connect,resolve";',
        "};",
    ]
