"""The plain records of indexing: what a source yields and what a load reports.

A source is a stream of `Record`s. The same source opened with the same options yields the same
records in the same order, so a record's *position*, its index in the stream from 0, is all that
a load has to remember to go on later. What cannot be read is in the stream as well, as a
`Failure`, and what has no text as a `Skip`: neither is raised nor left out, so that
`position == records before this one` holds and every one of them can be counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

_NOTHING: Mapping[str, object] = MappingProxyType({})

EXCERPT_CHARACTERS = 500


class Document(NamedTuple):
    """One document as it goes into the index: a passage under its page's title.

    `title` or `passage` may be empty. `metadata` is kept and given back with the document, but
    not searched. `vector` is empty where there is none.
    """

    id: str
    title: str
    passage: str
    metadata: Mapping[str, object] = _NOTHING
    page_id: str = ""  # of the page that the passage is from
    position: int | None = None  # the passage's number in its page, from 0
    section: str = ""  # the headings above the passage, outermost first: `History / Greek`
    url: str = ""
    vector: tuple[float, ...] = ()

    def fields(self) -> dict[str, object]:
        """Give what is stored in the index: title and passage, and what else is not empty."""
        found: dict[str, object] = {"title": self.title, "passage": self.passage}
        if self.page_id:
            found["page_id"] = self.page_id
        if self.position is not None:
            found["position"] = self.position
        if self.section:
            found["section"] = self.section
        if self.url:
            found["url"] = self.url
        if self.vector:
            found["vector"] = list(self.vector)
        if self.metadata:
            found["metadata"] = dict(self.metadata)
        return found


class Failure(NamedTuple):
    """A record that should have become a document and did not."""

    location: str  # `FILE:LINE`, or `document 'ID'` once the record has an id
    reason: str
    excerpt: str = ""  # how the unreadable record begins, at most `EXCERPT_CHARACTERS`
    cut: bool = False  # other records of its file, folder or index are lost with it, uncounted

    def before(self, later: Failure) -> Failure:
        """Give this first of two faults of one record; what the later one cuts stays cut."""
        return self._replace(cut=self.cut or later.cut)


class Skip(NamedTuple):
    """A record that rightly becomes no document: it has no text."""

    location: str
    reason: str


Record: TypeAlias = Document | Failure | Skip


def excerpt(raw: str | bytes) -> str:
    """Give the beginning of something unreadable as text that any file or terminal takes."""
    start = raw[: EXCERPT_CHARACTERS * 4]
    text = start.decode("utf-8", "backslashreplace") if isinstance(start, bytes) else start
    shown = "".join(c if c.isprintable() or c in "\t " else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= EXCERPT_CHARACTERS else f"{shown[: EXCERPT_CHARACTERS - 1]}…"
