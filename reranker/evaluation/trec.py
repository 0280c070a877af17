"""TREC run files in and out: `query-id Q0 document-id rank score tag`, one line per hit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from reranker.evaluation.collections import open_text

# Only the document id may hold blanks: page titles do, and are ids here.
_LINE = re.compile(r"(\S+)[ \t]+(\S+)[ \t]+(.*\S)[ \t]+(\S+)[ \t]+(\S+)[ \t]+(\S+)")


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a run: query id -> (document id, score), best first.

    As in trec_eval the scores decide, not the ranks; equal scores keep the order of the file.
    A document that comes twice for a query counts once, where it scored best.

    Raises ValueError, with the line, for what is not a run.
    """
    run: dict[str, list[tuple[str, float]]] = {}
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            found = _LINE.fullmatch(line.strip(" \t\r\n"))
            score = _number(found[5]) if found else math.nan
            if not found or math.isnan(score):
                raise ValueError(
                    f"{path}, line {number} is not `query-id Q0 document-id rank score tag`; "
                    "give a TREC run file."
                )
            run.setdefault(found[1], []).append((found[3], score))
    for query_id, hits in run.items():
        hits.sort(key=lambda hit: -hit[1])
        best: dict[str, float] = {}
        for document, score in hits:
            best.setdefault(document, score)
        run[query_id] = list(best.items())
    return run


def write_run(
    path: Path, run: Mapping[str, Sequence[tuple[str, float]]], tag: str = "titlecast"
) -> None:
    """Write a run; ranks count from 1 in the order given, scores are written in full.

    The file appears complete or not at all.

    Raises ValueError where scores rise down a ranking (a reader would see another order), or
    where an id cannot be written: query ids and the tag hold no blanks, no id a line break.
    """
    lines = []
    for query_id, hits in run.items():
        previous = math.inf
        for rank, (document, score) in enumerate(hits, start=1):
            if not score <= previous:
                raise ValueError(
                    f"Query {query_id!r}: the score of rank {rank} is {score}, after {previous}; "
                    "sort the hits by falling score."
                )
            previous = score
            line = f"{query_id} Q0 {document} {rank} {float(score)!r} {tag}"
            found = _LINE.fullmatch(line)
            if not found or (found[1], found[3], found[6]) != (query_id, document, tag):
                raise ValueError(
                    f"{(query_id, document, tag)!r} does not fit a run file; use ids "
                    "without line breaks and without blanks at their ends."
                )
            lines.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    temporary.replace(path)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
