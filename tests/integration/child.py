"""A sidecar in a process of its own, to be killed and stopped: `python -m …child PORT SECONDS`.

It is the real service over stand-in models that take so many seconds. With a third argument it
has no file descriptor left for a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from plugin.sidecar.app import build_app
from plugin.sidecar.settings import load_settings
from reranker import Hit, RerankResult
from tests.integration import corpus
from tests.integration.fakes import Backwards


class _Slow(Backwards):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def rerank(self, query: str, hits: Sequence[Hit], *options: Any, **named: Any) -> RerankResult:
        if query == corpus.QUERY:  # not while it warms up
            time.sleep(self._seconds)
        return super().rerank(query, hits, *options, **named)


async def _serve(port: int, seconds: float, exhausted: bool) -> None:
    app = build_app(_Slow(seconds), load_settings())
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, ws="none"))
    serving = asyncio.ensure_future(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if exhausted:
        used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
        with contextlib.suppress(OSError):
            while True:  # whatever is free below the limit
                os.dup(0)
    print("ready", flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]), len(sys.argv) > 3))
