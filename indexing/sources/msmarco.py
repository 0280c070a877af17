r"""MS MARCO collections, tab-separated.

Passages are `pid\ttext`, documents `docid\turl\ttitle\tbody`.
Format: https://microsoft.github.io/msmarco/Datasets (no quoting, no header).
Passages have no titles.
"""

from __future__ import annotations

from collections.abc import Iterator

from indexing.records import Document, Failure, excerpt
from indexing.sources.files import Line, LineFile

_PASSAGE, _DOCUMENT = 2, 4  # columns


def documents(file: LineFile) -> Iterator[Document | Failure]:
    """Yield a document for every line; the first good line tells which of the two it is."""
    columns = 0
    for line in file.lines():
        if isinstance(line, Failure):
            yield line
            continue
        cells = line.text.split("\t")
        if not columns and len(cells) in (_PASSAGE, _DOCUMENT):
            columns = len(cells)
        yield _document(line, cells, columns)


def _document(line: Line, cells: list[str], columns: int) -> Document | Failure:
    if len(cells) != columns:
        expected = columns or f"{_PASSAGE} or {_DOCUMENT}"
        return Failure(
            line.location,
            f"{expected} tab-separated columns are needed, not {len(cells)}",
            excerpt(line.text),
        )
    key = cells[0].strip()
    if not key:
        return Failure(
            line.location, "the first column must hold an id, not nothing", excerpt(line.text)
        )
    if columns == _PASSAGE:
        return Document(key, "", cells[1].strip())
    _, url, title, body = cells
    return Document(key, title.strip(), body.strip(), url=url.strip())
