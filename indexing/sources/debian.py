"""Descriptions of Debian packages: the package's name and synopsis, and what it is for.

From `/var/lib/dpkg/status`, which every Debian machine has (what is installed), an archive's
`Packages` file, or `apt-cache dumpavail` (all that can be installed) through standard input.
Format: https://www.debian.org/doc/debian-policy/ch-controlfields.html#syntax-of-control-files
"""

from __future__ import annotations

from collections.abc import Iterator

from indexing.records import Document, Failure, Record, Skip, excerpt
from indexing.sources.files import MAX_LINE_BYTES, Line, LineFile

# What else of a package is worth giving back with it.
_METADATA = {"Version": "version", "Architecture": "architecture", "Tag": "tags"}
_DESCRIPTIONS = ("Description-en", "Description")
_KEPT = {"Package", "Section", "Homepage", *_METADATA, *_DESCRIPTIONS}


class _Paragraph:
    """The fields of one package that are of use; a field's lines are joined by line ends."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.fields: dict[str, str] = {}
        self.wrong: Failure | None = None
        self._name = ""
        self._size = 0

    def add(self, line: Line) -> None:
        """Take a line that is not blank."""
        self._size += len(line.text)
        if self._size > MAX_LINE_BYTES:
            reason = f"the paragraph is longer than {MAX_LINE_BYTES} bytes"
            self.fail(Failure(self.location, reason, excerpt(line.text)))
        if self.wrong:
            return
        if line.text[0] in " \t":
            if self._name in _KEPT:
                self.fields[self._name] += f"\n{line.text}"
            return
        self._name, colon, value = line.text.partition(":")
        if not colon:
            reason = "no line of a package's fields, which are `Field: value`"
            self.fail(Failure(line.location, reason, excerpt(line.text)))
        elif self._name in _KEPT:
            self.fields[self._name] = value.strip()

    def fail(self, failure: Failure) -> None:
        """Give the whole package up, for the first of its faults."""
        self.wrong = self.wrong.before(failure) if self.wrong else failure
        self.fields.clear()

    def record(self) -> Record:
        """Make the document."""
        if self.wrong:
            return self.wrong
        name = self.fields.get("Package", "")
        if not name:
            shown = "\n".join(f"{key}: {value}" for key, value in self.fields.items())
            return Failure(self.location, "a package without the field Package", excerpt(shown))
        description = next((d for key in _DESCRIPTIONS if (d := self.fields.get(key))), "")
        if not description:
            return Skip(self.location, f"package {name!r} has no description")
        synopsis, _, rest = description.partition("\n")
        return Document(
            name,
            f"{name}: {synopsis}" if synopsis else name,
            _plain(rest) or synopsis,
            {made: self.fields[key] for key, made in _METADATA.items() if key in self.fields},
            section=self.fields.get("Section", ""),
            url=self.fields.get("Homepage", ""),
        )


def documents(file: LineFile) -> Iterator[Record]:
    """Yield a document for every package, in the order of the file.

    The id is the package's name: of several versions or architectures the last one stays.
    """
    paragraph: _Paragraph | None = None
    for line in file.lines(blank=True):
        if isinstance(line, Line) and not line.text.strip():
            if paragraph:
                yield paragraph.record()
            paragraph = None
            continue
        paragraph = paragraph or _Paragraph(line.location)
        if isinstance(line, Failure):
            paragraph.fail(line)
        else:
            paragraph.add(line)
    if paragraph:
        yield paragraph.record()


def _plain(description: str) -> str:
    """Join a description's lines: ` .` parts paragraphs, deeper indented lines stay apart."""
    paragraphs = [""]
    for line in description.split("\n"):
        if line.strip() == ".":
            paragraphs.append("")
        elif line.startswith("  ") or line.lstrip().startswith(("* ", "- ")):
            paragraphs[-1] += f"\n{line.strip()}"
        else:
            paragraphs[-1] += f" {line.strip()}"
    return "\n\n".join(paragraph.strip() for paragraph in paragraphs if paragraph.strip())
