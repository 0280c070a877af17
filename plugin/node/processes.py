"""Node processes: who they are, how they end, and the guard that ends them when nobody else can.

Run as a program, this file is the guard: a small process beside the nodes that reads their ids
from its standard input and, when that closes, ends what still runs and removes the run's folder.
The pipe closes with the process that holds its other end, however that one dies, SIGKILL
included, and whichever of its threads started the nodes; the parent-death signal of Linux does
neither on other systems nor for a thread that ends early. It imports the standard library only,
so that it can be run by its path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """A process, named so that another one that got its number later is not taken for it.

    `marker` is a part of its command line that no other process has.
    """

    pid: int
    marker: str

    def alive(self) -> bool:
        """Tell whether this very process runs; a zombie does not."""
        return any(self.marker in word for word in command_line(self.pid))


def command_line(pid: int) -> list[str]:
    """Return the words of a process's command line, empty where there is no such process.

    Where the system does not tell the words apart (macOS), they are one string.
    """
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return []
    listing = subprocess.run(  # no /proc: macOS
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return [listing.stdout]


def terminate(processes: Iterable[ProcessId], grace: float) -> list[ProcessId]:
    """End processes: SIGTERM to all, SIGKILL to those left after `grace` seconds.

    Returns those that needed SIGKILL. Only a process whose marker matches gets a signal.
    """
    running = [process for process in processes if process.alive()]
    _signal(running, signal.SIGTERM)
    running = _wait_gone(running, grace)
    _signal(running, signal.SIGKILL)
    _wait_gone(running, 10.0)
    return running


def _signal(processes: Iterable[ProcessId], number: signal.Signals) -> None:
    for process in processes:
        if process.alive():
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue


def _wait_gone(processes: list[ProcessId], seconds: float) -> list[ProcessId]:
    limit = time.monotonic() + seconds
    while processes and time.monotonic() < limit:
        time.sleep(0.05)
        processes = [process for process in processes if process.alive()]
    return processes


class Guard:
    """The guard process, seen from the one whose death it waits for."""

    def __init__(self, folder: Path) -> None:
        # A session of its own: Ctrl-C in the terminal must not reach it before us.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def watch(self, process: ProcessId) -> None:
        """Have a process ended when this one is gone."""
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        self._process.stdin.write(json.dumps([process.pid, process.marker]) + "\n")
        self._process.stdin.flush()

    def release(self) -> None:
        """Close the pipe and wait until the guard has ended."""
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        with contextlib.suppress(BrokenPipeError):  # somebody ended the guard
            self._process.stdin.close()
        self._process.wait()


def _guard(folder: Path) -> None:
    processes = [ProcessId(*json.loads(line)) for line in sys.stdin]
    terminate(processes, grace=10.0)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
