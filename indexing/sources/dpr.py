r"""DPR's Wikipedia passages for Natural Questions, `psgs_w100.tsv`: `id\ttext\ttitle`.

The first line is a header, and texts are quoted as in CSV (`"Aaron ( or ; ""Ahärôn"") is …"`).
Format: https://github.com/facebookresearch/DPR#resources--data-formats
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from indexing.records import Document, Failure, excerpt
from indexing.sources.files import Line, LineFile

HEADER = ("id", "text", "title")


def documents(file: LineFile) -> Iterator[Document | Failure]:
    """Yield a document for every line but the header."""
    for line in file.lines():
        if isinstance(line, Failure):
            yield line
        elif tuple(line.text.split("\t")) != HEADER:
            yield _document(line)


def _document(line: Line) -> Document | Failure:
    cells = split_cells(line.text)
    if len(cells) != len(HEADER):
        reason = f"3 tab-separated columns are needed (id, text, title), not {len(cells)}"
        return Failure(line.location, reason, excerpt(line.text))
    key, text, title = (cell.strip() for cell in cells)
    if not key:
        reason = "the first column must hold an id, not nothing"
        return Failure(line.location, reason, excerpt(line.text))
    return Document(key, title, text)


def split_cells(line: str) -> list[str]:
    """Split a line at tabs that are in no quotes, and take the quotes away."""
    if '"' not in line:
        return line.split("\t")
    # A quote that is never closed swallows the tabs behind it: the line is then short of cells.
    csv.field_size_limit(max(csv.field_size_limit(), len(line)))
    return next(csv.reader([line.replace("\r", " ")], delimiter="\t"))
