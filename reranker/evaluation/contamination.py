"""Which queries a model was trained on: judged by their words, not by their ids.

A model folder carries `trained-on.npy`, the fingerprints of its training queries. Whoever
measures the model leaves those queries out.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

FILE = "trained-on.npy"

_NOT_A_WORD = re.compile(r"[\W_]+")


def fingerprint(text: str) -> int:
    """Give a 64-bit number for a query's words: case, punctuation and spacing do not count."""
    words = _NOT_A_WORD.sub(" ", text.casefold()).strip()
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def fingerprints(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Give the sorted, distinct fingerprints of queries, as they are stored beside weights."""
    return np.unique(np.fromiter((fingerprint(text) for text in texts), dtype=np.uint64))


def trained_on(folder: Path) -> frozenset[int] | None:
    """Fingerprints of what the models in a folder, and in the folders right in it, saw.

    None where no model says; raises ValueError for a file that holds something else.
    """
    found = sorted([*folder.glob(FILE), *folder.glob(f"*/{FILE}")])
    seen: set[int] = set()
    for path in found:
        numbers = np.load(path, allow_pickle=False)
        if numbers.dtype != np.uint64 or numbers.ndim != 1:
            raise ValueError(f"{path} holds no fingerprints: export the model again")
        seen.update(numbers.tolist())
    return frozenset(seen) if found else None
