"""A folder of Markdown, HTML and text files: every section under a heading becomes a document.

The page's title is that of the front matter, of `<title>`, or the first heading; a section's
title is the page's and the section's own, as in `Installing: From source`. Files are read in the
order of their names, folders below as well; what begins with a dot is left out.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from indexing.passages import passage_id
from indexing.records import Document, Failure, Record, Skip, excerpt

# A longer file is not a page that somebody reads, and would have to be held in memory.
MAX_FILE_BYTES = 8 * 1024 * 1024
MARKDOWN = frozenset({".md", ".markdown", ".mkd"})
HTML = frozenset({".html", ".htm", ".xhtml"})
TEXT = frozenset({".txt", ".text"})
SUFFIXES = MARKDOWN | HTML | TEXT
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_CHARSET = re.compile(rb"""<meta[^<>]{0,200}?charset\s{0,9}=\s{0,9}["']?([\w.-]{1,40})""", re.I)
_FRONT = re.compile(r"\A(---|\+\+\+)[ \t]*\r?\n")
_FRONT_FIELD = re.compile(r"(\w[\w-]{0,40})[ \t]{0,20}[:=][ \t]{0,20}(.*)")


class Section(NamedTuple):
    """The text between two headings."""

    headings: tuple[str, ...]  # above it, outermost first
    text: str


class Page(NamedTuple):
    """A file's title (may be empty), address (may be empty) and sections."""

    title: str
    url: str
    sections: list[Section]


def files(root: Path) -> Iterator[Path | Failure]:
    """Yield the files of a folder and those below in the order of their names, or the file itself.

    A folder that cannot be read is a failure. Links to folders are not followed, as they may lead
    round in circles.
    """
    if root.is_file():
        yield root
        return
    errors: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=errors.append):
        yield from map(_unread, errors)
        errors.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
    yield from map(_unread, errors)


def documents(root: Path) -> Iterator[Record]:
    """Yield the sections of every file; files of other kinds are skips."""
    for path in files(root):
        if isinstance(path, Failure):
            yield path
        else:
            name = path.name if path == root else path.relative_to(root).as_posix()
            yield from _read(path, name)


def parse_markdown(text: str) -> Page:
    """Read a Markdown page (CommonMark with tables), with or without front matter."""
    front, body = _front_matter(text)
    outline = _Outline()
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    for token, previous in zip(tokens, [None, *tokens], strict=False):
        if token.type == "inline":
            content = _inline(token)
            if previous is not None and previous.type == "heading_open":
                outline.heading(int(previous.tag[1:]), content)
            else:
                outline.text(content)
        elif token.type in ("fence", "code_block"):
            outline.text(token.content)
        elif token.type == "html_block":
            outline.text(" ".join(part.text for part in parse_html(token.content).sections))
    return outline.page(front.get("title", ""), front.get("url") or front.get("permalink") or "")


def parse_html(text: str) -> Page:
    """Read an HTML page: what is shown of it, without navigation."""
    # Where a comment or a tag has no end, the parser would look for it again at every other one.
    text = _without_comments(text)
    end = text.rfind(">") + 1
    parser = _Html()
    parser.feed(text[:end])
    parser.close()
    parser.handle_data(html.unescape(text[end:]))
    return parser.page()


def _without_comments(text: str) -> str:
    parts = []
    end = 0
    while (start := text.find("<!--", end)) >= 0 and (close := text.find("-->", start + 2)) >= 0:
        parts.append(text[end:start])
        end = close + 3
    return "".join((*parts, text[end:].replace("<!--", "")))


def _unread(error: OSError) -> Failure:
    reason = f"the folder cannot be read: {error.strerror or error}"
    return Failure(str(error.filename), reason, cut=True)


def _read(path: Path, name: str) -> Iterator[Record]:
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        yield Skip(name, "neither Markdown nor HTML nor text")
        return
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_FILE_BYTES else b""
    except OSError as error:
        yield Failure(name, f"the file cannot be read: {error.strerror or error}")
        return
    if size > MAX_FILE_BYTES:
        yield Failure(name, f"the file is {size} bytes long, more than {MAX_FILE_BYTES}")
        return
    text = _decode(data)
    if isinstance(text, Failure):
        yield text._replace(location=name)
        return
    try:
        if kind in MARKDOWN:
            page = parse_markdown(text)
        elif kind in HTML:
            page = parse_html(text)
        else:
            page = Page("", "", [Section((), text.strip())] if text.strip() else [])
    except (ValueError, RecursionError, AssertionError) as error:
        yield Failure(name, f"the file cannot be read as {kind[1:]}: {error}", excerpt(text))
        return
    if not page.sections:
        yield Skip(name, "no text in it")
    for position, section in enumerate(page.sections):
        yield _document(name, page, position, section)


