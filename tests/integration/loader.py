"""A load in a process of its own, to be killed: `python -m tests.integration.loader CONFIG`.

The configuration is one JSON object: url, folder, documents, and index or alias; `tune` too.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opensearchpy import OpenSearch

from indexing.job import Destination, Result, run
from indexing.load import Options
from indexing.records import Document, Failure, Record, Skip

# One field that text does not fit into, so that the engine refuses some documents.
BODY: dict[str, Any] = {
    "settings": {"index.number_of_shards": 2, "index.number_of_replicas": 0},
    "mappings": {"properties": {"section": {"type": "integer"}}},
}


def records(count: int) -> Iterator[Record]:
    """Documents, some of one id, some that the engine refuses, and what is no document."""
    for n in range(count):
        if n % 41 == 7:
            yield Failure(f"f:{n}", "not JSON", "{nonsense")
        elif n % 41 == 8:
            yield Skip(f"f:{n}", "no text")
        elif n % 41 == 9:
            yield Document(f"refused-{n}", "title", "text", section="no number")
        elif n % 41 == 10:
            yield Document(f"again-{n % 5}", f"title {n}", "text")
        else:
            yield Document(f"d-{n}", f"title {n}", f"passage {n} " * 20, {"number": n})


def expected(count: int) -> dict[str, dict[str, object]]:
    """What the index must hold: the slow way."""
    return {
        one.id: one.fields()
        for one in records(count)
        if isinstance(one, Document) and not one.section
    }


def load(config: dict[str, Any]) -> Result:
    """Load as the configuration says."""
    options = Options(
        workers=3, bulk_bytes=20_000, patience=60, request_seconds=30, checkpoint_seconds=0.0
    )
    with contextlib.closing(OpenSearch([config["url"]], max_retries=0, pool_maxsize=3)) as client:
        return run(
            client,
            records(config["documents"]),
            {"documents": config["documents"]},
            Destination(
                config.get("index"),
                config.get("alias"),
                BODY,
                tune=config.get("tune", False),
                delete_old=config.get("delete_old", False),
                most_failures=1.0,
            ),
            folder=Path(config["folder"]),
            options=options,
        )


if __name__ == "__main__":
    done = load(json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps({"verified": done.summary.verified}))
