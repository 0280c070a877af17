"""JSON lines of any shape: a mapping names the fields that hold id, title and passage."""

from __future__ import annotations

from collections.abc import Iterator

from indexing.records import Document, Failure
from indexing.sources.fields import FieldMap, document
from indexing.sources.files import LineFile, Object


def documents(file: LineFile, fields: FieldMap | None = None) -> Iterator[Document | Failure]:
    """Yield a document for every line."""
    fields = fields or FieldMap()
    for item in file.objects():
        yield document(item, fields) if isinstance(item, Object) else item