def _document(name: str, page: Page, position: int, section: Section) -> Document:
    below = [heading for heading in section.headings if heading != page.title]
    title = ": ".join(part for part in (page.title, *below[-1:]) if part)
    return Document(
        passage_id(name, position, section.text),
        title,
        section.text,
        page_id=name,
        position=position,
        section=" / ".join(below),
        url=page.url,
    )


def _decode(data: bytes) -> str | Failure:
    declared = _CHARSET.search(data[:2048])
    names = [
        next((name for mark, name in _BOMS.items() if data.startswith(mark)), "utf-8"),
        *([declared[1].decode("ascii", "replace")] if declared else []),
    ]
    reason = ""
    for name in names:
        text, why = _try(data, name)
        if why:
            reason = reason or why
        elif "\0" in text:
            return Failure("", "a NUL byte in it, which is no text", excerpt(data))
        else:
            return text
    return Failure("", reason, excerpt(data))


def _try(data: bytes, encoding: str) -> tuple[str, str]:
    try:
        return data.decode(encoding), ""
    except (UnicodeDecodeError, LookupError) as error:
        return "", f"not to be decoded: {error}"


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    """Split the lines between `---` (YAML) or `+++` (TOML) off: plain fields, and the rest."""
    opening = _FRONT.match(text)
    if not opening:
        return {}, text
    lines = text[opening.end() :].splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.rstrip() == opening[1]:
            fields = (_FRONT_FIELD.fullmatch(line.rstrip()) for line in lines[:number])
            found = {field[1].lower(): _unquoted(field[2]) for field in fields if field}
            return found, "".join(lines[number + 1 :])
    return {}, text  # a rule, not front matter


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0] else value


def _inline(token: Token) -> str:
    parts = []
    for child in token.children or ():
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type == "image":
            parts.append(child.content)
    return " ".join("".join(parts).split())


class _Outline:
    """Headings and texts in their order, put together into sections."""

    def __init__(self) -> None:
        self._above: list[tuple[int, str]] = []
        self._texts: list[str] = []
        self._sections: list[Section] = []
        self._title = ""

    def heading(self, level: int, text: str) -> None:
        self._end()
        if not self._title and not self._sections:
            self._title = text
        self._above = [*((n, name) for n, name in self._above if n < level), (level, text)]

    def text(self, text: str) -> None:
        if text.strip():
            self._texts.append(text.strip("\n"))

    def page(self, title: str = "", url: str = "") -> Page:
        self._end()
        return Page(title.strip() or self._title, url, self._sections)

    def _end(self) -> None:
        if self._texts:
            headings = tuple(name for _, name in self._above if name)
            self._sections.append(Section(headings, "\n\n".join(self._texts)))
        self._texts = []


class _Html(HTMLParser):
    """Collects what a browser would show."""

    _UNSEEN = frozenset({"script", "style", "template", "noscript", "nav", "svg", "iframe"})
    _BLOCKS = frozenset(
        {"address", "article", "aside", "blockquote", "body", "br", "dd", "div", "dl", "dt"}
        | {"figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "ol", "p"}
        | {"pre", "section", "table", "td", "th", "tr", "ul"}
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._outline = _Outline()
        self._unseen = 0  # elements around this point that are not shown
        self._level = 0  # of the heading that is open
        self._in_title = False
        self._title = ""
        self._url = ""
        self._parts: list[str] = []

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        """Pass over `<![…>` as browsers do; what is in it need not be anything."""
        return self.rawdata.find(">", i) + 1 or -1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._UNSEEN:
            self._unseen += 1
        elif tag == "title" and not self._title:
            self._in_title = True
        elif tag == "link" and ("rel", "canonical") in attrs and not self._url:
            self._url = dict(attrs).get("href") or ""
        elif _is_heading(tag):
            self._flush()
            self._level = int(tag[1])
        elif tag in self._BLOCKS and not self._level:
            self._flush()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in self._UNSEEN:
            self._unseen -= 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self._UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag == "title":
            self._in_title = False
        elif _is_heading(tag) if self._level else tag in self._BLOCKS:
            self._flush()

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title += data
        elif not self._unseen:
            self._parts.append(data)

    def page(self) -> Page:
        self._flush()
        return self._outline.page(" ".join(self._title.split()), self._url)

    def _flush(self) -> None:
        text = " ".join("".join(self._parts).split())
        self._parts = []
        if self._level:
            if text:
                # Sphinx and others put a link to itself behind a heading.
                self._outline.heading(self._level, text.rstrip("¶").rstrip())
            self._level = 0
        else:
            self._outline.text(text)


def _is_heading(tag: str) -> bool:
    return len(tag) == 2 and tag[0] == "h" and tag[1] in "123456"
