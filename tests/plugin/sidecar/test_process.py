"""`titlecast serve` as a process: what operators do to it, and what machines do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugin.ports import free_port
from reranker.stages import SHIPPED
from tests.plugin.sidecar.fakes import sample, search
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
SERVE = (sys.executable, "-m", "plugin.cli.main", "serve")
PATIENCE = 300.0
HITS = [{"id": str(n), "title": f"merge {n} lists", "passage": "sorted " * 60} for n in range(20)]


class Process:
    """A sidecar and a client of it."""

    def __init__(self, popen: subprocess.Popen[bytes], client: httpx.Client) -> None:
        self.popen = popen
        self.client = client

    def get(self, path: str) -> int:
        """The status of a GET; 0 where nobody answers."""
        assert self.popen.poll() is None
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def number(self, name: str) -> float:
        """The value of a metric; 0 where it is not there."""
        return sample(self.client, name)

    def wait(self, name: str, value: float) -> None:
        """Wait for a metric: an answer is counted once it is sent, maybe by another worker."""
        wait_until(lambda: self.number(name) >= value, PATIENCE)


def connected(address: str | httpx.URL) -> httpx.Client:
    """A client with connections of its own, which any of several workers may accept."""
    return httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False)


@contextlib.contextmanager
def process(
    *options: str, log: Any = None, files: int = 0, before: Sequence[str] = (), **settings: Any
) -> Iterator[Process]:
    """A ready sidecar; it has ended when the block is left.

    `before` is a command that runs its arguments in its own place.
    """
    environ = {name: text for name, text in os.environ.items() if "TITLECAST" not in name}
    environ |= {f"TITLECAST_{name.upper()}": str(value) for name, value in settings.items()}
    port = free_port()
    command = [*before, *SERVE, f"--port={port}", *options]

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with (
        subprocess.Popen(
            [*command, "--until-eof"],
            cwd=REPOSITORY,
            env=environ,
            stdin=subprocess.PIPE,
            stderr=log,
            preexec_fn=limit_files if files else None,
        ) as popen,
        connected(f"http://127.0.0.1:{port}") as client,
    ):
        try:
            served = Process(popen, client)
            wait_until(lambda: served.get("/readyz") == 200, PATIENCE)
            yield served
        finally:
            assert popen.stdin
            popen.stdin.close()
            try:
                popen.wait(PATIENCE)
            finally:
                popen.kill()


DONE = 'titlecast_model_reloads_total{outcome="done"}'
FAILED = 'titlecast_model_reloads_total{outcome="failed"}'
GONE = 'titlecast_requests_total{outcome="caller_gone",path="/rerank"}'
ANSWERED = 'titlecast_requests_total{outcome="answered",path="/rerank"}'


def test_whatever_happens_to_it_searches_are_answered(tmp_path: Path) -> None:
    models = linked_models(tmp_path / "models")
    with (
        Path("/dev/full").open("wb") as full,  # as a disk is that the log has filled
        process("--threads=1", f"--model={models}", log=full, files=100) as sidecar,
    ):
        client = sidecar.client

        def answered() -> bool:
            response = client.post("/rerank", json=search(hits=HITS))
            return response.status_code == 200 and response.json()["complete"] is True

        assert answered()
        assert sidecar.number("titlecast_lost_log_lines_total") > 0

        # Other models, then none: those before stay.
        sidecar.popen.send_signal(signal.SIGHUP)
        sidecar.wait(DONE, 1)
        (models / "fusion.json").unlink()
        sidecar.popen.send_signal(signal.SIGHUP)
        sidecar.wait(FAILED, 1)
        assert answered()

        # Stopped: its callers go away, and what they had asked is not computed afterwards.
        sidecar.popen.send_signal(signal.SIGSTOP)
        with pytest.raises(httpx.TimeoutException):
            client.post("/rerank", json=search(hits=HITS), timeout=1)
        sidecar.popen.send_signal(signal.SIGCONT)
        assert answered()
        sidecar.wait(GONE, 1)

        # Out of file descriptors: who is connected is served, and others are once there are any.
        raws = []
        for _ in range(150):
            raw = socket.socket()
            raw.settimeout(PATIENCE)
            raw.connect((client.base_url.host, client.base_url.port or 0))
            raws.append(raw)
        assert answered()
        for raw in raws:
            raw.close()
        wait_until(
            lambda: sidecar.number("process_open_fds") < 60,
            PATIENCE,
        )
        with connected(client.base_url) as other:
            assert other.get("/readyz").status_code == 200
        assert answered()


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_no_search(workers: int) -> None:
    with process(
        "--threads=1", workers=workers, drain_seconds=600, grace_seconds=240, max_concurrent=1
    ) as sidecar:
        wait_until(lambda: sidecar.number("titlecast_ready") == workers, PATIENCE)
        statuses: list[int] = []

        def ask() -> None:
            """Ask, as a balanced client does, until the sidecar says that it is leaving."""
            with connected(sidecar.client.base_url) as client:
                while True:
                    response = client.post("/rerank", json=search(hits=HITS))
                    statuses.append(response.status_code)
                    if response.headers.get("connection") == "close":
                        return

        callers = [threading.Thread(target=ask) for _ in range(4)]
        for caller in callers:
            caller.start()
        wait_until(lambda: len(statuses) > 8, PATIENCE)
        sidecar.popen.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join()
        # Who has not noticed yet is served on, also on a new connection, and can notice.
        with connected(sidecar.client.base_url) as late:
            assert late.get("/readyz").status_code == 503
        callers = [threading.Thread(target=ask) for _ in range(8)]
        before = len(statuses)
        for caller in callers:
            caller.start()

        def all_asked() -> bool:
            """Whether no caller is on its way still: it would be refused, and rightly."""
            # The last step first: who moves on between two looks is missed, not counted twice.
            found = len(statuses) - before
            found += int(sidecar.number("titlecast_computed_requests"))
            return found + sidecar.number("titlecast_waiting_requests") >= 8

        wait_until(all_asked, PATIENCE)
        sidecar.popen.send_signal(signal.SIGTERM)  # without the rest of that time
        time.sleep(0.3)
        sidecar.popen.send_signal(signal.SIGTERM)  # impatience changes nothing more
        for caller in callers:  # what is under way is finished
            caller.join()
        assert sidecar.popen.wait(PATIENCE) == 0
    assert set(statuses) == {200}
    assert len(statuses) > 8 + 4 + 7


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid: int) -> bool:
    """Whether a process is no more, or only waits for somebody to ask how it ended."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def mapped(pid: int, field: str) -> int:
    """kB of the models' weights in a process' memory, by a field of its smaps."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-", line):
            counts = line.endswith("weights.bin")
        elif counts and line.startswith(f"{field}:"):
            total += int(line.split()[1])
    return total


def test_several_workers_share_a_port_their_numbers_and_their_weights() -> None:
    with process("--threads=1", "--workers=2") as sidecar:
        wait_until(lambda: sidecar.number("titlecast_ready") == 2, PATIENCE)
        workers = children(sidecar.popen.pid)
        assert len(workers) == 2

        def ask(count: int) -> None:
            for _ in range(count):  # each on a connection of its own, which either may accept
                with connected(sidecar.client.base_url) as client:
                    assert client.post("/rerank", json=search(hits=HITS)).status_code == 200

        ask(10)
        sidecar.wait(ANSWERED, 10)
        assert sidecar.number(ANSWERED) == 10  # whichever of them is asked
        for worker in workers:  # the file itself, not a copy of it
            assert mapped(worker, "Rss") > 0
            assert mapped(worker, "Private_Dirty") == 0

        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(sidecar.popen.pid)) - {workers[0]}) == 2, PATIENCE)
        sidecar.client.close()
        sidecar.client = connected(sidecar.client.base_url)
        with sidecar.client:
            wait_until(
                lambda: sidecar.get("/metrics") == 200 and sidecar.number("titlecast_ready") == 2,
                PATIENCE,
            )
            ask(5)
            sidecar.wait(ANSWERED, 15)
            assert sidecar.number(ANSWERED) == 15
            survivors = children(sidecar.popen.pid)
            sidecar.popen.send_signal(signal.SIGTERM)
            assert sidecar.popen.wait(PATIENCE) == 0
    for pid in survivors:
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists())


def test_a_signal_to_the_whole_group_ends_no_worker_before_its_time() -> None:
    with process("--threads=1", "--workers=2", drain_seconds=600) as sidecar:
        wait_until(lambda: sidecar.number("titlecast_ready") == 2, PATIENCE)
        workers = children(sidecar.popen.pid)
        sidecar.popen.send_signal(signal.SIGTERM)  # as systemd sends it to the parent ...

        def ready() -> float:
            with connected(sidecar.client.base_url) as client:
                return sample(client, "titlecast_ready")

        wait_until(lambda: ready() == 0, PATIENCE)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for worker in workers:  # ... and to the others
                os.kill(worker, number)
        time.sleep(1)
        assert children(sidecar.popen.pid) == workers
        with connected(sidecar.client.base_url) as client:
            assert client.post("/rerank", json=search(hits=HITS)).status_code == 200
        sidecar.popen.send_signal(signal.SIGTERM)
        assert sidecar.popen.wait(PATIENCE) == 0
        assert all(ended(worker) for worker in workers)


def test_a_worker_that_is_just_started_loads_anew_as_all_do() -> None:
    with process("--threads=1", "--workers=2") as sidecar:

        def number(name: str) -> float:
            with connected(sidecar.client.base_url) as client:
                return sample(client, name)

        wait_until(lambda: number("titlecast_ready") == 2, PATIENCE)
        before = set(children(sidecar.popen.pid))
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(set(children(sidecar.popen.pid)) - before) == 1, PATIENCE)
        now = children(sidecar.popen.pid)
        sidecar.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: number(DONE) == 2, PATIENCE)
        assert children(sidecar.popen.pid) == now


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores or catches a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"^Sig(?:Ign|Cgt):\s+([0-9a-f]+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def test_sighup_while_it_starts_is_noted() -> None:
    with subprocess.Popen(
        [*SERVE, f"--port={(port := free_port())}", "--threads=1"],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    ) as popen:
        try:
            wait_until(lambda: handles(popen.pid, signal.SIGHUP), PATIENCE)
            with connected(f"http://127.0.0.1:{port}") as client:
                served = Process(popen, client)

                def ready() -> bool:
                    popen.send_signal(signal.SIGHUP)
                    return served.get("/readyz") == 200

                wait_until(ready, PATIENCE)
                served.wait(DONE, 1)
        finally:
            popen.terminate()
        assert popen.wait(PATIENCE) == 0


@pytest.mark.parametrize(("command", "ignored"), [("serve", True), ("index", False)])
def test_sighup_ends_no_sidecar_that_only_begins_to_start(command: str, ignored: bool) -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # under nohup, too
        "import plugin.cli; assert 'typer' not in sys.modules;"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--debug", command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == f"{ignored}\n"


def linked_models(folder: Path) -> Path:
    """A folder of the shipped models, of which a file can be taken away."""
    folder.mkdir()
    for name in ("title", "passage", "fusion.json"):
        (folder / name).symlink_to(SHIPPED / name)
    return folder


def test_a_worker_that_cannot_be_replaced_costs_no_search(tmp_path: Path) -> None:
    models = linked_models(tmp_path / "models")
    log = tmp_path / "log"
    with (
        log.open("wb") as written,
        process("--threads=1", "--workers=2", f"--model={models}", log=written) as sidecar,
    ):

        def number(name: str) -> float:
            with connected(sidecar.client.base_url) as client:  # either may accept
                return sample(client, name)

        wait_until(lambda: number("titlecast_ready") == 2, PATIENCE)
        workers = children(sidecar.popen.pid)
        statuses: list[int] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                with connected(sidecar.client.base_url) as client:
                    response = client.post("/rerank", json=search(hits=HITS[:3]))
                    statuses.append(response.status_code)

        (models / "fusion.json").unlink()
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: workers[0] not in children(sidecar.popen.pid), PATIENCE)
        caller = threading.Thread(target=ask)
        caller.start()
        try:
            # Each that follows cannot start, and one worker goes on.
            failed = 'titlecast_worker_ends_total{status="1"}'
            wait_until(lambda: number(failed) >= 2, PATIENCE)
            assert number('titlecast_worker_ends_total{status="-9"}') == 1
            assert number("titlecast_ready") == 1
            assert workers[1] in children(sidecar.popen.pid)
            # Once it can be replaced, it is.
            (models / "fusion.json").symlink_to(SHIPPED / "fusion.json")
            wait_until(lambda: number("titlecast_ready") == 2, PATIENCE)
            sidecar.popen.send_signal(signal.SIGHUP)  # which is handed on to all
            wait_until(lambda: number(DONE) == 2, PATIENCE)
        finally:
            over.set()
            caller.join()
        assert len(statuses) > 10
        assert set(statuses) == {200}
        sidecar.popen.send_signal(signal.SIGTERM)
        assert sidecar.popen.wait(PATIENCE) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines() if "wait_seconds" in line]
    waits = [line["wait_seconds"] for line in lines]
    assert waits == [min(2.0**n, 60) for n in range(len(waits))]
    assert [line["status"] for line in lines] == [-9] + [1] * (len(waits) - 1)
    assert "the models cannot be loaded" in log.read_text()


def test_where_no_process_can_be_started_those_that_serve_go_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as written,
        process("--threads=1", "--workers=2", log=written) as sidecar,
    ):

        def number(name: str) -> float:
            with connected(sidecar.client.base_url) as client:
                return sample(client, name)

        wait_until(lambda: number("titlecast_ready") == 2, PATIENCE)
        pid, (killed, other) = sidecar.popen.pid, children(sidecar.popen.pid)
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        open_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files - 1, limit[1]))
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: "no worker could be started" in log.read_text(), PATIENCE)
        assert children(pid) == [other]
        with connected(sidecar.client.base_url) as client:
            assert client.post("/rerank", json=search(hits=HITS)).status_code == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        wait_until(lambda: number("titlecast_ready") == 2, PATIENCE)
        assert other in children(pid)


def test_where_no_worker_could_start_all_end_at_once_with_its_status(tmp_path: Path) -> None:
    models = linked_models(tmp_path / "models")
    (models / "fusion.json").unlink()
    status, said = titlecast("serve", "--port=0", "--workers=2", f"--model={models}")
    assert status == 1
    assert "the models cannot be loaded" in said
    assert "another takes its place" not in said


def small_disk(folder: Path, size: str) -> list[str]:
    """A command that gives its arguments' process a temporary folder on a disk of its own.

    Nobody else sees it, except by way of the process' `/proc/PID/root`, and it is gone with it.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = 'mount -t tmpfs -o "size=$0" tmpfs "$TMPDIR" && exec "$@"'
    command = ["unshare", *user, "--mount", "env", f"TMPDIR={folder}", "sh", "-c", mount, size]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of its own can be given to a process here: {error}")
    return command


