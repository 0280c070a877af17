"""Several processes at one port: started, watched, replaced when they die, and ended together."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plugin.sidecar.metrics import MULTIPROCESS, PLACE, forget_dead, make_files

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
_SECONDS_BETWEEN_STARTS = 1.0
_REFUSED = (1, 2)  # statuses of a worker that said why it cannot start: the next one could not


class Workers:
    """`count` processes that accept at one listening socket.

    Each ends when its standard input does, so none outlives this process, however that ends. One
    that dies is replaced. SIGTERM and SIGINT end all, SIGHUP is passed on.
    """

    def __init__(self, command: Sequence[str], listener: socket.socket, count: int) -> None:
        self._command = [*command, "--inherit", str(listener.fileno()), "--until-eof"]
        self._listener = listener
        self._count = count
        self._processes: dict[int, subprocess.Popen[bytes]] = {}  # by place
        self._stop: signal.Signals | None = None

    def stop(self) -> None:
        """End all; from any thread."""
        self._stop = signal.SIGINT

    def run(self, grace_seconds: float) -> int:
        """Serve until a signal comes; 0, or the status of a worker that could not start.

        Raises `OSError` where the temporary folder has no room for the workers' numbers.
        """
        handlers: dict[signal.Signals, Callable[..., None]] = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGHUP: lambda *_: self._tell(signal.SIGHUP),
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        with tempfile.TemporaryDirectory(prefix="titlecast-metrics-") as numbers:
            try:
                make_files(Path(numbers), self._count)
                return self._watch(Path(numbers))
            finally:
                self._finish(grace_seconds)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _watch(self, numbers: Path) -> int:
        self._listener.listen(2048)  # from now on callers wait for the first worker
        while self._stop is None:
            for place, process in list(self._processes.items()):
                if process.poll() is None:
                    continue
                del self._processes[place]
                _close(process)
                forget_dead(numbers, place)
                if process.returncode in _REFUSED:
                    return process.returncode
                _log.error("worker %d died (%d): replaced", process.pid, process.returncode)
                time.sleep(_SECONDS_BETWEEN_STARTS)
            for place in range(self._count):
                if place not in self._processes and self._stop is None:
                    self._processes[place] = self._start(numbers, place)
            time.sleep(_TICK_SECONDS)
        return 0

    def _start(self, numbers: Path, place: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            pass_fds=[self._listener.fileno()],
            env={**os.environ, MULTIPROCESS: str(numbers), PLACE: str(place)},
            start_new_session=True,  # Ctrl-C in the terminal is passed on by us, once
        )

    def _finish(self, grace_seconds: float) -> None:
        self._tell(self._stop or signal.SIGTERM)
        limit = time.monotonic() + grace_seconds
        for process in self._processes.values():
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)

    def _tell(self, number: signal.Signals) -> None:
        for process in list(self._processes.values()):  # a signal comes at any moment
            if process.poll() is None:
                process.send_signal(number)

    def _end(self, number: int, _: object) -> None:
        if self._stop is not None:  # asked twice: without a delay
            self._tell(signal.SIGINT)
        self._stop = signal.Signals(number)


def worker_command(options: Sequence[str]) -> list[str]:
    """The command that starts one worker."""
    return [sys.executable, "-m", "plugin.cli.main", "serve", *options]


def stop_at_eof(stop: Callable[[], None]) -> None:
    """Call `stop` when standard input ends."""

    def wait() -> None:
        while os.read(0, 4096):  # not by sys.stdin, whose lock would be held when all ends
            pass
        stop()

    threading.Thread(target=wait, name="eof", daemon=True).start()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
