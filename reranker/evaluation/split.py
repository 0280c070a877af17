"""Which queries may be trained on: a split by the query's text, the same on every machine.

A query is held out by its normalised text, so that the same question under another id, in
another data set or with other punctuation falls on the same side.
"""

from __future__ import annotations

from typing import Literal

from reranker.evaluation.contamination import fingerprint

Side = Literal["train", "dev", "test"]


def side(text: str) -> Side:
    """One query in 20 is for choosing ("dev"), one in 20 for reporting ("test")."""
    return {0: "dev", 1: "test"}.get(fingerprint(text) % 20, "train")  # type: ignore[return-value]
