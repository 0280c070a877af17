"""Load on the real sidecar process: what happens at and far beyond what the machine can carry.

    python -m tests.benchmarks.bench_load

An open-loop generator: searches come when they come (Poisson arrivals), whether or not the ones
before were answered, as users do. First the capacity is measured, with as many callers as cores
and half as many again, each asking again as soon as it is answered; then 0.5, 1, 2 and 10 times
that. Nine searches in ten are small (20 hits, 5 passages), one is large (100 hits, 20 passages).

The generator and the sidecar share the machine's cores: what is printed is a lower bound.

    python -m tests.benchmarks.bench_load --requests 100000

sends so many tiny searches instead (one title each, every tenth with its passage), and prints what
the process holds on the way: memory and open files. Of a hundred callers one hangs up at once, and
one sends no JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plugin.ports import free_port
from plugin.sidecar.process import SidecarProcess
from plugin.sidecar.protocol import DEADLINE_HEADER
from reranker.cores import usable_cores

WORDS = [
    "merge",
    "sorted",
    "list",
    "python",
    "heap",
    "queue",
    "module",
    "file",
    "read",
    "write",
    "line",
    "open",
    "close",
    "number",
    "string",
    "search",
    "engine",
    "title",
    "passage",
    "iterator",
    "generator",
    "returns",
    "keeps",
    "order",
    "input",
    "output",
    "several",
]
LARGE_SHARE = 0.1
_ROWS = 20  # of the table of many requests
_EVERY = 100  # of so many requests one is hung up, and one is no search


class Size(NamedTuple):
    """How much a search asks for."""

    hits: int
    passages: int
    title_words: int = 6
    passage_words: int = 100


LARGE = Size(hits=100, passages=20)
SMALL = Size(hits=20, passages=5)
TITLE = Size(hits=1, passages=0, title_words=3, passage_words=10)
PASSAGE = TITLE._replace(passages=1)


class Body(NamedTuple):
    """A search, ready to be sent."""

    large: bool
    data: bytes


class Outcome(NamedTuple):
    """What became of one search; status 0 where no answer came."""

    large: bool
    status: int
    seconds: float
    complete: bool
    passages: int


class Used(NamedTuple):
    """What a sidecar uses: resident memory in MB, CPU seconds since its start, open files."""

    megabytes: float
    cpu_seconds: float
    open_files: int


class Callers:
    """Connections to one sidecar, used again."""

    def __init__(self, port: int, limit_seconds: float) -> None:
        self._port = port
        self._limit = limit_seconds
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, body: Body) -> Outcome:
        """Send one search and wait for what comes of it."""
        begun = time.perf_counter()
        try:
            status, answer = await asyncio.wait_for(self._exchange(body.data), self._limit)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            return Outcome(body.large, 0, time.perf_counter() - begun, False, 0)
        seconds = time.perf_counter() - begun
        if status != 200:
            return Outcome(body.large, status, seconds, False, 0)
        said = json.loads(answer)
        passages = sum(s["scored"] for s in said["stages"] if s["name"] == "passage")
        return Outcome(body.large, status, seconds, said["complete"], passages)

    async def used(self) -> Used:
        """What the sidecar says that it uses."""
        _, text = await self._exchange(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        numbers = dict(line.rsplit(" ", 1) for line in text.decode().splitlines())
        return Used(
            float(numbers["process_resident_memory_bytes"]) / 1e6,
            float(numbers["process_cpu_seconds_total"]),
            int(float(numbers["process_open_fds"])),
        )

    async def hang_up(self, body: Body) -> None:
        """Send one search, and do not wait for its answer."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(body.data)
        await writer.drain()
        writer.close()

    async def close(self) -> None:
        """Close what is idle, which is all once nobody asks."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()

    async def _exchange(self, data: bytes) -> tuple[int, bytes]:
        reader, writer = (
            self._idle.pop()
            if self._idle
            else await asyncio.open_connection("127.0.0.1", self._port)
        )
        try:
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return int(head.split()[1]), answer


def make_body(rng: random.Random, deadline_ms: float | None, size: Size | None = None) -> Body:
    """Make a search like no other, so that nothing can be remembered."""
    if size is None:
        size = LARGE if rng.random() < LARGE_SHARE else SMALL
    search = {
        "query": " ".join(rng.choices(WORDS, k=4)),
        "hits": [
            {
                "id": str(place),
                "title": " ".join(rng.choices(WORDS, k=size.title_words)),
                "passage": " ".join(rng.choices(WORDS, k=size.passage_words)),
                "score": size.hits - place,
            }
            for place in range(size.hits)
        ],
        "passage_depth": size.passages,
        "deadline_ms": deadline_ms,
    }
    return request(json.dumps(search).encode(), deadline_ms, large=size is LARGE)


def request(data: bytes, deadline_ms: float | None, large: bool = False) -> Body:
    """Put the head before a body."""
    head = (
        "POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n"
    )
    if deadline_ms is not None:  # as the plugin does
        head += f"{DEADLINE_HEADER}: {deadline_ms:g}\r\n"
    return Body(large, f"{head}\r\n".encode() + data)


def callers_at_once() -> int:
    """As many as keep every core at work, without a line to speak of."""
    return usable_cores() + usable_cores() // 2


async def closed_loop(callers: Callers, bodies: Sequence[Body], seconds: float) -> float:
    """Searches a second with few callers, each asking again once it is answered."""
    end = time.perf_counter() + seconds
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        place = number
        while time.perf_counter() < end:
            outcome = await callers.ask(bodies[place % len(bodies)])
            done += outcome.status == 200
            place += 7

    begun = time.perf_counter()
    await asyncio.gather(*(caller(n) for n in range(callers_at_once())))
    return done / (time.perf_counter() - begun)


async def open_loop(
    callers: Callers, bodies: Sequence[Body], rate: float, seconds: float, rng: random.Random
) -> list[Outcome]:
    """Searches at a rate, whatever becomes of those before."""
    asked: list[asyncio.Task[Outcome]] = []
    begun = time.perf_counter()
    moment = 0.0
    while (moment := moment + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, begun + moment - time.perf_counter()))
        asked.append(asyncio.ensure_future(callers.ask(bodies[len(asked) % len(bodies)])))
    return list(await asyncio.gather(*asked))


def in_time(found: Sequence[Outcome], deadline_ms: float) -> list[Outcome]:
    """Those answered within the time that they had."""
    return [one for one in found if one.status == 200 and one.seconds * 1000 <= deadline_ms]


def row(
    factor: float, seconds: float, deadline_ms: float, found: Sequence[Outcome], used: Used
) -> str:
    """One line of the table: what became of all searches in so many seconds of that load."""
    answered = [outcome for outcome in found if outcome.status == 200]
    good = in_time(found, deadline_ms)
    statuses = Counter(outcome.status for outcome in found)
    times = np.array([outcome.seconds * 1000 for outcome in answered] or [np.nan])
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    shares = []
    for large in (False, True):
        asked = [outcome for outcome in found if outcome.large is large]
        shares.append(sum(o.status == 200 for o in asked) / max(len(asked), 1))
    passages = sum(outcome.passages for outcome in good) / seconds
    complete = sum(outcome.complete for outcome in answered) / max(len(answered), 1)
    other = len(found) - statuses[200] - statuses[429] - statuses[503]
    return (
        f"| {factor:g}x | {len(found) / seconds:.1f} | {len(good) / seconds:.1f} | {passages:.0f} "
        f"| {len(good) / used.cpu_seconds:.1f} | {complete:.0%} "
        f"| {statuses[429]} / {statuses[503]} / {other} | {shares[0]:.0%} / {shares[1]:.0%} "
        f"| {p50:.0f} | {p95:.0f} | {p99:.0f} | {used.megabytes:.0f} |"
    )


async def measure(arguments: argparse.Namespace, port: int) -> None:
    """Measure the capacity, then every factor, and print the table."""
    rng = random.Random(0)
    bodies = [make_body(rng, None) for _ in range(200)]
    hurried = [make_body(rng, arguments.deadline_ms) for _ in range(500)]
    callers = Callers(port, limit_seconds=arguments.deadline_ms / 1000 + 5)
    await closed_loop(callers, bodies, arguments.seconds / 4)  # to warm up
    capacity = await closed_loop(callers, bodies, arguments.seconds)
    megabytes = (await callers.used()).megabytes
    print(f"capacity: {capacity:.1f} searches/s; memory {megabytes:.0f} MB")
    found: dict[float, list[Outcome]] = {factor: [] for factor in arguments.factors}
    used: dict[float, Used] = {}
    for _ in range(arguments.rounds):  # in turn: what else the machine does is then of all alike
        for factor in arguments.factors:
            before = await callers.used()
            rate = factor * capacity
            found[factor] += await open_loop(callers, hurried, rate, arguments.seconds, rng)
            after = await callers.used()
            cpu = after.cpu_seconds - before.cpu_seconds
            if factor in used:
                cpu += used[factor].cpu_seconds
            used[factor] = after._replace(cpu_seconds=cpu)
    print(
        "| load | asked/s | in time/s | passages/s | in time per CPU s | complete "
        "| 429 / 503 / other | answered small / large | p50 ms | p95 | p99 | MB |"
    )
    print("| --- " * 12 + "|")
    seconds = arguments.rounds * arguments.seconds
    for factor in arguments.factors:
        print(row(factor, seconds, arguments.deadline_ms, found[factor], used[factor]))
    counts = {factor: len(in_time(found[factor], arguments.deadline_ms)) for factor in found}
    most, peak = max(counts), max(counts, key=lambda factor: counts[factor])
    share = counts[most] / max(counts[peak], 1)
    print(f"\nat {most:g}x, in time: {share:.0%} of the peak's, which is at {peak:g}x")
    await callers.close()


async def endure(requests: int, port: int) -> None:
    """Send so many requests, and print what the sidecar holds after each twentieth of them."""
    rng = random.Random(0)
    callers = Callers(port, limit_seconds=60)
    statuses: Counter[int] = Counter()
    sent = hung_up = 0
    begun = time.perf_counter()

    async def caller(until: int) -> None:
        nonlocal sent, hung_up
        while sent < until:
            sent += 1
            kind = sent % _EVERY
            body = make_body(rng, None, PASSAGE if sent % 10 == 5 else TITLE)
            if kind == 0:
                await callers.hang_up(body)
                hung_up += 1
            elif kind == 1:
                statuses[(await callers.ask(request(b"no JSON", None))).status] += 1
            else:
                statuses[(await callers.ask(body)).status] += 1

    print("| requests | seconds | MB | open files | 200 / 400 / other | hung up |")
    print("| --- " * 6 + "|")
    for row in range(_ROWS + 1):
        until = requests * row // _ROWS
        await asyncio.gather(*(caller(until) for _ in range(callers_at_once())))
        used = await callers.used()
        other = statuses.total() - statuses[200] - statuses[400]
        print(
            f"| {sent} | {time.perf_counter() - begun:.0f} | {used.megabytes:.0f} "
            f"| {used.open_files} | {statuses[200]} / {statuses[400]} / {other} | {hung_up} |",
            flush=True,
        )
    await callers.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Start a sidecar, load it, print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30, help="of each load in a round")
    parser.add_argument("--rounds", type=int, default=1, help="over all loads")
    parser.add_argument("--deadline-ms", type=float, default=2000, help="of every search")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1, 2, 10])
    parser.add_argument("--requests", type=int, help="so many in place of the loads, for memory")
    arguments = parser.parse_args(argv)
    port = free_port()
    with SidecarProcess("127.0.0.1", port) as sidecar:
        print(sidecar.wait(), file=sys.stderr)
        asyncio.run(
            endure(arguments.requests, port) if arguments.requests else measure(arguments, port)
        )


if __name__ == "__main__":
    main()
