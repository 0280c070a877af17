"""A sidecar whose models answer at once: what is left of a search is all that surrounds them.

It says its port on standard output and serves until its standard input ends:
`python -m tests.benchmarks.instant_sidecar`.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from plugin.sidecar.app import build_app
from plugin.sidecar.server import Server
from plugin.sidecar.settings import Settings
from reranker.records import Hit, RankedHit, RerankResult, StageReport

READ = 10  # passages, about as many as the shipped models read of 20


class Instant:
    """A reranker that turns the order around and reads nothing."""

    name = "instant"

    def cut(self, hits: Sequence[Hit], most_tokens: int) -> tuple[list[Hit], int]:
        """Cut nothing."""
        return list(hits), 0

    def rerank(
        self,
        query: str,
        hits: Sequence[Hit],
        passage_depth: int = 20,
        deadline_ms: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        early_stop: bool = True,
    ) -> RerankResult:
        """Answer with as much as models do."""
        read = min(passage_depth, READ, len(hits))
        order = list(enumerate(hits))[::-1]
        ranked = [
            RankedHit(
                id=hit.id,
                index=index,
                score=(2.0 if rank < read else 1.0) + 1 / (rank + 2),
                first_stage_score=hit.score,
                title_score=-1.0 / (rank + 3),
                passage_score=1.0 / (rank + 3) if rank < read else None,
            )
            for rank, (index, hit) in enumerate(order)
        ]
        stages = [StageReport("title", len(hits), 0.0), StageReport("passage", read, 0.0)]
        return RerankResult(ranked, stages, complete=True)


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The address of such a sidecar, a process beside this one, for the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.instant_sidecar"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError("the sidecar without models did not start: see above")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            process.wait()


def main() -> None:
    """Serve."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(port=listener.getsockname()[1])
        server = Server(build_app(Instant(), settings), settings)

        def end_with_input() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=end_with_input, daemon=True).start()
        print(settings.port, flush=True)
        server.run([listener])


if __name__ == "__main__":
    main()
