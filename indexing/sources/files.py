"""Lines of plain or gzipped text files, and JSON objects from them, in constant memory.

Whatever is wrong with a line becomes a `Failure` that names it; nothing here raises for it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, cast

from indexing.records import Failure

# A longer line is not a document but a broken file, and would have to be held in memory.
MAX_LINE_BYTES = 64 * 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


class Line(NamedTuple):
    """One line without its line end."""

    location: str
    text: str


class Object(NamedTuple):
    """One JSON object."""

    location: str
    fields: Mapping[str, object]


class LineFile:
    """The lines of one UTF-8 file, plain or gzipped (told by content, not by name).

    Raises `OSError` when built if the file cannot be opened.
    """

    def __init__(self, path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        path.open("rb").close()  # fail now, not at the first line
        self._path = path
        self._size = path.stat().st_size
        self._position: Callable[[], int] = lambda: 0
        self._max = max_line_bytes

    def fraction(self) -> float:
        """How much of the file has been read, from 0 to 1."""
        return min(1.0, self._position() / self._size) if self._size else 1.0

    def lines(self) -> Iterator[Line | Failure]:
        """Yield every line that is not blank, or why it cannot be read."""
        with self._path.open("rb") as raw:
            self._position = raw.tell
            try:
                yield from self._lines(raw)
            finally:
                self._position = lambda: self._size

    def _lines(self, raw: IO[bytes]) -> Iterator[Line | Failure]:
        magic = raw.read(2)
        raw.seek(0)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if magic == _GZIP_MAGIC else raw
        number = 0
        while True:
            number += 1
            location = f"{self._path.name}:{number}"
            try:
                data = stream.readline(self._max + 1)
                too_long = len(data) > self._max and not data.endswith(b"\n")
                if too_long:
                    _skip_line(stream)
            except (EOFError, OSError, zlib.error) as error:
                # What follows cannot be found any more: the rest of the file is lost.
                yield Failure(location, f"the rest of the file cannot be read: {error}")
                return
            if not data:
                return
            if too_long:
                yield Failure(location, f"the line is longer than {self._max} bytes")
                continue
            try:
                # A byte order mark can only stand at the very start.
                text = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield Failure(location, f"not UTF-8: {error.reason} at byte {error.start}")
                continue
            if text.strip():
                yield Line(location, text)

    def objects(self) -> Iterator[Object | Failure]:
        """Yield every line's JSON object, or why there is none."""
        for line in self.lines():
            if isinstance(line, Failure):
                yield line
                continue
            try:
                value = json.loads(line.text, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                yield Failure(line.location, f"not JSON: {error}")
                continue
            if isinstance(value, dict):
                yield Object(line.location, value)
            else:
                yield Failure(line.location, f"a JSON object is needed, not {_kind(value)}")


def identifier(fields: Mapping[str, object], name: str) -> str:
    """Give a field as a document id; raise `ValueError` if it is none."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"field {name!r} must hold an id, not {_kind(value)}")
    return str(value)


def text(value: object, name: str) -> str:
    """Give a field's value as text, joining lists by line ends; raise `ValueError` if it is none.

    An absent field (None) is empty text.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    raise ValueError(f"field {name!r} must hold text, not {_kind(value)}")


def _skip_line(stream: IO[bytes]) -> None:
    while (data := stream.readline(1 << 20)) and not data.endswith(b"\n"):
        pass


def _refuse_constant(name: str) -> NoReturn:
    # Python reads NaN and Infinity, but they are no JSON and the engine refuses them.
    raise ValueError(f"{name} is not a JSON value")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "empty text", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), "a number")
