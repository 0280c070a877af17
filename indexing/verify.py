"""Comparing an index with what was sent to it, in memory that does not grow with the corpus."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from opensearchpy import OpenSearch
from opensearchpy.exceptions import NotFoundError

from indexing.bulk import KEY_BYTES, Action, IndexingError, source_of
from indexing.mapping import VECTOR

SAMPLES = 100
_AT_ONCE = 10  # documents fetched with one request: each can be large
_REFRESH_SECONDS = 600.0  # the first one writes all that is still in the engine's memory
_KEYS_AT_ONCE = 1 << 20
_NO_LIMIT = b"\xff" * (KEY_BYTES + 1)


class Sample(NamedTuple):
    """What a document must look like in the index."""

    key: str
    id: str
    position: int
    fields: dict[str, str]  # a digest of each field's value


class Samples:
    """A random sample of the ids acknowledged so far: those with the smallest keys.

    Keys are evenly spread over all ids, so it does not matter in which order they come, nor
    that some come again. Of several documents with one id the last of the source counts.
    """

    def __init__(self, found: Iterable[Sample] = (), size: int = SAMPLES) -> None:
        self._size = size
        self._found = {bytes.fromhex(sample.key): sample for sample in found}
        self._largest = self._limit()

    def add(self, actions: Iterable[Action]) -> None:
        """Take those that belong to the sample."""
        for action in actions:
            if action.key > self._largest:
                continue
            known = self._found.get(action.key)
            if known is None or known.position <= action.position:
                self._found[action.key] = _sample(action)
                if len(self._found) > self._size:
                    del self._found[max(self._found)]
                self._largest = self._limit()

    def __iter__(self) -> Any:
        return iter(sorted(self._found.values()))

    def _limit(self) -> bytes:
        return max(self._found) if len(self._found) >= self._size else _NO_LIMIT


def compare(client: OpenSearch, index: str, samples: Iterable[Sample]) -> list[str]:
    """Compare the index's documents with a sample, field by field; name what differs."""
    wanted = list(samples)
    found: list[str] = []
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        documents = client.mget(body={"ids": [sample.id for sample in part]}, index=index)["docs"]
        for sample, document in zip(part, documents, strict=True):
            if not document.get("found"):
                found.append(f"document {sample.id!r} is not there")
                continue
            # What else is there was put in by the index's own ingest pipeline.
            there = _digests(document["_source"])
            found += [
                f"field {name!r} of document {sample.id!r} differs"
                for name, sent in sorted(sample.fields.items())
                if there.get(name) != sent
            ]
    return found


def distinct(keys: Path) -> int:
    """Count the distinct ids in a file of keys; about a million of them are in memory at once."""
    if not keys.exists() or not keys.stat().st_size:
        return 0
    all_keys = np.memmap(keys, dtype=">u8", mode="r")
    parts = math.ceil(len(all_keys) / _KEYS_AT_ONCE)
    # Keys are evenly spread, so equal ranges of them hold about as many each.
    total = 0
    for part in range(parts):
        low, high = part * 2**64 // parts, (part + 1) * 2**64 // parts
        pieces = []
        for start in range(0, len(all_keys), _KEYS_AT_ONCE):
            piece = all_keys[start : start + _KEYS_AT_ONCE].astype(np.uint64)
            chosen = (piece >= np.uint64(max(low, 1))) & (piece <= np.uint64(high - 1))
            pieces.append(piece[chosen])
        total += len(np.unique(np.concatenate(pieces)))
    return total


def count(client: OpenSearch, index: str) -> int:
    """Give the number of documents in an index, which is refreshed first.

    Raises `IndexingError` if there is no such index.
    """
    try:
        client.indices.refresh(index=index, params={"request_timeout": _REFRESH_SECONDS})
        # Not the API for counting: it runs the index's default search pipeline.
        answer = client.search(
            index=index,
            body={"size": 0, "track_total_hits": True},
            params={"search_pipeline": "_none", "allow_partial_search_results": "false"},
        )
    except NotFoundError as error:
        raise IndexingError(f"there is no index {index}: create it first") from error
    return cast("int", answer["hits"]["total"]["value"])


def _sample(action: Action) -> Sample:
    return Sample(action.key.hex(), action.id, action.position, _digests(source_of(action)))


def _digests(source: dict[str, Any]) -> dict[str, str]:
    return {
        name: hashlib.blake2b(_written(name, value), digest_size=KEY_BYTES).hexdigest()
        for name, value in source.items()
    }


def _written(name: str, value: object) -> bytes:
    if name == VECTOR and isinstance(value, list):
        # The k-NN plugin may keep the numbers only and write them anew, to another digit.
        with contextlib.suppress(TypeError, ValueError):
            return np.asarray(value, np.float32).tobytes()
    return json.dumps(value, sort_keys=True).encode()
