"""TREC text: `<DOC>`, `<DOCNO> … </DOCNO>` and any other elements, up to `</DOC>`.

As the collections of TREC disks 1 to 5, AQUAINT, WT10g and their like have them: SGML without a
schema, upper or lower case, in UTF-8 or Latin-1, one file or a folder of many.
Format: https://trec.nist.gov/data/docs_eng.html
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from indexing.records import Document, Failure, Record, Skip, excerpt
from indexing.sources.files import MAX_LINE_BYTES, LineFile

# What the collections call a headline: FT, LA Times, FBIS, WSJ, AP, AQUAINT, the web and others.
_TITLES = ("TITLE", "HEADLINE", "HL", "HEAD", "TI", "H3", "TTL", "DOCTITLE")
# What is no text where a document has no <TEXT>.
_APART = ("DOCNO", "DOCOLDNO", "DOCHDR", "DOCID", "URL", "SCRIPT", "STYLE")
_MARK = re.compile(rb"(<DOC>|</DOC>)", re.IGNORECASE)
_PARAGRAPH = re.compile(r"</?P(?:\s[^<>]*)?>|\n\s*?\n", re.IGNORECASE)
_TAG = re.compile(r"<[/!?]?[A-Za-z-][^<>]*>")
_EXCERPT = 4096  # bytes kept of what is too long


class _Stretch:
    """What stands between two marks, as far as it is not too long."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.fault: Failure | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MAX_LINE_BYTES:
            self._parts.append(data)
        elif not self.fault:
            self._parts = [b"".join(self._parts)[:_EXCERPT] or data[:_EXCERPT]]
            self.fault = self.failure(f"the document is longer than {MAX_LINE_BYTES} bytes")

    def failure(self, reason: str) -> Failure:
        return Failure(self.location, reason, excerpt(self.data()))

    def data(self) -> bytes:
        return b"".join(self._parts)


def documents(file: LineFile) -> Iterator[Record]:
    """Yield a document for every `<DOC>`; text outside of them is a failure."""
    inside: _Stretch | None = None
    outside: _Stretch | None = None
    for line in file.raw_lines():
        if isinstance(line, Failure):
            if inside:
                inside.fault = inside.fault.before(line) if inside.fault else line
            else:
                yield line
            continue
        for piece in _MARK.split(line.data):
            mark = piece.upper()
            if mark == b"<DOC>":
                if inside:
                    yield inside.fault or inside.failure("no </DOC> before the next <DOC>")
                yield from _stray(outside)
                inside, outside = _Stretch(line.location), None
            elif mark == b"</DOC>" and inside:
                yield inside.fault or _record(inside)
                inside = None
            elif inside:
                inside.add(piece)
            elif piece.strip():
                outside = outside or _Stretch(line.location)
                outside.add(piece)
    if inside:
        yield inside.fault or inside.failure("the file ends before </DOC>")
    yield from _stray(outside)


def _stray(outside: _Stretch | None) -> Iterator[Failure]:
    # A declaration or an element around all documents is none of them, and no loss.
    if outside and (outside.fault or _plain(_decode(outside.data()))):
        yield outside.fault or outside.failure("text outside of <DOC> and </DOC>")


def _record(stretch: _Stretch) -> Record:
    text = _decode(stretch.data())
    if "\0" in text:
        return stretch.failure("a NUL byte in it, which is no text")
    key = _plain(next(_elements(text, "DOCNO"), ""))
    if not key:
        return stretch.failure("a document without <DOCNO>")
    title, headline = _title(text)
    body = "\n\n".join(_elements(text, "TEXT"))
    if not body.strip():
        body = _without(text.replace(headline, " ", 1) if headline else text, _APART)
    passage = _plain(body)
    if not passage and not title:
        return Skip(stretch.location, f"document {key!r} has no text")
    return Document(key, title, passage, url=_line(next(_elements(text, "URL"), "")))


def _title(text: str) -> tuple[str, str]:
    """Give the first headline with text in it, and the element that it is."""
    for name in _TITLES:
        for start, end in _spans(text, name):
            if title := _line(text[start:end]):
                return title, text[start:end]
    return "", ""


def _elements(text: str, name: str) -> Iterator[str]:
    """Yield what the elements of a name hold."""
    for start, end in _spans(text, name):
        inner = text[start:end]
        yield inner[inner.index(">") + 1 : inner.rindex("<")]


def _spans(text: str, name: str) -> Iterator[tuple[int, int]]:
    opening = re.compile(rf"<{name}(?:\s[^<>]*)?>", re.IGNORECASE)
    closing = re.compile(rf"</{name}\s*>", re.IGNORECASE)
    end = 0
    while (first := opening.search(text, end)) and (last := closing.search(text, first.end())):
        yield first.start(), last.end()
        end = last.end()


def _without(text: str, names: tuple[str, ...]) -> str:
    for name in names:
        kept, end = [], 0
        for start, stop in _spans(text, name):
            kept.append(text[end:start])
            end = stop
        text = " ".join((*kept, text[end:]))
    return text


def _decode(data: bytes) -> str:
    """Decode UTF-8, or else Latin-1, in which the older collections are."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _plain(markup: str) -> str:
    """Take the tags away; lines are joined, paragraphs stay apart."""
    paragraphs = (_line(paragraph) for paragraph in _PARAGRAPH.split(markup))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _line(markup: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", markup)).split())
