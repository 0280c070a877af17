"""Several processes at one port: started, watched, replaced when they die, and ended together."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plugin.sidecar.metrics import (
    MULTIPROCESS,
    PLACE,
    WorkerEnds,
    any_ready,
    forget_dead,
    make_files,
)
from plugin.sidecar.process import child_command, child_environment

_log = logging.getLogger(__name__)

# What a worker is told by way of its standard input, a byte each: signals would be lost on one that
# does not listen yet, and reach it twice where a supervisor sends them to a whole group.
RELOAD, LEAVE, END = b"rle"

_TICK_SECONDS = 0.1
_REFUSED = (1, 2)  # statuses of a worker that said why it cannot start
# Before a dead worker's place is taken again; doubled where that one dies as well before it has
# lived as long as the longest wait.
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0


class _Place:
    """A worker, or the wait for the next one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.begun = self.due = -math.inf  # on the monotonic clock
        self._wait = 0.0

    def end(self, now: float) -> float:
        """Leave the place empty for a time, in seconds."""
        self.process = None
        if now - self.begun >= _LONGEST_WAIT_SECONDS:
            self._wait = 0.0
        self._wait = min(max(2 * self._wait, _FIRST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
        self.due = now + self._wait
        return self._wait


class Workers:
    """`count` processes that accept at one listening socket.

    Each ends when its standard input does, so none outlives this process, however that ends. The
    socket is closed with them.
    Before any has been ready, one that says that it cannot start ends all: neither could the
    others. From then on whichever ends is replaced, and its replacement too where that cannot
    start, ever more seldom; those that serve go on, and have all searches until it is ready.
    SIGTERM and SIGINT end all, SIGHUP has all load their models anew. The workers themselves heed
    no signals, only what they are told.
    """

    def __init__(self, command: Sequence[str], listener: socket.socket, count: int) -> None:
        self._command = [*command, "--inherit", str(listener.fileno())]
        self._listener = listener
        self._places = [_Place() for _ in range(count)]
        self._served = False  # some worker was ready once
        self._stop: int | None = None  # how all end: `LEAVE` or `END`
        self._reload = False  # asked for, and not yet passed on

    def stop(self) -> None:
        """End all; from any thread."""
        self._stop = END

    def run(self, grace_seconds: float) -> int:
        """Serve until a signal comes; 0, or the status of a worker that could not start.

        Raises `OSError` where the temporary folder has no room for the workers' numbers.
        """
        handlers: dict[signal.Signals, Callable[..., None]] = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGHUP: self._note_reload,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        with tempfile.TemporaryDirectory(prefix="titlecast-metrics-") as numbers:
            try:
                make_files(Path(numbers), len(self._places))
                with contextlib.closing(WorkerEnds(Path(numbers))) as ends:
                    return self._watch(Path(numbers), ends)
            finally:
                self._finish(grace_seconds)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _watch(self, numbers: Path, ends: WorkerEnds) -> int:
        self._listener.listen(2048)  # from now on callers wait for the first worker
        while self._stop is None:
            self._served = self._served or any_ready(numbers)
            for number, place in enumerate(self._places):
                now = time.monotonic()
                if place.process is None:
                    if now >= place.due and self._stop is None:
                        self._fill(place, numbers, number, now)
                elif place.process.poll() is not None:
                    process, status = place.process, place.process.returncode
                    _close(process)
                    with contextlib.suppress(OSError):  # where no file can be opened
                        forget_dead(numbers, number)
                    if status in _REFUSED and not self._served:
                        place.process = None
                        return status
                    ends.count(status)
                    wait = place.end(now)
                    _log.error(
                        "worker %d ended with status %d: another takes its place in %g s",
                        process.pid,
                        status,
                        wait,
                        extra={"place": number, "status": status, "wait_seconds": wait},
                    )
            if self._reload:
                self._reload = False
                self._tell(RELOAD)
            time.sleep(_TICK_SECONDS)
        return 0

    def _fill(self, place: _Place, numbers: Path, number: int, now: float) -> None:
        place.begun = now
        try:
            place.process = self._start(numbers, number)
        except OSError as error:  # out of processes, memory or open files, as a system may be
            if not self._served:
                raise
            wait = place.end(now)
            _log.error(
                "no worker could be started (%s): the others go on, the next try is in %g s",
                error.strerror or error,
                wait,
                extra={"place": number, "wait_seconds": wait},
            )

    def _start(self, numbers: Path, number: int) -> subprocess.Popen[bytes]:
        # Where others serve, searches are theirs until this one can answer any.
        first = ["--load-first"] if any_ready(numbers) else []
        return subprocess.Popen(
            [*self._command, *first],
            stdin=subprocess.PIPE,
            pass_fds=[self._listener.fileno()],
            env={
                **child_environment(settings=True),
                MULTIPROCESS: str(numbers),
                PLACE: str(number),
            },
            start_new_session=True,  # Ctrl-C in the terminal is for us to pass on
        )

    def _finish(self, grace_seconds: float) -> None:
        self._tell(self._stop or LEAVE)
        # Those that still accept hold it open themselves. After the last of them callers are to be
        # refused, and to ask another sidecar, instead of waiting for nobody.
        self._listener.close()
        limit = time.monotonic() + grace_seconds
        for process in self._running():
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)

    def _tell(self, order: int) -> None:
        for process in self._running():
            if process.poll() is None and process.stdin:
                with contextlib.suppress(OSError):  # it has ended just now
                    os.write(process.stdin.fileno(), bytes([order]))

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [place.process for place in self._places if place.process is not None]

    def _note_reload(self, *_: object) -> None:
        # Not told at once: a worker whose start the signal interrupts is in no place yet.
        self._reload = True

    def _end(self, number: int, _: object) -> None:
        if self._stop is not None:  # asked twice: without a delay
            self._tell(END)
        self._stop = LEAVE if number == signal.SIGTERM and self._stop is None else END


def worker_command(options: Sequence[str]) -> list[str]:
    """The command that starts one worker."""
    return child_command("serve", *options)


def follow_stdin(end: Callable[[], None], orders: Mapping[int, Callable[[], None]] = {}) -> None:
    """Call what `orders` has for each byte of standard input, and `end` when that ends."""

    def follow() -> None:
        while read := os.read(0, 4096):  # not by sys.stdin, whose lock would be held when all ends
            for order in read:
                if act := orders.get(order):
                    act()
        end()

    threading.Thread(target=follow, name="stdin", daemon=True).start()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