def test_workers_count_on_when_the_disk_of_their_numbers_is_full(tmp_path: Path) -> None:
    alone = small_disk(tmp_path, "4m")
    with process("--threads=1", "--workers=2", before=alone) as sidecar:
        wait_until(lambda: sidecar.number("titlecast_ready") == 2, PATIENCE)
        full = Path(f"/proc/{sidecar.popen.pid}/root{tmp_path}/full")
        with full.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(full).free == 0
        workers = children(sidecar.popen.pid)
        asked = 0

        def ask(count: int) -> None:
            nonlocal asked
            asked += count
            for _ in range(count):  # each on a connection of its own, which either may accept
                with connected(sidecar.client.base_url) as client:
                    # Paths, outcomes and stages that were not counted before.
                    for path in ("/rerank", "/v1/rerank", "/nowhere", "/openapi.json"):
                        client.post(path, json={})
                    assert client.post("/rerank", json=search(hits=HITS)).status_code == 200

        ask(20)
        sidecar.wait(ANSWERED, asked)  # or the next one's death would come before
        assert children(sidecar.popen.pid) == workers
        # Who takes a dead one's place needs no room either.
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(sidecar.popen.pid)) - {workers[0]}) == 2, PATIENCE)
        sidecar.client.close()
        sidecar.client = connected(sidecar.client.base_url)
        with sidecar.client:
            wait_until(lambda: sidecar.number("titlecast_ready") == 2, PATIENCE)
            workers = children(sidecar.popen.pid)
            ask(20)
            assert children(sidecar.popen.pid) == workers
            sidecar.wait(ANSWERED, asked)
            assert sidecar.number(ANSWERED) == asked
            # None outlives the process that started it, however that ends.
            sidecar.popen.kill()
    for worker in workers:
        wait_until(lambda worker=worker: ended(worker), PATIENCE)


