"""The KILT knowledge source: one Wikipedia page a line, its paragraphs become passages.

A page's `text` is a list: the title itself, paragraphs, headings (`Section::::History.`, below
that `Section::::History.:Origins.`) and list items (`BULLET::::- one of many`).
Format: https://github.com/facebookresearch/KILT#kilt-knowledge-source

A passage's id is `PAGE-PARAGRAPH`, the pair by which KILT's provenances name a paragraph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from indexing.records import Document, Failure, Record, Skip
from indexing.sources.files import LineFile, Object, identifier

# List items are short: they join the paragraph that introduces them, up to about this length.
_LIST_WORDS = 150
_HEADING = "Section::::"
_ITEM = "BULLET::::"


class _Page(NamedTuple):
    id: str
    title: str
    paragraphs: list[str]


def documents(file: LineFile) -> Iterator[Record]:
    """Yield the passages of every page, page by page."""
    for item in file.objects():
        if isinstance(item, Failure):
            yield item
            continue
        try:
            page = _page(item)
        except ValueError as error:
            yield Failure(item.location, str(error))
            continue
        empty = True
        for passage in _passages(page):
            empty = False
            yield passage
        if empty:
            yield Skip(item.location, f"page {page.title!r} has no text")


def _page(item: Object) -> _Page:
    fields = item.fields
    title, paragraphs = fields.get("wikipedia_title"), fields.get("text")
    if not isinstance(title, str) or not title.strip():
        raise ValueError("field 'wikipedia_title' must hold the page's title")
    if not isinstance(paragraphs, list) or not all(isinstance(p, str) for p in paragraphs):
        raise ValueError("field 'text' must hold a list of paragraphs")
    name = "wikipedia_id" if "wikipedia_id" in fields else "_id"
    return _Page(identifier(fields, name), title.strip(), paragraphs)


def _passages(page: _Page) -> Iterator[Document]:
    section = ""
    parts: list[str] = []
    start = 0
    for number, raw in enumerate(page.paragraphs):
        paragraph = " ".join(raw.split())
        if not paragraph or (number == 0 and paragraph == page.title):
            continue
        heading = paragraph.startswith(_HEADING)
        item = paragraph.startswith(_ITEM)
        if parts and not (item and sum(len(part.split()) for part in parts) < _LIST_WORDS):
            yield _passage(page, section, start, parts)
            parts = []
        if heading:
            names = paragraph.removeprefix(_HEADING).split(":")
            section = " / ".join(name.strip().rstrip(".") for name in names if name.strip())
            continue
        if not parts:
            start = number
        if item:
            paragraph = paragraph.removeprefix(_ITEM).lstrip("-*• ").strip()
        if paragraph:
            parts.append(paragraph)
    if parts:
        yield _passage(page, section, start, parts)


def _passage(page: _Page, section: str, start: int, parts: list[str]) -> Document:
    metadata: dict[str, object] = {"page_id": page.id, "paragraph": start}
    if section:
        metadata["section"] = section
    return Document(f"{page.id}-{start}", page.title, "\n".join(parts), metadata)
