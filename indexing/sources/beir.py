"""BEIR corpora: one JSON object a line with `_id`, `title`, `text` and `metadata`.

Format: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from indexing.records import Document, Failure, excerpt
from indexing.sources.files import LineFile, Object, identifier, text

_NAMES = tuple(f"corpus.jsonl{suffix}" for suffix in ("", ".gz", ".zst", ".bz2", ".xz"))


def find_corpus(path: Path) -> Path | None:
    """Give the corpus file of a BEIR folder, or the file itself; None if it has none."""
    if path.is_file():
        return path
    return next((path / name for name in _NAMES if (path / name).is_file()), None)


def documents(file: LineFile) -> Iterator[Document | Failure]:
    """Yield a document for every line of the corpus."""
    for item in file.objects():
        yield _document(item) if isinstance(item, Object) else item


def _document(item: Object) -> Document | Failure:
    fields = item.fields
    if "text" not in fields and "title" not in fields:
        return Failure(item.location, "neither 'text' nor 'title' in it", _shown(item))
    metadata = fields.get("metadata") or {}
    try:
        if not isinstance(metadata, dict):
            raise ValueError("field 'metadata' must hold an object")
        return Document(
            identifier(fields, "_id"),
            text(fields.get("title"), "title"),
            text(fields.get("text"), "text"),
            metadata,
        )
    except ValueError as error:
        return Failure(item.location, str(error), _shown(item))


def _shown(item: Object) -> str:
    return excerpt(repr(dict(list(item.fields.items())[:10])))
