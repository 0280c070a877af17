"""Lines of text files, plain or compressed, and JSON objects from them, in constant memory.

Whatever is wrong with a line becomes a `Failure` that names it; nothing here raises for it.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import json
import lzma
import stat
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, cast

from indexing.records import Failure, excerpt

# A longer line is not a document but a broken file, and would have to be held in memory.
MAX_LINE_BYTES = 16 * 1024 * 1024
STDIN = "-"
_BLOCK = 1 << 20
_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
# How compressed files begin, and what such files are called.
_MAGIC: Mapping[bytes, str] = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
COMPRESSED = frozenset(_MAGIC.values())


class Line(NamedTuple):
    """One line without its line end."""

    location: str
    text: str


class RawLine(NamedTuple):
    """One line in bytes, with its line end."""

    location: str
    data: bytes


class Object(NamedTuple):
    """One JSON object."""

    location: str
    fields: Mapping[str, object]


class LineFile:
    """The lines of one file, or of standard input (`-`), plain or compressed.

    gzip, bzip2, xz and Zstandard are told by content, not by name. Raises `OSError` when built
    if the file cannot be opened, or cannot be unpacked here.
    """

    def __init__(self, path: Path | str, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._path = None if path == STDIN else Path(path)
        self.name = "stdin" if self._path is None else self._path.name
        self._size: int | None = None
        self._position: Callable[[], int] = lambda: 0
        # Another thread may ask how far it is; the file may not be closed under its question.
        self._asking = threading.Lock()
        self._max = max_line_bytes
        self.errors: tuple[type[Exception], ...] = _ERRORS  # what reading may raise
        about = None if self._path is None else self._path.stat()
        if self._path and about and not stat.S_ISFIFO(about.st_mode):  # which opens but once
            with self._path.open("rb") as raw:  # fail now, not at the first line
                if _kind_of(raw) == ".zst":
                    _zstd()
            self._size = about.st_size

    def fraction(self) -> float | None:
        """How much of the file has been read, from 0 to 1; None where it has no known end.

        May be asked by any thread.
        """
        if self._size is None:
            return None
        with self._asking:
            return min(1.0, self._position() / self._size) if self._size else 1.0

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open the file's bytes, unpacked. Opening and reading may raise `errors`."""
        with _stdin() if self._path is None else self._path.open("rb") as raw:
            if self._size is not None:
                self._position = raw.tell
            try:
                yield self._unpacked(raw)
            finally:
                with self._asking:
                    self._position = lambda: self._size or 0

    def _unpacked(self, raw: io.BufferedReader[Any]) -> IO[bytes]:
        kind = _kind_of(raw)
        if kind == ".gz":
            return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
        if kind == ".bz2":
            return cast("IO[bytes]", bz2.BZ2File(raw))
        if kind == ".xz":
            return cast("IO[bytes]", lzma.LZMAFile(raw))
        if kind == ".zst":
            zstd = _zstd()
            self.errors = (*_ERRORS, zstd.ZstdError)
            return cast("IO[bytes]", zstd.ZstdFile(raw))
        if self._path is not None and self._path.suffix in COMPRESSED and not raw.peek(1):
            raise EOFError(f"a {self._path.suffix} file of no bytes at all has been cut")
        return raw

    def raw_lines(self) -> Iterator[RawLine | Failure]:
        """Yield every line in bytes, blank ones too, or why it cannot be read."""
        number = 1
        try:
            with self.opened() as stream:
                while True:
                    data = stream.readline(self._max + 1)
                    if not data:
                        return
                    location = f"{self.name}:{number}"
                    if len(data) > self._max and not data.endswith(b"\n"):
                        size = len(data) + _skip_line(stream)
                        yield Failure(
                            location,
                            f"the line is {size} bytes long, more than {self._max}",
                            excerpt(data),
                        )
                    else:
                        yield RawLine(location, data)
                    number += 1
        except self.errors as error:
            yield self.cut(f"{self.name}:{number}", error)

    @staticmethod
    def cut(location: str, error: Exception) -> Failure:
        """Say that reading ended early: what follows cannot be found any more."""
        return Failure(location, f"the rest of the file cannot be read: {error}", cut=True)

    def lines(self, blank: bool = False) -> Iterator[Line | Failure]:
        """Yield every line as UTF-8, blank ones only if asked for, or why it cannot be read."""
        first = True
        for line in self.raw_lines():
            if isinstance(line, Failure):
                yield line
            else:
                decoded = decode(line, first)
                if blank or isinstance(decoded, Failure) or decoded.text.strip():
                    yield decoded
            first = False

    def objects(self) -> Iterator[Object | Failure]:
        """Yield every line's JSON object, or why there is none."""
        for line in self.lines():
            yield line if isinstance(line, Failure) else parse(line)


def decode(line: RawLine, first: bool = False) -> Line | Failure:
    """Decode a line as UTF-8, less its line end; `first` may begin with a byte order mark."""
    try:
        text = line.data.decode("utf-8-sig" if first else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: {error.reason} at byte {error.start}: convert the file with iconv"
        return Failure(line.location, reason, excerpt(line.data))
    if "\0" in text:
        # Blocks of them are left where a machine went down, and UTF-16 is full of them.
        return Failure(line.location, "a NUL byte in it, which is no text", excerpt(line.data))
    return Line(line.location, text)


def parse(line: Line) -> Object | Failure:
    """Parse a line as a JSON object."""
    try:
        value = json.loads(line.text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return Failure(line.location, f"not JSON: {error}", excerpt(line.text))
    if isinstance(value, dict):
        return Object(line.location, value)
    return Failure(
        line.location, f"a JSON object is needed, not {kind_of(value)}", excerpt(line.text)
    )


def identifier(fields: Mapping[str, object], name: str) -> str:
    """Give a field as a document id; raise `ValueError` if it is none."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"field {name!r} must hold an id, not {kind_of(value)}")
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
    raise ValueError(f"field {name!r} must hold text, not {kind_of(value)}")


def kind_of(value: object) -> str:
    """Say what a JSON value is, for messages about what it is not."""
    names = {dict: "an object", list: "a list", str: "empty text", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), "a number")


def _kind_of(raw: io.BufferedReader[Any]) -> str:
    start = raw.peek(6)[:6]
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def _zstd() -> Any:
    """Give the module that reads Zstandard. Raises `OSError` where there is none."""
    # The standard library's from Python 3.14 on, and before that its backport. (The package
    # zstandard takes a file that was cut short for one that ends there.)
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise OSError(
            "reading Zstandard needs one package more: pip install 'titlecast[sources]'"
        ) from error


@contextmanager
def _stdin() -> Iterator[io.BufferedReader[Any]]:
    stream: Any = sys.stdin.buffer  # left open: it is not ours
    if isinstance(stream, io.BufferedReader):
        yield stream
        return
    wrapped = io.BufferedReader(stream)
    try:
        yield wrapped
    finally:
        wrapped.detach()


def _skip_line(stream: IO[bytes]) -> int:
    skipped = 0
    while data := stream.readline(_BLOCK):
        skipped += len(data)
        if data.endswith(b"\n"):
            break
    return skipped


def _refuse_constant(name: str) -> NoReturn:
    # Python reads NaN and Infinity, but they are no JSON and the engine refuses them.
    raise ValueError(f"{name} is not a JSON value")