def test_without_room_for_their_numbers_no_workers_start(tmp_path: Path) -> None:
    alone = small_disk(tmp_path, "1m")
    done = subprocess.run(
        [*alone, *SERVE, f"--port={free_port()}", "--workers=2"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "no room for the numbers of 2 workers, 2304 KiB" in done.stderr
    assert "TMPDIR" in done.stderr


def titlecast(*arguments: str, **settings: str) -> tuple[int, str]:
    """The status of a command, and all that it printed."""
    environ = {name: text for name, text in os.environ.items() if "TITLECAST" not in name}
    found = subprocess.run(
        [*SERVE[:-1], *arguments],
        cwd=REPOSITORY,
        env=environ | {f"TITLECAST_{name.upper()}": text for name, text in settings.items()},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return found.returncode, found.stdout + found.stderr


def check(*options: str, **settings: str) -> tuple[int, str]:
    status, said = titlecast("serve", "--check", *options, **settings)
    assert "Traceback" not in said
    return status, said


def test_check_says_what_would_be_served() -> None:
    status, said = check("--port=9001", api_key="open-sesame another", max_hits="77")
    assert status == 0
    assert "would serve http://127.0.0.1:9001" in said
    assert "keys: 2" in said
    assert "sesame" not in said
    assert "TITLECAST_MAX_HITS=77" in said
    assert re.search(r"models: titlecast-\S+, hash [0-9a-f]{16}", said)


def test_check_names_what_cannot_be(tmp_path: Path) -> None:
    config = tmp_path / "settings"
    config.write_text("TITLECAST_MAX_HIT=7\n")
    status, said = check(f"--config={config}")
    assert status == 2
    assert "no setting TITLECAST_MAX_HIT:" in said
    (tmp_path / "models").mkdir()
    status, said = check(f"--model={tmp_path / 'models'}")
    assert status == 2
    assert "holds no model" in said


@pytest.mark.parametrize(
    ("where", "content", "words"),
    [
        ("environment", "open-sesame schlüssel", "visible ASCII"),
        ("file", "TITLECAST_API_KEY='open-sesame schlüssel'", "visible ASCII"),
        ("file", "TITLECAST_API_KEYS=open-sesame", "no setting TITLECAST_API_KEYS"),
        ("file", "TITLECAST_API_KEY=open-sesame\nTITLECAST_API_KEY_FILE=keys", "not both"),
        ("key file", "open-sesame with-a-space", "visible ASCII"),
    ],
)
def test_a_key_that_cannot_be_used_is_never_printed(
    tmp_path: Path, where: str, content: str, words: str
) -> None:
    file = tmp_path / "content"
    file.write_text(content, "utf-8")
    names = {"environment": "api_key", "file": "config", "key file": "api_key_file"}
    settings = {names[where]: content if where == "environment" else str(file)}
    for arguments, status, traced in (
        (["serve", "--check"], 2, False),
        (["--debug", "serve", "--port=0"], 1, True),  # with the trace of all that led to it
    ):
        found, said = titlecast(*arguments, **settings)
        assert found == status, arguments
        assert words in " ".join(said.split())
        assert ("Traceback" in said) is traced
        assert "sesame" not in said
