"""Sidecars as processes beside this one; for the demo, one started, awaited, and ended with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from plugin.sidecar.settings import PREFIX

_LOG_LINES = 10
_GRACE_SECONDS = 15.0


class SidecarError(OSError):
    """The sidecar did not start; the text says why."""


class SidecarProcess:
    """`titlecast serve` in a `with` block; `wait` returns once it answers.

    It ends with the block, and also when this process is gone however that ended: it serves only
    as long as the pipe to its standard input is open.
    """

    def __init__(self, host: str, port: int, model: Path | None = None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        command = child_command("serve", "--until-eof", "--host", host, "--port", str(port))
        if model:
            command += ["--model", str(model)]
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> SidecarProcess:
        self._log = tempfile.TemporaryFile(prefix="titlecast-sidecar-")
        try:
            self._process = subprocess.Popen(
                self._command,
                env=child_environment() | {"TITLECAST_LOG_FORMAT": "text"},  # for a person
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C in the terminal is ours to act on, in our order.
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process, log = self._started()
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()

    def wait(self, seconds: float = 180.0) -> str:
        """Wait until it answers; give its model's name. Raises `SidecarError`."""
        process, _ = self._started()
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if process.poll() is not None:
                raise SidecarError(
                    f"the sidecar ended with status {process.returncode}: {self._tail()}"
                )
            health = ask_health("127.0.0.1", self._port)
            if health is not None:
                return health
            time.sleep(0.1)
        raise SidecarError(
            f"the sidecar did not answer within {seconds:.0f} s: try again on a machine with less "
            f"to do; it said: {self._tail()}"
        )

    def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        if self._process is None or self._log is None:
            raise RuntimeError("the sidecar runs inside its `with` block only")
        return self._process, self._log

    def _tail(self) -> str:
        _, log = self._started()
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-_LOG_LINES:]) or "nothing"


def ask_health(host: str, port: int, seconds: float = 2.0, tls: bool = False) -> str | None:
    """Give the name of the models of the sidecar that answers at an address; None for none.

    With `tls` whatever certificate it has is taken.
    """
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    try:
        connection.request("GET", "/readyz")
        answer = json.loads(connection.getresponse().read(100_000))
        return str(answer["model"]) if answer["status"] == "ok" else None
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        return None
    finally:
        connection.close()


def child_command(*words: str) -> list[str]:
    """`titlecast WORDS` as another process, which imports nothing from the folder it is run in."""
    code = "import sys; sys.path[:] = filter(None, sys.path)\n"
    code += "from plugin.cli.main import main; main()"
    return [sys.executable, "-c", code, *words]


def child_environment(settings: bool = False) -> dict[str, str]:
    """The environment of such a process; without `settings`, those meant for other sidecars."""
    # A checkout need not be installed to be run: the child finds what this process found.
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {k: v for k, v in os.environ.items() if settings or not k.startswith(PREFIX)}
    return {**own, "PYTHONPATH": os.pathsep.join(path)}
