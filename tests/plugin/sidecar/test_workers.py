"""When a dead worker's place is taken again; what a supervisor does is in `test_process.py`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plugin.sidecar.workers import Workers, _Place
from tests.waiting import wait_until

# Keeps what it is told, until that is to end.
NOTES = """
import os, sys
with open(sys.argv[1], "ab", buffering=0) as told:
    while read := os.read(0, 1):
        told.write(read)
        if read == b"e":
            break
"""


def test_a_worker_whose_start_a_signal_interrupts_is_told_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            os.kill(os.getpid(), signal.SIGHUP)  # its process is there, nobody knows it yet

    monkeypatch.setattr("plugin.sidecar.workers.subprocess.Popen", Interrupted)
    with socket.socket() as listener:
        workers = Workers([sys.executable, "-c", NOTES, str(told)], listener, 1)

        def stop() -> None:
            with contextlib.suppress(AssertionError):
                wait_until(lambda: told.exists() and told.read_bytes() != b"", 30)
            workers.stop()

        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(stop)
            assert workers.run(grace_seconds=60) == 0
            stopped.result()
    assert told.read_bytes() == b"re"


# Accepts nobody any more once it is told to end, and is at a last search until that file is there.
FINISHES = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "began").touch()
os.read(0, 1)
os.close(int(sys.argv[3]))
(folder / "closed").touch()
while not (folder / "done").exists():
    time.sleep(0.01)
"""


def test_nobody_is_kept_waiting_at_a_port_where_all_workers_end(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        workers = Workers([sys.executable, "-c", FINISHES, str(tmp_path)], listener, 2)

        def connect() -> None:
            try:
                wait_until((tmp_path / "began").exists, 30)
                socket.create_connection(address, 10).close()
                workers.stop()
                wait_until((tmp_path / "closed").exists, 30)
                with contextlib.suppress(AssertionError):
                    wait_until(lambda: refused(address), 5)
                assert refused(address)
            finally:
                workers.stop()
                (tmp_path / "done").touch()

        with ThreadPoolExecutor(1) as pool:
            connected = pool.submit(connect)
            assert workers.run(grace_seconds=60) == 0
            connected.result()


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 10).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_waits_grow_until_a_worker_has_lived_long() -> None:
    place = _Place()
    assert place.due < 0  # the first is not waited for
    now, waits = 0.0, []
    for lived in (10, 3, 3, 3, 3, 3, 3, 3, 59, 60, 3):
        place.begun = now
        now += lived
        waits.append(place.end(now))
        assert place.due == now + waits[-1]
        now = place.due
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1, 2]
