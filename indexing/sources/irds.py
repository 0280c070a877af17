"""Data sets of ir_datasets, by their identifiers (`irds:beir/scifact`), where it is installed.

Catalogue: https://ir-datasets.com/
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from indexing.records import Document, Failure
from indexing.sources.files import LineFile, kind_of

PREFIX = "irds:"
_TITLES = ("title", "headline")
_PASSAGES = ("text", "body", "abstract", "contents", "passage")


class DataSet:
    """The documents of one data set, and how many of them have been read.

    Raises `OSError` where ir_datasets is not installed or knows no such documents.
    """

    def __init__(self, name: str) -> None:
        self.name = name.removeprefix(PREFIX)
        try:
            library: Any = importlib.import_module("ir_datasets")
        except ModuleNotFoundError as error:
            raise OSError("its package is not installed: pip install ir_datasets") from error
        try:
            self._set: Any = library.load(self.name)
        except KeyError as error:
            raise OSError(f"ir_datasets knows no {self.name!r}: see ir-datasets.com") from error
        if not self._set.has_docs():
            raise OSError(f"{self.name!r} of ir_datasets has no documents: name the set it is of")
        self._read = 0
        self._total: int | None = None

    def fraction(self) -> float | None:
        """How many of the documents have been read, from 0 to 1; None where nobody knows."""
        return min(1.0, self._read / self._total) if self._total else None

    def documents(self) -> Iterator[Document | Failure]:
        """Yield a document for every one of the set, which may be downloaded first."""
        try:
            items = iter(self._set.docs_iter())
            self._total = self._counted()
            for item in items:
                self._read += 1
                yield _document(f"{self.name}:{self._read}", item)
        # Each of its many readers has errors of its own.
        except Exception as error:
            yield LineFile.cut(f"{self.name}:{self._read + 1}", error)

    def _counted(self) -> int | None:
        count: Callable[[], int | None] = self._set.docs_count
        # What is not in the library's own lists would be counted by reading it all.
        return count() if self._set.docs_metadata().get("count") else None


def _document(location: str, item: Any) -> Document | Failure:
    try:
        title = next((t for name in _TITLES if (t := getattr(item, name, ""))), "")
        passage = "\n".join(t for name in _PASSAGES if (t := getattr(item, name, "")))
        if not passage:
            passage = item.default_text()
        for name, value in (("title", title), ("text", passage)):
            if not isinstance(value, str):
                raise ValueError(f"field {name!r} must hold text, not {kind_of(value)}")
    except (AttributeError, ValueError) as error:
        return Failure(location, f"no document: {error}")
    url = getattr(item, "url", "")
    return Document(str(item.doc_id), title, passage, url=url if isinstance(url, str) else "")
