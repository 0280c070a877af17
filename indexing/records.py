"""The plain records of indexing: what a source yields and what a load reports."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

_NOTHING: Mapping[str, object] = MappingProxyType({})


class Document(NamedTuple):
    """One document as it goes into the index.

    `title` or `passage` may be empty. `metadata` is kept and given back with the document,
    but not searched.
    """

    id: str
    title: str
    passage: str
    metadata: Mapping[str, object] = _NOTHING


class Failure(NamedTuple):
    """A record that should have become a document and did not."""

    location: str  # `FILE:LINE`, or `document 'ID'` once the record has an id
    reason: str


class Skip(NamedTuple):
    """A record that rightly becomes no document: it has no text."""

    location: str
    reason: str


Record: TypeAlias = Document | Failure | Skip


class Summary(NamedTuple):
    """What a load did; `read == created + updated + failed + skipped`."""

    read: int = 0
    created: int = 0
    updated: int = 0  # a document of that id was there before, or came twice in the source
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    documents: int = 0  # in the index afterwards
    verified: bool = False  # the index has grown by what was created
    failures: tuple[Failure, ...] = ()  # the first of the failed
    skips: tuple[Skip, ...] = ()  # the first of the skipped

    @property
    def indexed(self) -> int:
        """Documents that are now in the index as the source has them."""
        return self.created + self.updated
