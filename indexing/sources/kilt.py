"""The KILT knowledge source: one Wikipedia page a line, its paragraphs become passages.

A page's `text` is a list: the title itself, paragraphs, headings (`Section::::History.`, below
that `Section::::History.:Origins.`) and list items (`BULLET::::- one of many`). Its `anchors`
are the links, each with the number of its paragraph.
Format: https://github.com/facebookresearch/KILT#kilt-knowledge-source

A passage's id is `PAGE-PARAGRAPH`, the pair by which KILT's provenances name a paragraph; its
metadata hold that `paragraph` and, where there are any, the `anchors` (text and linked page).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from indexing.records import Document, Failure, Record, Skip, excerpt
from indexing.sources.files import LineFile, Object, identifier

# List items are short: they join the paragraph that introduces them, up to about this length.
_LIST_WORDS = 150
_HEADING = "Section::::"
_ITEM = "BULLET::::"


class _Page(NamedTuple):
    id: str
    title: str
    paragraphs: list[str]
    url: str
    anchors: Mapping[int, list[dict[str, str]]]  # by paragraph


def documents(file: LineFile) -> Iterator[Record]:
    """Yield the passages of every page, page by page."""
    for item in file.objects():
        if isinstance(item, Failure):
            yield item
            continue
        try:
            page = _page(item)
        except ValueError as error:
            shown = repr({name: item.fields[name] for name in list(item.fields)[:10]})
            yield Failure(item.location, str(error), excerpt(shown))
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
    history = fields.get("history")
    url = history.get("url") if isinstance(history, dict) else None
    return _Page(
        identifier(fields, name),
        title.strip(),
        paragraphs,
        url if isinstance(url, str) else "",
        _anchors(fields.get("anchors")),
    )


def _anchors(value: object) -> dict[int, list[dict[str, str]]]:
    """Group links by paragraph. They are an extra: what is not in the format is left out."""
    found: dict[int, list[dict[str, str]]] = {}
    for anchor in value if isinstance(value, list) else ():
        if not isinstance(anchor, dict):
            continue
        paragraph, text, page = (anchor.get(name) for name in ("paragraph_id", "text", "href"))
        if isinstance(paragraph, int) and isinstance(text, str) and isinstance(page, str):
            found.setdefault(paragraph, []).append({"text": text, "href": page})
    return found


def _passages(page: _Page) -> Iterator[Document]:
    section = ""
    parts: dict[int, str] = {}  # by number of the paragraph
    position = 0
    for number, raw in enumerate(page.paragraphs):
        paragraph = " ".join(raw.split())
        if not paragraph or (number == 0 and paragraph == page.title):
            continue
        heading = paragraph.startswith(_HEADING)
        item = paragraph.startswith(_ITEM)
        words = sum(len(part.split()) for part in parts.values())
        if parts and not (item and words < _LIST_WORDS):
            yield _passage(page, section, position, parts)
            position += 1
            parts = {}
        if heading:
            names = paragraph.removeprefix(_HEADING).split(":")
            section = " / ".join(name.strip().rstrip(".") for name in names if name.strip())
            continue
        if item:
            paragraph = paragraph.removeprefix(_ITEM).lstrip("-*• ").strip()
        if paragraph:
            parts[number] = paragraph
    if parts:
        yield _passage(page, section, position, parts)


def _passage(page: _Page, section: str, position: int, parts: Mapping[int, str]) -> Document:
    start = min(parts)
    metadata: dict[str, object] = {"paragraph": start}
    if anchors := [anchor for number in parts for anchor in page.anchors.get(number, ())]:
        metadata["anchors"] = anchors
    return Document(
        f"{page.id}-{start}",
        page.title,
        "\n".join(parts.values()),
        metadata,
        page_id=page.id,
        position=position,
        section=section,
        url=page.url,
    )
